"""What ends up in a wheel, an sdist and an editable installation, and what the commands run."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import mmdmt
from mmdmt import files

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A copy of what is in the repository, so that builds leave nothing behind in it."""
    copy = tmp_path_factory.mktemp('tree') / 'mmdmt'
    copy.mkdir()
    for name in ('mmdmt', 'configs', 'tools', 'examples', 'requirements'):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.mim')
        )
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'model-index.yml'):
        shutil.copy2(ROOT / name, copy / name)
    if (ROOT / 'README.md').exists():
        shutil.copy2(ROOT / 'README.md', copy)
    return copy


def _python(*args, cwd, **kwargs):
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory):
    """The unpacked wheel, built as ``pip install .`` builds it, but offline."""
    out = tmp_path_factory.mktemp('wheel')
    _python(
        *['-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir'],
        str(out),
        '.',
        cwd=tree,
    )
    unpacked = out / 'site-packages'
    with zipfile.ZipFile(next(out.glob('*.whl'))) as archive:
        archive.extractall(unpacked)
    return unpacked


def _files(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_wheel_holds_the_package_configs_and_tools(wheel):
    assert _files(wheel / 'mmdmt' / '.mim' / 'configs') == _files(ROOT / 'configs')
    assert _files(wheel / 'mmdmt' / '.mim' / 'tools') == _files(ROOT / 'tools')
    assert _files(wheel / 'mmdmt' / '.mim' / 'examples') == _files(ROOT / 'examples')
    assert (wheel / 'mmdmt' / '.mim' / 'model-index.yml').is_file()
    modules = {f for f in _files(ROOT / 'mmdmt') if not f.startswith('.mim')}
    assert {'page.html', 'style.css', 'script.js'} <= {Path(name).name for name in modules}
    assert modules <= _files(wheel / 'mmdmt')


def test_wheel_brings_no_foreign_top_level_names(wheel):
    names = {path.name for path in wheel.iterdir() if not path.name.endswith('.dist-info')}
    assert names == {'mmdmt'}


def test_metadata_of_the_wheel(wheel):
    text = next(wheel.glob('*.dist-info/METADATA')).read_text()
    assert f'Version: {mmdmt.__version__}\n' in text
    assert re.search(r'License(-Expression)?: Apache-2.0', text)
    needs = re.findall(r'^Requires-Dist: ([\w-]+)(?!.*extra)', text, re.M)
    assert {'torch', 'torchvision', 'onedl-mmsegmentation', 'onedl-mmcv', 'kornia'} <= set(needs)
    extras = set(re.findall(r'^Provides-Extra: (\w+)', text, re.M))
    assert extras == {'optional', 'tests', 'docs', 'all'}
    tests = re.findall(r'^Requires-Dist: ([\w-]+).*extra == .tests.', text, re.M)
    assert {'pytest', 'timm'} <= set(tests)  # tests.txt includes optional.txt


def test_installed_package_finds_its_configs_and_tools(wheel, tmp_path):
    """``files`` imports the standard library only, so it runs from the unpacked wheel by itself."""
    code = (
        'import importlib.util as u\n'
        f"s = u.spec_from_file_location('files', {str(wheel / 'mmdmt/files.py')!r})\n"
        'm = u.module_from_spec(s); s.loader.exec_module(m)\n'
        'print(m.shipped_dir("configs")); print(m.shipped_dir("tools"))'
    )
    configs, tools = _python('-c', code, cwd=tmp_path).split()
    assert Path(configs) == wheel / 'mmdmt' / '.mim' / 'configs'
    assert (Path(tools) / 'demo.py').is_file()


def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Installed by pip; only what the package needs comes from the environment of the tests."""
    venv.create(tmp_path / 'env', with_pip=False)
    python = tmp_path / 'env' / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    own = Path(subprocess.check_output([python, '-c', code], text=True).strip())
    # The environment has no pip of its own, and this one sees what is installed here.
    built = str(next(wheel.parent.glob('*.whl')))
    install = ['-m', 'pip', 'install', '--no-deps', '--no-index', '--target', str(own), built]
    _python(*install, cwd=tmp_path)
    (own / 'hosts.pth').write_text(sysconfig.get_path('purelib'))
    code = (
        'import importlib.util as u\n'
        'package = u.find_spec("mmdmt").origin\n'
        's = u.spec_from_file_location("files", package.replace("__init__", "files"))\n'
        'm = u.module_from_spec(s); s.loader.exec_module(m)\n'
        'print(package, m.shipped_dir("tools"), m.shipped_dir("configs"), sep="\\n")'
    )
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    run = dict(cwd=tmp_path, env=env, text=True)
    package, tools, configs = subprocess.check_output([python, '-c', code], **run).split()
    assert all(own in Path(path).parents for path in (package, tools, configs))
    config = Path(configs) / 'mean_teacher' / 'mean-teacher_fcn_unet_toy-shift-96x96.py'
    command = [python, Path(tools) / 'train.py', config, '--print-config']
    assert "type='mmdmt.MeanTeacher'" in subprocess.check_output(command, **run)


def test_a_second_build_drops_deleted_configs(tree, wheel):
    old = tree / 'build' / 'lib' / 'mmdmt' / '.mim' / 'configs' / 'gone.py'
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text('')
    _python('setup.py', '-q', 'build_py', cwd=tree)
    assert not old.exists() and old.parent.is_dir()


def test_sdist_builds_the_same_wheel(tree, tmp_path):
    _python('setup.py', '-q', 'sdist', '--dist-dir', str(tmp_path), cwd=tree)
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive:
        names = {name.split('/', 1)[1] for name in archive.getnames() if '/' in name}
    for folder in ('configs', 'tools', 'examples', 'requirements'):
        assert {f'{folder}/{name}' for name in _files(ROOT / folder)} <= names
    assert {'LICENSE', 'model-index.yml', 'setup.py', 'pyproject.toml'} <= names
    assert not [name for name in names if name.startswith('mmdmt/.mim')]
    assert {f'mmdmt/{f}' for f in _files(ROOT / 'mmdmt') if not f.startswith('.mim')} <= names


def test_editable_install_links_configs_and_tools(tree, tmp_path):
    """PEP 660, as ``pip install -e .`` does it, into a folder of its own."""
    _python(
        *['-m', 'pip', 'install', '--no-deps', '--no-build-isolation', '--no-index', '--target'],
        str(tmp_path),
        '--editable',
        '.',
        cwd=tree,
    )
    mim = tree / 'mmdmt' / '.mim'
    assert (mim / 'configs').resolve() == tree / 'configs'
    assert (mim / 'tools').resolve() == tree / 'tools'
    _python('setup.py', '-q', 'build_py', cwd=tree)  # a normal build follows no links
    assert (tree / 'configs').is_dir() and (tree / 'tools' / 'demo.py').is_file()


def test_folders_of_this_installation():
    assert (files.shipped_dir('configs') / '_base_' / 'default_runtime.py').is_file()
    assert (files.shipped_dir('tools') / 'demo.py').is_file()


def test_the_tools_of_somebody_else_are_not_taken(tmp_path, monkeypatch):
    (tmp_path / 'tools').mkdir()
    monkeypatch.setattr(files, 'PACKAGE_ROOT', tmp_path / 'mmdmt')
    with pytest.raises(FileNotFoundError, match='pip install'):
        files.shipped_dir('tools')
    (tmp_path / 'setup.py').write_text('')
    assert files.shipped_dir('tools') == tmp_path / 'tools'


def test_check_and_requirements_name_the_same_bounds():
    """The command in the import error must bring what requirements/mminstall.txt asks for."""
    from mmdmt.dependencies import DEPENDENCIES

    lines = (ROOT / 'requirements' / 'mminstall.txt').read_text().splitlines()
    wanted = {f'"{line}"' for line in lines if line and not line.startswith('#')}
    assert wanted == {d.install for d in DEPENDENCIES if d.module != 'torch'}


@pytest.mark.skipif(sys.version_info < (3, 10), reason='importlib.metadata of Python 3.10')
def test_what_is_imported_is_declared():
    """Also what the host libraries would bring anyway."""
    declared = set()
    for name in ('runtime', 'mminstall', 'optional'):
        lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
        declared |= {
            _plain(re.match(r'[\w-]+', line).group()) for line in lines if line[:1].isalpha()
        }
    found = set()
    for path in [*(ROOT / 'mmdmt').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split('.')[0])
    brought_by = metadata.packages_distributions()
    own = {'mmdmt', *(path.stem for path in (ROOT / 'examples').rglob('*.py'))}
    foreign = found - set(sys.stdlib_module_names) - own
    assert 'cv2' in foreign
    undeclared = {n for n in foreign if not declared & {*map(_plain, brought_by.get(n, ()))}}
    assert undeclared == set(), 'name it in requirements/'


def _plain(distribution):
    """The official and the maintained distributions bring the same; so does OpenCV's small one."""
    return distribution.lower().removeprefix('onedl-').removesuffix('-headless')


def test_every_metafile_is_in_the_model_index():
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    there = {str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml')}
    assert set(listed) == there


# --- the Makefile ------------------------------------------------------------------------------


def _make(tree, *args, env=None):
    """What make would do; ``-n`` runs nothing."""
    # Without what the make that runs these tests was told, such as VENV=elsewhere.
    told = {'MAKEFLAGS', 'MAKEOVERRIDES', 'VENV', 'PYTHON', 'JOBS', 'ARGS', 'STAMP'}
    inherited = {key: value for key, value in os.environ.items() if key not in told}
    return subprocess.run(
        ['make', *args], cwd=tree, capture_output=True, text=True, env={**inherited, **(env or {})}
    )


@pytest.fixture
def fake_python(tmp_path):
    """A ``python3`` that makes a venv whose python only writes down what it is asked to do."""
    log = tmp_path / 'calls'
    inner = tmp_path / 'inner'
    inner.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\n'
        f'case "$*" in *"install --editable"*) test ! -e {tmp_path}/fail;; esac\n'
    )
    inner.chmod(0o755)
    outer = tmp_path / 'python3'
    outer.write_text(
        f'#!/bin/sh\necho "outer $*" >> {log}\nmkdir -p "$3/bin" && cp {inner} "$3/bin/python"\n'
    )
    outer.chmod(0o755)
    return outer


@pytest.fixture
def make_tree(tmp_path):
    folder = tmp_path / 'clone'
    folder.mkdir()
    for name in ('Makefile', 'setup.py'):
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / 'requirements', folder / 'requirements')
    return folder


def _calls(tmp_path):
    log = tmp_path / 'calls'
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize('first, second', [('demo', 'test'), ('test', 'demo')])
def test_make_installs_once_in_either_order(make_tree, fake_python, tmp_path, first, second):
    work = {'demo': 'tools/demo.py', 'test': '-m pytest'}
    assert _make(make_tree, first, f'PYTHON={fake_python}').returncode == 0
    calls = _calls(tmp_path)
    assert calls[0] == 'outer -m venv .venv'
    assert [call for call in calls if 'install --editable .[tests]' in call]
    assert work[first] in calls[-1]
    for command in (second, first):
        assert _make(make_tree, command, f'PYTHON={fake_python}').returncode == 0
        calls = _calls(tmp_path)
        assert len(calls) == 1 and work[command] in calls[0]  # nothing that needs a network


def test_make_takes_up_an_interrupted_installation(make_tree, fake_python, tmp_path):
    (tmp_path / 'fail').touch()
    assert _make(make_tree, 'install', f'PYTHON={fake_python}').returncode != 0
    (tmp_path / 'fail').unlink()
    _calls(tmp_path)
    assert _make(make_tree, 'install', f'PYTHON={fake_python}').returncode == 0
    assert [call for call in _calls(tmp_path) if 'install --editable' in call]


def test_make_installs_again_when_requirements_change(make_tree, fake_python, tmp_path):
    _make(make_tree, 'install', f'PYTHON={fake_python}')
    with open(make_tree / 'requirements' / 'runtime.txt', 'a') as file:
        file.write('einops\n')
    _calls(tmp_path)
    _make(make_tree, 'install', f'PYTHON={fake_python}')
    assert [call for call in _calls(tmp_path) if 'install --editable' in call]


def test_make_names_what_is_missing_when_venv_fails(make_tree):
    done = _make(make_tree, 'install', 'PYTHON=false')
    assert done.returncode != 0 and 'python3-venv' in done.stdout


def test_make_fails_when_tests_fail(make_tree, fake_python, tmp_path):
    _make(make_tree, 'install', f'PYTHON={fake_python}')
    (make_tree / '.venv' / 'bin' / 'python').write_text('#!/bin/sh\nexit 1\n')
    assert _make(make_tree, 'test').returncode != 0


def test_ci_run_prints_the_closing_line_last_and_fails_with_the_tests(make_tree):
    (make_tree / '.ci').mkdir()
    shutil.copy2(ROOT / '.ci' / 'run', make_tree / '.ci' / 'run')
    for code in (0, 1):
        (make_tree / 'Makefile').write_text(
            'lint:\n\t@echo "All checks passed!"\n'
            f'test:\n\t@echo "== 3 passed, 1 warning in 2.10s =="; echo more; exit {code}\n'
        )
        done = subprocess.run([make_tree / '.ci' / 'run'], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == '== 3 passed, 1 warning in 2.10s =='
        assert (done.returncode != 0) == bool(code)
