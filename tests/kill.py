"""Killing a real training process at a moment that its files show."""

import signal
import subprocess
import sys
import time

from tiny_project import ROOT, environment

PATIENCE = 240


def kill_at(config, path):
    """Start ``tools/train.py`` and SIGKILL it as soon as ``path`` exists."""
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config)]
    with subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        deadline = time.time() + PATIENCE
        while not path.exists():
            assert process.poll() is None, process.stderr.read().decode()[-3000:]
            assert time.time() < deadline, f'{path} did not appear within {PATIENCE} s'
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
