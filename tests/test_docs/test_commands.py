"""The commands of README and guides are ones that the tools take.

A shell block is run by bash with stand-ins for every program it starts, so that variables and loops
are expanded as a reader's shell would do it. Each command line is then read by the tool's own
parser, its config is loaded and its options are merged. `docs_commands.py` really runs them, on
small data and shortened; here it runs one page.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import docs_commands
import docs_sandbox
import pytest
from docs_commands import blocks_of
from shipped_configs import read

from mmdmt.config import merge_options

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
GUIDES += sorted((ROOT / 'configs').glob('*/README.md'))
BLOCK = re.compile(r'^```(?:shell|bash|sh)\n(.*?)^```', re.M | re.S)
PLACEHOLDER = re.compile(r'^[A-Z_/.]+$')  # CONFIG, WORK_DIR/stage_0_a ...
SCRIPTS = ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh')
# How many arguments, its name and the arguments: a shell starts in a fraction of Python's time.
STAND_IN = r"""#!/bin/sh
printf '%s\0' "$#" "${0##*/}" "$@" >>"$COMMANDS"
"""


def commands_of(guide, folder):
    """Argument lists of the programs that the shell blocks of a guide start."""
    programs = folder / 'bin'
    (folder / 'tools').mkdir(parents=True)
    programs.mkdir()
    for path in [programs / 'python', *(folder / 'tools' / name for name in SCRIPTS)]:
        path.write_text(STAND_IN)
        path.chmod(0o755)
    record = folder / 'commands'
    record.touch()
    for block in BLOCK.findall(guide.read_text()):
        done = subprocess.run(
            [shutil.which('bash'), '-c', block],
            cwd=folder,
            env=dict(PATH=str(programs), COMMANDS=str(record), HOME=str(folder)),
            capture_output=True,
            timeout=600,
            text=True,
        )
        assert 'syntax error' not in done.stderr, f'{guide.name}: {done.stderr}'
    words, commands = record.read_text().split('\0')[:-1], []
    while words:
        commands.append(words[1 : int(words[0]) + 2])
        words = words[int(words[0]) + 2 :]
    return commands


def parsed(script, argv, monkeypatch):
    """Arguments as the tool's own parser reads them."""
    monkeypatch.setattr(sys, 'argv', [str(script), *argv])
    spec = importlib.util.spec_from_file_location(f'tool_{script.stem}', script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(script.parent))
    spec.loader.exec_module(module)
    return module.parse_args()


def check_config(name, options):
    """The config is there, and takes the options."""
    if PLACEHOLDER.match(name) or not name.startswith('configs/'):
        return
    cfg = read(name[len('configs/') : -len('.py')])
    if options:
        merge_options(cfg, options)


@pytest.mark.parametrize('guide', GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tools_take_the_commands(guide, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    for program, *argv in commands_of(guide, tmp_path):
        if program in SCRIPTS:
            place = 2 if program.startswith('slurm') else 0
            check_config(argv[place], None)
        elif argv and argv[0].endswith('.py') and (ROOT / argv[0]).is_file():
            try:
                args = parsed(ROOT / argv[0], argv[1:], monkeypatch)
            except SystemExit:
                pytest.fail(f'{guide.name}: {" ".join(argv)}\n{capsys.readouterr().err}')
            config = getattr(args, 'config', None)
            if isinstance(config, str):
                check_config(config, getattr(args, 'cfg_options', None))


def test_the_stand_ins_see_what_a_shell_would_run(tmp_path):
    guide = tmp_path / 'guide.md'
    guide.write_text(
        'Text.\n\n```shell\nN=a\nfor m in x y; do\n    python tools/train.py configs/$m/$N.py \\\n'
        '        --cfg-options max_iters=3\ndone\ntools/dist_train.sh CONFIG 4\n```\n'
    )
    assert commands_of(guide, tmp_path / 'shell') == [
        ['python', 'tools/train.py', 'configs/x/a.py', '--cfg-options', 'max_iters=3'],
        ['python', 'tools/train.py', 'configs/y/a.py', '--cfg-options', 'max_iters=3'],
        ['dist_train.sh', 'CONFIG', '4'],
    ]


def test_every_rule_and_exception_of_the_runner_is_needed():
    blocks = [
        b for page in docs_commands.pages() for b in blocks_of((ROOT / page).read_text(), page)
    ]
    for rule in docs_sandbox.RULES:
        assert any(rule in docs_sandbox.rules_of(block) for block in blocks), rule
    for exception in docs_sandbox.EXCEPTIONS:
        pages, begins, _ = exception
        fitting = [
            command
            for block in blocks
            for _, command in docs_commands.commands_of(block.text)
            if fnmatch(block.page, pages) and command.startswith(begins)
        ]
        assert fitting, exception


def test_the_runner_reads_all_pages_and_keeps_lines():
    guides = {str(path.relative_to(ROOT)) for path in GUIDES if BLOCK.search(path.read_text())}
    assert set(docs_commands.pages()) == guides
    for page in docs_commands.pages():
        for block in blocks_of((ROOT / page).read_text(), page):
            assert docs_sandbox.prepare(block)[1].count('\n') == block.text.count('\n')
            first = (ROOT / page).read_text().splitlines()[block.line - 1]
            assert block.text.startswith(first)


DRAFT = """Text.

```python
# my_list.py
names = ['a', 'b']
```

```shell
python -c 'from my_list import names; print(*names)' > names.txt
python tools/misc/split_dataset.py --list no_such_list.txt \\
    --out-dir splits --counts 1
touch never
```

```shell
ls nowhere
```

```shell
make -s -f - <<< 'all: ; touch made$(ARGS)'
```
"""


def test_a_failing_command_is_named_with_its_page_line_and_output(tmp_path, monkeypatch):
    monkeypatch.setenv('ARGS', '.for_another_make')
    draft = tmp_path / 'draft.md'
    draft.write_text(DRAFT)
    pages = ['docs/interruption.md', str(draft)]
    script = [sys.executable, ROOT / 'tests' / 'docs_commands.py', '--keep', tmp_path / 'pages']
    done = subprocess.run([*script, '--only', *pages], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 1, done.stderr
    assert 'docs/interruption.md: 0 failed' in done.stdout
    assert f'FAILED {draft}:10: python tools/misc/split_dataset.py' in done.stdout
    assert f'FAILED {draft}:16: ls nowhere' in done.stdout
    assert 'no_such_list.txt' in done.stdout and f'{draft}: 2 failed' in done.stdout
    (folder,) = (tmp_path / 'pages').glob('*draft')
    assert not (folder / 'never').exists() and (folder / 'made').exists()
    # Shortened, and with what the page shows and speaks of.
    work_dir = tmp_path / 'pages/docs_interruption/work_dirs'
    assert [path.name for path in work_dir.glob('*/iter_*.pth')] == ['iter_3.pth']
