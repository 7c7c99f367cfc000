"""Refusing to train on faulty data."""

import logging
import os.path as osp
from typing import Any, Union

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmdmt.datasets.checks.validation import DatasetError, check_dataset, raise_on_problems
from mmdmt.distributed import from_main
from mmdmt.registry import HOOKS

MODES = ('full', 'fast', 'off')


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Checks lists, images and masks before training and refuses to start if any is faulty.

    Finds what ``tools/misc/check_dataset.py`` finds and fails with the same message. Rank 0
    checks, every rank gets the error. Decoding everything takes about as long as reading every
    file once; for large data sets on several machines run the tool first with ``--cache``, since
    the other ranks' wait for rank 0 is limited by ``env_cfg.dist_cfg.timeout``.

    Args:
        mode (str): ``'full'`` decodes every image and mask of the training and validation sets;
            ``'fast'`` checks lists, existence and file headers only; ``'off'`` checks nothing.
            Defaults to ``'full'``.
        cache (bool | str): Remember sound files, so that a resumed run only looks whether they
            changed: in ``dataset_check.json`` of the work dir (True), or in the file named.
            Defaults to True.

    Raises:
        ValueError: If ``mode`` is none of the three.
    """

    # Before anything that uses the data, such as making pseudo-labels in the same hook point.
    priority = 'VERY_HIGH'

    def __init__(self, mode: str = 'full', cache: Union[bool, str] = True) -> None:
        if mode not in MODES:
            raise ValueError(f'DatasetCheckHook: mode={mode!r} is none of {", ".join(MODES)}')
        self.mode = mode
        self.cache = cache
        self._checked = False

    def before_loading(self, runner: Runner) -> None:
        """Check the configured data before ``SemiRunner`` builds the data sets.

        A missing list is thus reported as such, where building the data set would fail with
        another message or silently use the whole folder.

        Raises:
            DatasetError: On every rank, with a table of all problems, if there are any.
        """
        loaders = runner._train_dataloader, runner._val_dataloader
        self.check(*map(_dataset_of, loaders), runner.work_dir)
        self._checked = True

    def before_train(self, runner: Runner) -> None:
        """Check the built data sets under runners without ``before_loading``.

        Raises:
            DatasetError: As above.
        """
        if not self._checked:
            val_loop = getattr(runner, 'val_loop', None)
            val = None if val_loop is None else val_loop.dataloader.dataset
            self.check(runner.train_dataloader.dataset, val, runner.work_dir)

    def check(self, train: Any, val: Any, work_dir: str) -> None:
        """Check on rank 0 and raise on every rank.

        Args:
            train (BaseDataset | dict): Training set or its config.
            val (BaseDataset | dict, optional): Validation set or its config.
            work_dir (str): Where the cache lies by default.

        Raises:
            DatasetError: With a table of all problems, if there are any.
        """
        if self.mode == 'off':
            return
        raise_on_problems(from_main(lambda: self._find(train, val, work_dir)))

    def _find(self, train: Any, val: Any, work_dir: str) -> list:
        """Return the problems.

        Raises:
            DatasetError: If checking itself fails.
        """
        cache = osp.join(work_dir, 'dataset_check.json') if self.cache is True else self.cache
        try:
            problems = check_dataset(train, val, full=self.mode == 'full', cache_file=cache or None)
        except Exception as error:
            print_log('the data check itself failed', 'current', logging.ERROR)
            raise DatasetError(f'the data check failed: {type(error).__name__}: {error}') from error
        print_log(f'data check ({self.mode}): {len(problems)} problems', 'current')
        return problems


def _dataset_of(loader: Any) -> Any:
    """Data set of a loader, or of its config."""
    return loader.get('dataset') if isinstance(loader, dict) else getattr(loader, 'dataset', None)
