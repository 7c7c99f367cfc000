"""Run the commands of README and guides, on small data and shortened.

Usage::

make docs-test                                   # all pages
python tests/docs_commands.py --only docs/dmt.md README.md
python tests/docs_commands.py --list             # pages, and which commands are left out and why

Each page has a folder of its own, with a copy of this checkout, small datasets where the configs
look for them, and what the page takes for granted (``docs_sandbox.py``). Its shell blocks are run
one after the other by bash, which stops a block at the first command that fails. ``python`` is a
stand-in: it hands the command to this process, which has imported everything once, forks, and
shortens what is trained (``short_runs.py``). Files that a page shows (``# my_config.py``) are
written before its blocks.
"""

import argparse
import atexit
import contextlib
import gc
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]
BLOCK = re.compile(r'^```(?:shell|bash|sh)\n(.*?)^```', re.M | re.S)
FILE = re.compile(r'^```python\n# (\w+\.py)\b(.*?)^```', re.M | re.S)
PATIENCE = 900  # seconds for a block, to end hangs
#: What `make docs-test` passes on, and a `make` of a page would take for its own.
OF_MAKE = ('ARGS', 'MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS')
LINES = 40  # of the output of a command that failed

#: Speaks to the server: sends command line, folder, environment and streams, and ends as it says.
STAND_IN = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ['DOCS_SERVER'])
command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(command).to_bytes(8, 'big')], [0, 1, 2])
server.sendall(command)
sys.exit(int(server.recv(16) or 70))
"""
START = """set -eE -o pipefail
trap 'echo "$LINENO" > "$FAILED_LINE"' ERR
"""


class Block(NamedTuple):
    """A shell block: its page, the line of its first command there, and its text."""

    page: str
    line: int
    text: str


def pages():
    """All pages with shell blocks, as paths below the checkout."""
    found = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
    found += sorted((ROOT / 'configs').glob('*/README.md'))
    return [str(path.relative_to(ROOT)) for path in found if blocks_of(path.read_text(), path)]


def blocks_of(text, page):
    """The shell blocks of a page."""
    return [
        Block(str(page), text[: match.start(1)].count('\n') + 1, match.group(1))
        for match in BLOCK.finditer(text)
    ]


def commands_of(text):
    """Logical lines of a block as (line, text): continued lines are one, comments are none."""
    found, begun = [], None
    for number, line in enumerate(text.splitlines()):
        begun = number if begun is None else begun
        if not line.endswith('\\'):
            command = '\n'.join(text.splitlines()[begun : number + 1])
            if command.strip() and not command.lstrip().startswith('#'):
                found.append((begun, command))
            begun = None
    return found


def files_of(text):
    """Files that a page shows, by name."""
    return {match.group(1): match.group(0)[10:-3] for match in FILE.finditer(text)}


# --- Processes -----------------------------------------------------------------------------------


class Server:
    """Runs commands of Python that stand-ins hand over, in processes forked from this one."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix='docs_'))  # short: paths of sockets are
        self.path = self.folder / 'server'
        self.programs = self.folder / 'bin'
        self.programs.mkdir()
        for name in ('python', 'python3'):
            (self.programs / name).write_text(STAND_IN.format(python=sys.executable))
            (self.programs / name).chmod(0o755)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.path))
        self.socket.listen(16)
        self.children = {}
        self.last = []

    def close(self):
        """Remove what this server needs."""
        self.socket.close()
        shutil.rmtree(self.folder)

    def run(self, text, folder, log):
        """Let bash run a text; returns its exit code and the line that failed, from 0."""
        where = self.folder / 'line'
        where.write_text('')
        environment = dict(self.environment(), FAILED_LINE=str(where))
        with open(log, 'wb') as stream:
            shell = subprocess.Popen(
                [shutil.which('bash'), '-c', START + text],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            end = time.time() + PATIENCE
            while shell.poll() is None and time.time() < end:
                self.serve()
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
                stream.write(f'\nnot finished after {PATIENCE} s\n'.encode())
            for child in list(self.children):  # what bash left behind
                os.kill(child, signal.SIGKILL)
            while self.children:
                self.serve()
        line = where.read_text().split()
        return shell.wait(), int(line[-1]) - 1 - START.count('\n') if line else None

    def environment(self):
        """Environment of a page: the stand-ins first, an installation that is complete, no GPU."""
        installed = self.folder / 'venv' / 'bin'
        if not installed.exists():
            installed.mkdir(parents=True)
            (installed / 'python').symlink_to(self.programs / 'python')
            (self.folder / 'stamp').touch()
        outer = {k: v for k, v in os.environ.items() if k not in OF_MAKE}
        return dict(
            outer,
            PATH=os.pathsep.join([str(self.programs), os.environ['PATH']]),
            PYTHONPATH=str(ROOT),
            PYTHON_EXEC=str(self.programs / 'python'),  # of torchrun
            DOCS_SERVER=str(self.path),
            VENV=str(installed.parent),
            STAMP=str(self.folder / 'stamp'),
            OMP_NUM_THREADS='1',
            OMP_WAIT_POLICY='PASSIVE',
            CUDA_VISIBLE_DEVICES='-1',
            MPLBACKEND='Agg',
        )

    def serve(self):
        """Start what was asked for, and report what has ended."""
        if select.select([self.socket], [], [], 0.02)[0]:
            connection, _ = self.socket.accept()
            size, streams, _, _ = socket.recv_fds(connection, 8, 3)
            command = b''
            while len(command) < int.from_bytes(size, 'big'):
                command += connection.recv(1 << 16)
            argv, folder, environment = json.loads(command)
            self.last = argv
            child = os.fork()
            if child == 0:
                self.socket.close()
                os._exit(run_python(argv, folder, environment, streams))
            for stream in streams:
                os.close(stream)
            self.children[child] = connection
        for child in list(self.children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                connection = self.children.pop(child)
                with contextlib.suppress(OSError):  # bash was killed
                    connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
                connection.close()


def run_python(argv, folder, environment, streams):
    """In a forked process: what ``python *argv`` would do, shortened; returns the exit code."""
    from short_runs import short_arguments, shorten_all

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment['PYTHON_EXEC']
    sys.path[:0] = [os.path.abspath(path) for path in environment['PYTHONPATH'].split(os.pathsep)]
    atexit._clear()  # what this process would do at its end
    code = 0
    try:
        _start(argv, short_arguments, shorten_all)
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
        code = 0 if code is None else code if isinstance(code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def _start(argv, short_arguments, shorten_all):
    import numpy as np
    import torch

    torch.set_num_threads(1)
    for seed in (np.random.seed, torch.seed):  # else all children draw the same
        seed()
    while argv[0] in ('-W', '-u'):
        argv = argv[2 if argv[0] == '-W' else 1 :]
    argv = short_arguments(argv)
    begins = argv[0] not in ('-c', '-m') and os.path.dirname(os.path.abspath(argv[0]))
    sys.path.insert(0, begins or os.getcwd())
    if argv[0] == '-c':
        sys.argv = ['-c', *argv[2:]]
        exec(compile(argv[1], '<string>', 'exec'), dict(__name__='__main__'))
    elif argv[0] == '-m':
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    else:
        shorten_all(argv[0])
        sys.argv = argv
        runpy.run_path(argv[0], run_name='__main__')


# --- Pages ---------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A command that failed: where it stands, its text and the end of what it printed."""

    place: str
    command: str
    output: str

    def __str__(self):
        return f'{self.place}: {self.command}\n' + re.sub('^', '    ', self.output, flags=re.M)


def run_page(server, page, text, folder):
    """Run the blocks of a page in a folder, and print which command of each failed."""
    from docs_sandbox import make_sandbox, prepare, substitute

    make_sandbox(folder, text)
    for name, content in files_of(text).items():
        (folder / name).write_text(substitute(content))
    failures = []
    for block in blocks_of(text, page):
        before, shell = prepare(block)
        for part, what in ((before, 'preparation of '), (shell, '')):
            log = folder / 'output.log'
            code, line = server.run(part, folder, log) if part.strip() else (0, None)
            if code == 0:
                continue
            lines = part.splitlines()
            number = min(line or 0, len(lines) - 1)
            place = f'{what}{page}:{block.line + (0 if what else number)}'
            command = next((c for at, c in commands_of(part) if c and at >= number), lines[number])
            command = f'{command}\n  (exit code {code}, python {" ".join(server.last)})'
            output = '\n'.join(log.read_text(errors='replace').splitlines()[-LINES:])
            failures.append(Failure(place, command, output))
            print(f'FAILED {failures[-1]}', flush=True)
            break
    return failures


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Run the commands of README and guides')
    parser.add_argument('--only', nargs='+', metavar='PAGE', help='such as docs/dmt.md or docs/*')
    parser.add_argument('--list', action='store_true', help='print pages and exceptions, and exit')
    parser.add_argument('--keep', type=Path, help='make the folders of the pages here, keep them')
    return parser.parse_args(argv)


def chosen_pages(patterns):
    """Pages that one of the patterns fits, and files that are none of them."""
    found = []
    for pattern in patterns or ['*']:
        fitting = [page for page in pages() if fnmatch(page, pattern)]
        if not fitting and Path(pattern).is_file():
            fitting = [os.path.abspath(pattern)]  # a draft
        if not fitting:
            raise SystemExit(f'--only {pattern} is no file, and fits none of {pages()}')
        found += [page for page in fitting if page not in found]
    return found


def print_list(chosen):
    """Print which commands are run and which are not."""
    from docs_sandbox import exception_of

    for page in chosen:
        for block in blocks_of((ROOT / page).read_text(), page):
            for line, command in commands_of(block.text):
                why = exception_of(page, command)
                text = ' '.join(command.replace('\\\n', ' ').split())
                print(f'{page}:{block.line + line}: {f"[not run: {why}] " if why else ""}{text}')


def cpu_time():
    """Seconds that this process and those that have ended computed."""
    return sum(os.times()[:4])


def main(argv=None):
    """Run the pages; the exit code is 1 if a command failed."""
    args = parse_args(argv)
    chosen = chosen_pages(args.only)
    if args.list:
        print_list(chosen)
        return
    begun = time.time()
    for module in ('mmdmt', 'mmseg.models', 'mmseg.datasets', 'mmseg.apis', 'mmdmt.classification'):
        __import__(module)
    gc.freeze()
    failures, server = [], Server()
    place = args.keep or Path(tempfile.mkdtemp(prefix='docs_pages_'))
    try:
        for page in chosen:
            start, before = time.time(), cpu_time()
            folder = place / page.strip('/').replace('/', '_').replace('.md', '')
            found = run_page(server, page, (ROOT / page).read_text(), folder)
            failures += found
            spent = f'{time.time() - start:.0f} s, {cpu_time() - before:.0f} s of CPU'
            print(f'{page}: {len(found)} failed, {spent}', flush=True)
            if not args.keep:
                shutil.rmtree(folder)
    finally:
        gc.unfreeze()  # some libraries complain at exit of what was not collected
        server.close()
        if not args.keep:
            shutil.rmtree(place, ignore_errors=True)
    print(f'{len(chosen)} pages, {len(failures)} failed, {time.time() - begun:.0f} s')
    sys.exit(1 if failures else 0)


if __name__ == '__main__':
    main()
