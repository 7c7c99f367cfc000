"""Refusing to train a classifier on faulty lists or images."""

import logging
import os.path as osp
from typing import Any, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmdmt.classification.list_checks import check_classes, check_listed
from mmdmt.datasets.checks.problems import DatasetError, Problem, raise_on_problems
from mmdmt.engine.hooks.dataset_check_hook import DatasetCheckHook, _dataset_of
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class ListCheckHook(DatasetCheckHook):
    """Checks the lists, images and classes of ``mmdmt.ListedDataset`` before training.

    Refused are missing, empty or odd lists, names in both lists, training images that are
    validation images, (``mode='full'``) images that are missing or cannot be decoded, sets for
    training, validation and testing that do not number the same classes alike, and a head of
    another number of classes. A class without any labeled image is warned of. The table is that of
    :class:`DatasetCheckHook`, as are the arguments.

    Before testing, the classes of the test set are compared with those stored in the checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._test: Any = None
        self._num_classes: Optional[int] = None
        self._stored_classes: Tuple[str, ...] = ()

    def before_loading(self, runner: Runner) -> None:
        """Check all data sets and the head before the data sets are built.

        Raises:
            DatasetError: On every rank, with a table of all problems, if there are any.
        """
        self._test = _dataset_of(runner._test_dataloader)
        self._num_classes = _num_classes(runner.model)
        super().before_loading(runner)

    def before_train(self, runner: Runner) -> None:
        """Check the built data sets under runners without ``before_loading``.

        Raises:
            DatasetError: As above.
        """
        self._num_classes = _num_classes(runner.model)
        super().before_train(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the classes that the network in a checkpoint tells apart."""
        meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
        self._stored_classes = tuple(meta.get('classes') or ())

    def before_test(self, runner: Runner) -> None:
        """Refuse to test on classes that are not those of the checkpoint.

        Raises:
            DatasetError: If the test set has others, or in another order.
        """
        trained = not isinstance(runner._train_loop, (dict, type(None)))
        if self.mode == 'off' or trained or not self._stored_classes:
            return
        dataset = runner.test_loop.dataloader.dataset
        raise_on_problems(check_classes(dataset, self._stored_classes, 'the checkpoint'))

    def _find(self, train: Any, val: Any, work_dir: str) -> List[Problem]:
        """Return the problems.

        Raises:
            DatasetError: If checking itself fails.
        """
        cache = osp.join(work_dir, 'dataset_check.json') if self.cache is True else self.cache
        full = self.mode == 'full'
        try:
            problems = check_listed(train, val, full, cache or None, self._test, self._num_classes)
        except Exception as error:
            print_log('the data check itself failed', 'current', logging.ERROR)
            raise DatasetError(f'the data check failed: {type(error).__name__}: {error}') from error
        print_log(f'data check ({self.mode}): {len(problems)} problems', 'current')
        return problems


def _num_classes(model: Any) -> Optional[int]:
    """Number of classes of a classifier, None where it does not say."""
    model = model.module if is_model_wrapper(model) else model
    return getattr(getattr(model, 'head', None), 'num_classes', None)
