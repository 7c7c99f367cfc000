"""Memory that a step frees is there for the next one."""

import json
import subprocess
import sys

import pytest
from tiny_project import base_config, labeled_only, load_config, make_tree

from mmdmt.engine import heap
from mmdmt.engine.heap import keep_freed_memory
from mmdmt.engine.runners import SemiRunner, semi_runner

STEPS = """
import json
import resource
import runpy
import sys

keep_freed_memory = runpy.run_path(sys.argv[1])['keep_freed_memory']


def pages_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):  # blocks of 48 MiB that come and go
        b'1' * (48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


before = pages_of_a_step()
assert keep_freed_memory()
print(json.dumps([before, [pages_of_a_step() for _ in range(6)]]))
"""


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ('LD_PRELOAD', 'MALLOC_ARENA_MAX', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_MAX_'):
        monkeypatch.delenv(name, raising=False)


def test_pages_are_handed_out_once(plain_environment):
    # in a new process: runners have changed the settings of this one, and its heap has free pages
    command = [sys.executable, '-c', STEPS, heap.__file__]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    before, after = json.loads(run.stdout)
    assert before > 4 * 12000, 'a block of 48 MiB has 12288 pages'
    assert after[-1] < 1000


def test_settings_of_the_user_stay(plain_environment, monkeypatch):
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '1000')
    assert not keep_freed_memory()


def test_other_c_libraries_are_left_alone(plain_environment, monkeypatch):
    monkeypatch.setattr(heap.platform, 'libc_ver', lambda: ('', ''))
    assert not keep_freed_memory()


@pytest.mark.parametrize('device, calls', [('cpu', 1), ('cuda', 0)])
def test_runners_on_a_cpu_do_so(tmp_path, monkeypatch, device, calls):
    made = []
    monkeypatch.setattr(semi_runner, 'keep_freed_memory', lambda: made.append(True))
    monkeypatch.setattr(semi_runner, 'get_device', lambda: device)
    cfg = labeled_only(base_config(make_tree(tmp_path / 'tree'), tmp_path / 'run', 1))
    SemiRunner.from_cfg(load_config(cfg, tmp_path / 'tiny.py'))
    assert len(made) == calls
