import importlib
import sys
import types

import pytest

from mmdmt import dependencies
from mmdmt.dependencies import DEPENDENCIES, check_dependencies


@pytest.fixture
def fake(monkeypatch):
    """Put fake modules in place of what ``import`` would find."""

    def install(name, version=None, error=None):
        if error is None:
            module = types.ModuleType(name)
            module.__version__ = version
            monkeypatch.setitem(sys.modules, name, module)
            return
        real = importlib.import_module

        def import_module(wanted, *args):
            if wanted == name:
                raise error
            return real(wanted, *args)

        monkeypatch.setattr(dependencies.importlib, 'import_module', import_module)

    return install


def _message():
    with pytest.raises(ImportError) as caught:
        check_dependencies()
    return str(caught.value)


def _is_one_sentence(text):
    return '\n' not in text and text.endswith('.') and text.count('run `pip install') == 1


def test_this_installation_passes():
    check_dependencies()


@pytest.mark.parametrize('dependency', DEPENDENCIES, ids=lambda d: d.module)
def test_missing(fake, dependency):
    name = dependency.module
    fake(name, error=ModuleNotFoundError(f'No module named {name!r}', name=name))
    message = _message()
    assert f'{name}>={dependency.minimum}' in message and 'not installed' in message
    assert dependency.command in message and _is_one_sentence(message)


@pytest.mark.parametrize(
    'name, version',
    [
        ('torch', '1.13.1+cu117'),
        ('mmengine', '0.9.1'),
        ('mmengine', '0.11.0'),
        ('mmcv', '1.7.2'),
        ('mmcv', '2.4.0'),
        ('mmseg', '0.30.0'),
        ('mmseg', '1.5.0'),
    ],
)
def test_wrong_version(fake, name, version):
    fake(name, version)
    message = _message()
    assert name in message and f'but {version} is installed' in message
    assert _is_one_sentence(message)


@pytest.mark.parametrize(
    'name, version', [('mmengine', '0.10.7'), ('mmcv', '2.1.0'), ('mmcv', '2.0.0rc4')]
)
def test_versions_of_the_official_distributions_pass(fake, name, version):
    fake(name, version)
    check_dependencies()


def test_a_dependency_of_a_dependency_is_not_called_missing_itself(fake):
    fake('mmseg', error=ModuleNotFoundError("No module named 'prettytable'", name='prettytable'))
    message = _message()
    assert 'cannot import mmseg' in message and 'prettytable' in message
    assert _is_one_sentence(message)


def test_assertion_of_mmseg_about_mmcv_is_passed_on(fake):
    fake('mmseg', error=AssertionError('MMCV==2.2.0 is used\nbut incompatible'))
    message = _message()
    assert 'MMCV==2.2.0 is used but incompatible' in message and _is_one_sentence(message)


def test_broken_torchvision(fake):
    fake('torchvision', error=RuntimeError('operator torchvision::nms does not exist'))
    message = _message()
    assert 'torchvision does not fit' in message and 'torchvision::nms' in message
    assert 'pip install --force-reinstall torch torchvision' in message


def test_torchvision_may_be_absent(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        dependencies.importlib.util,
        'find_spec',
        lambda name: None if name == 'torchvision' else real(name),
    )
    check_dependencies()


@pytest.mark.parametrize('name', ['ftfy', 'regex'])
def test_what_mmseg_does_not_declare(monkeypatch, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        dependencies.importlib.util,
        'find_spec',
        lambda wanted: None if wanted == name else real(wanted),
    )
    message = _message()
    assert f'pip install {name}' in message and _is_one_sentence(message)


def test_mmcv_without_ops(fake):
    fake('mmseg.models', error=ModuleNotFoundError("No module named 'mmcv._ext'"))
    message = _message()
    assert 'mmcv._ext' in message and 'MMCV_WITH_OPS=1' in message


def test_command_follows_the_distribution_in_use(fake, monkeypatch):
    monkeypatch.setattr(dependencies, '_is_installed', lambda name: name == 'mmsegmentation')
    fake('mmseg', '1.1.0')
    assert '`pip install "mmsegmentation>=1.2.2,<1.3"`' in _message()


def test_a_fresh_import_of_the_package_names_it(tmp_path):
    """The sentence is what a user of ``import mmdmt`` sees last."""
    import subprocess

    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text("__version__ = '1.7.0'\n")
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / '__init__.py').write_text("__version__ = '0.10.7'\n")
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text("__version__ = '2.4.0'\n")
    root = str(importlib.import_module('pathlib').Path(dependencies.__file__).parents[1])
    code = f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]; import mmdmt'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith('ImportError: mmdmt needs mmcv>=2.0.0,<2.4.0, but 1.7.0 is installed')
