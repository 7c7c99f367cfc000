"""A work dir belongs to one run at a time."""

import contextlib
import os.path as osp
from collections.abc import Iterator

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmdmt.distributed import from_main
from mmdmt.files import hold, is_remote, remove_stale_temporaries

LOCK_NAME = '.run.lock'


@contextlib.contextmanager
def only_run(runner: Runner) -> Iterator[None]:
    """Keep the folders that a run writes to for its ranks; all ranks enter and leave together.

    Rank 0 holds the locks, which the system lets go of when the process dies: a launcher that is
    killed alone leaves ranks behind, and these still have their folders. What writers that were
    killed left there is removed.

    Raises:
        BusyError: On all ranks, if another run has a folder; it names that run's process.
    """
    with contextlib.ExitStack() as held:
        from_main(lambda: [_take(folder, held) for folder in _folders(runner)])
        yield


def _folders(runner: Runner) -> list[str]:
    """The work dir, and where the checkpoint hooks write if that is elsewhere, on this machine."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    parents = {hook.out_dir for hook in hooks} - {None, runner.work_dir}
    # mmengine appends the name of the work dir, too.
    name = osp.basename(runner.work_dir.rstrip(osp.sep))
    return [runner.work_dir, *sorted(osp.join(p, name) for p in parents if not is_remote(str(p)))]


def _take(folder: str, held: contextlib.ExitStack) -> None:
    advice = (
        'wait until it has ended, or end it (ranks whose launcher was killed go on), or name '
        'another folder with --work-dir'
    )
    held.enter_context(hold(osp.join(folder, LOCK_NAME), f'the folder {folder}', advice))
    for path in remove_stale_temporaries(folder):
        print_log(f'Removed {path}, left by a run that was killed.', 'current')
