"""Settings of the whole suite: small machines, no display, no GPU unless there is one."""

import functools
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')
# Threads that spin while they wait make two busy processes several times slower.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Processes that tests start run this checkout, not the one that is installed.
os.environ['PYTHONPATH'] = os.pathsep.join(
    [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get('PYTHONPATH')])]
)

# Nothing that imports torch: the process that hands out the tests to others needs none of it.
import pytest
from hypothesis import settings
from yapf.yapflib import yapf_api

FORMAT_CODE = yapf_api.FormatCode

# Examples on a shared machine take as long as they take; the same ones are tried every time.
settings.register_profile('mmdmt', deadline=None, derandomize=True)
settings.load_profile('mmdmt')


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give back what `small_heap` froze: some libraries complain at exit of what is left."""
    gc.unfreeze()


@pytest.fixture(scope='module', autouse=True)
def small_heap():
    """Take out of garbage collection what imports made, and what tests of other files keep.

    mmengine collects garbage for every dataset it builds, which takes a second with all of that.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='module', autouse=True)
def no_default_scope():
    """No module sees the default scope that a runner of another one has left behind."""
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_visualizer():
    """No run writes into the folder of an earlier test, which is deleted when that passed.

    mmengine hands out visualizers by the name of the run: what it was called with, and the second.
    """
    yield
    if 'mmengine.visualization' in sys.modules:
        forget(sys.modules['mmengine.visualization'].Visualizer)


def forget(visualizer: type) -> None:
    """Drop the instances that mmengine keeps of a class and of those derived from it."""
    visualizer._instance_dict.clear()
    for derived in visualizer.__subclasses__():
        forget(derived)


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs():
    """Config texts as they are: mmengine formats them for logs, files and every checkpoint.

    That takes half of the time of a short run.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', lambda text, **options: (text, True))
        yield


@pytest.fixture(scope='session', autouse=True)
def unsynced_files():
    """Nothing waits for the disk: only a power cut would show it, and runs write many files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: None)
        yield


@pytest.fixture(scope='session', autouse=True)
def one_look_at_the_machine():
    """Runs log what the compiler and the machine are; it is asked for once."""
    from mmengine.runner import runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'collect_env', functools.cache(runner.collect_env))
        yield


@pytest.fixture
def formatted_configs(monkeypatch):
    """Config texts as users see them."""
    monkeypatch.setattr(yapf_api, 'FormatCode', FORMAT_CODE)


#: What files that start processes import for it, and other files that take long.
STARTING = {'ForkedTool', 'forked_ranks', 'kill_held'}
SLOW = (
    'test_all_configs.py',
    'test_base_models.py',
    'test_commands.py',
    'test_dmt_protocols.py',
    'test_export_onnx.py',
    'test_packaging.py',
    'test_site.py',
    'test_tour.py',
    'test_unimatch_v2_converter.py',
)


def takes_long(item: pytest.Item) -> bool:
    """Whether the file of a test is one of the slow ones."""
    return item.path.name in SLOW or not STARTING.isdisjoint(vars(item.module))


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Leave tests that need a GPU out (not: skip them) where there is none; slow files first.

    So parallel workers, which take a file at a time, end together.
    """
    import torch

    torch.set_num_threads(1)
    items.sort(key=lambda item: not takes_long(item))
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker('gpu')]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker('gpu')]
