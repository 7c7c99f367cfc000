"""Refusing to train on faulty data."""

import logging
import os.path as osp
from typing import Any, List, Optional, Tuple, Union

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmdmt.checks import check_choice
from mmdmt.datasets.checks.classes import other_classes
from mmdmt.datasets.checks.problems import DatasetError, Problem, raise_on_problems
from mmdmt.datasets.checks.sources import read_sources
from mmdmt.datasets.checks.validation import check_dataset
from mmdmt.distributed import from_main, unwrap
from mmdmt.engine.run_settings import dataset_of
from mmdmt.registry import HOOKS

MODES = ('full', 'fast', 'off')


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Checks lists, images, masks and classes before training; refuses to start if any is faulty.

    Finds what ``tools/misc/check_dataset.py`` finds and fails with the same message, on every
    rank; rank 0 checks. Decoding everything takes about as long as reading every file once; for
    large datasets on several machines run the tool first with ``--cache``, since the other ranks'
    wait for rank 0 is limited by ``env_cfg.dist_cfg.timeout``.

    In classification, sets that do not number the same classes alike, a head of another number of
    classes, and testing on other classes than the checkpoint's are refused as well.

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
        check_choice('DatasetCheckHook.mode', mode, MODES)
        self.mode = mode
        self.cache = cache
        self._checked = False
        self._stored_classes: Tuple[str, ...] = ()

    def before_loading(self, runner: Runner) -> None:
        """Check the configured data before ``SemiRunner`` builds the datasets.

        Building a dataset without its list would fail with another message, or silently use the
        whole folder.

        Raises:
            DatasetError: As :meth:`check`.
        """
        loaders = runner._train_dataloader, runner._val_dataloader, runner._test_dataloader
        train, val, test = map(dataset_of, loaders)
        num_classes = _num_classes(runner.model) or _decode_classes(runner.model)
        self.check(train, val, runner.work_dir, test=test, num_classes=num_classes)
        self._checked = True

    def before_train(self, runner: Runner) -> None:
        """Check the built data under runners without ``before_loading``, with the same error."""
        if not self._checked:
            val = None if runner.val_loop is None else runner.val_loop.dataloader.dataset
            train = runner.train_dataloader.dataset
            num_classes = _num_classes(runner.model) or _decode_classes(runner.model)
            self.check(train, val, runner.work_dir, num_classes=num_classes)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the classes of the network in the checkpoint."""
        meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
        self._stored_classes = tuple(meta.get('classes') or ())

    def before_test(self, runner: Runner) -> None:
        """Refuse to test a classifier on other classes than its checkpoint's, or reordered."""
        trained = not isinstance(runner._train_loop, (dict, type(None)))
        classifier = _num_classes(runner.model) is not None
        if classifier and self._stored_classes and not trained and self.mode != 'off':
            test = read_sources(runner.test_loop.dataloader.dataset, [])
            raise_on_problems(other_classes(test, self._stored_classes, 'the checkpoint'))

    def check(self, train: Any, val: Any, work_dir: str, **options: Any) -> None:
        """Check datasets or their configs on rank 0; ``options`` are of :func:`check_dataset`.

        Raises:
            DatasetError: On every rank, with a table of all problems, if there are any.
        """
        if self.mode == 'off':
            return
        own = osp.join(work_dir, 'dataset_check.json')
        options['cache_file'] = own if self.cache is True else self.cache or None
        options['full'] = self.mode == 'full'
        problems = from_main(lambda: _find_problems(train, val, options))
        print_log(f'data check ({self.mode}): {len(problems)} problems', 'current')
        raise_on_problems(problems)


def _find_problems(train: Any, val: Any, options: dict) -> List[Problem]:
    try:
        return check_dataset(train, val, **options)
    except Exception as error:
        print_log('the data check itself failed', 'current', logging.ERROR)
        raise DatasetError(f'the data check failed: {type(error).__name__}: {error}') from error


def _num_classes(model: Any) -> Optional[int]:
    """Number of classes of a classifier; None for a segmentor."""
    return getattr(getattr(unwrap(model), 'head', None), 'num_classes', None)


def _decode_classes(model: Any) -> Optional[int]:
    """Number of classes of a segmentor; None if its decode head does not say."""
    head = getattr(unwrap(model), 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return getattr(head, 'num_classes', None)
