"""Memory that a step frees is there for the next one."""

import ctypes
import multiprocessing
import resource

import pytest
import torch
from tiny_project import base_config, labeled_only, load_config, make_tree

from mmdmt.engine import heap
from mmdmt.engine.heap import keep_freed_memory
from mmdmt.engine.runners import SemiRunner, semi_runner


def pages_of_a_step():
    """Pages that the system hands out for blocks of 48 MiB that come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(3 << 22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_another_process(function):
    """What a function returns in a process that ends with its settings."""
    context = multiprocessing.get_context('fork')
    there, here = context.Pipe()
    process = context.Process(target=lambda: there.send(function()))
    process.start()
    assert here.poll(600)
    found = here.recv()
    process.join()
    return found


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ('LD_PRELOAD', 'MALLOC_ARENA_MAX', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_MAX_'):
        monkeypatch.delenv(name, raising=False)


def test_pages_are_handed_out_once(plain_environment):
    def steps():
        mallopt = ctypes.CDLL(None).mallopt
        for setting in ((-1, 1 << 17), (-2, 1 << 17), (-4, 1 << 16)):  # as glibc has them
            assert mallopt(*setting)  # runners in this process have changed them
        before = pages_of_a_step()
        assert keep_freed_memory()
        return before, [pages_of_a_step() for _ in range(6)]

    before, after = in_another_process(steps)
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
