"""The commands of README and guides are ones that the tools take.

A shell block is run by bash with stand-ins for every program it starts, so that variables and loops
are expanded as a reader's shell would do it. Each command line is then read by the tool's own
parser, its config is loaded and its options are merged. What the commands do is tested elsewhere.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
        subprocess.run(
            [shutil.which('bash'), '-c', block],
            cwd=folder,
            env=dict(PATH=str(programs), COMMANDS=str(record), HOME=str(folder)),
            capture_output=True,
            timeout=600,
        )
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
