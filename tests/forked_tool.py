"""Real processes of the tools without importing mmseg anew in each.

A fork server imports once, then every tool runs in a process forked from it: with its own memory,
loader workers and exit code, and killable like any other.
"""

import atexit
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 1800  # seconds, to end hangs: machines may be ten times slower

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['imported_once'])


def _server():
    """Where the fork server listens, and its key in newer versions of Python; starts it once."""
    paths = [str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')]
    settings = dict(PYTHONPATH=os.pathsep.join(paths), CUDA_VISIBLE_DEVICES='-1')
    with mock.patch.dict(os.environ, settings):
        forkserver.ensure_running()
    server = vars(forkserver._forkserver)
    return {key: server[key] for key in server if key.endswith(('_address', '_authkey'))}


class _Forked(multiprocessing.context.ForkServerProcess):
    """A process that a tool starts: where that prints, with its environment."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log, self.environment = _Forked.log, dict(os.environ)

    def run(self):
        _print_into(self.log)
        os.environ.update(self.environment)
        super().run()


def _print_into(log):
    with open(log, 'ab', buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _run(tool, args, log, environment, server):
    if server:  # which forks the processes of the tool, too
        vars(forkserver._forkserver).update(server, ensure_running=lambda: None)
        forkserver.ensure_running = lambda: None  # for tools that start it early
        multiprocessing.context.ForkServerContext.Process, _Forked.log = _Forked, log
    os.environ.update(environment)
    # As in a terminal: tests that a shell runs in the background would hand on that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Paths that child processes of the tool need too.
    sys.path[:0] = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    _print_into(log)
    import numpy as np
    import torch

    # Forked processes would all start from the server's states.
    random.seed()
    np.random.seed()
    torch.seed()
    sys.argv = [str(tool), *map(str, args)]
    # What a program does at its end, and `multiprocessing` does not.
    atexit._clear()
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


class ForkedTool:
    """A running tool: ``tools/<tool>`` of this project, or a script by its path.

    Training and testing print all that they log, unless they are to be ``quiet`` as for users.
    Processes that a tool starts come from the same fork server, unless it is to start its own.
    """

    def __init__(self, tool, *args, log, quiet=False, own_server=False, **environment):
        talks = tool in ('train.py', 'test.py') and not quiet
        args = (*args, '--verbose') if talks else args
        environment = dict(CUDA_VISIBLE_DEVICES='-1', **environment)
        self.log = Path(log)
        self.log.touch()
        path = Path(tool) if Path(tool).is_absolute() else ROOT / 'tools' / tool
        server = _server()
        args = (path, args, self.log, environment, None if own_server else server)
        self.process = _context.Process(target=_run, args=args)
        self.process.start()

    def finish(self, check=True):
        """Wait for the end and return what was printed."""
        self.process.join(PATIENCE)
        text = self.log.read_text(errors='replace')
        if (check and self.process.exitcode != 0) or self.process.is_alive():
            self.kill()
            raise AssertionError(f'exit code {self.process.exitcode}:\n{text[-5000:]}')
        return text

    def wait_for(self, path):
        """Wait until a file exists."""
        deadline = time.time() + PATIENCE
        while not Path(path).exists():
            text = self.log.read_text(errors='replace')[-5000:]
            assert self.process.is_alive(), f'ended with {self.process.exitcode}:\n{text}'
            assert time.time() < deadline, f'{path} did not appear:\n{text}'
            time.sleep(0.01)

    def kill(self):
        """SIGKILL."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join(PATIENCE)


def free_port():
    """A port for the processes of one run."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def forked_ranks(tool, *args, log, ranks=2, **environment):
    """The processes that torchrun would start on a machine without a GPU."""
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    common = dict(address, WORLD_SIZE=str(ranks))
    return [
        ForkedTool(
            tool,
            *args,
            '--launcher',
            'pytorch',
            log=Path(log).with_suffix(f'.{rank}.log'),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **common,
            **environment,
        )
        for rank in range(ranks)
    ]
