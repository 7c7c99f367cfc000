"""Saying which classes a network never predicts."""

import logging
from collections.abc import Sequence
from typing import Any, Dict, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor

from mmdmt.registry import HOOKS


@HOOKS.register_module()
class UnpredictedClassHook(Hook):
    """Names, in one line after each validation, the classes that no pixel was predicted to be.

    In the table of metrics such a class is only a row of zeros. Nothing is said where all classes
    are predicted, or of models that do not segment.
    """

    def __init__(self) -> None:
        self.counts: Optional[Tensor] = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the last validation."""
        self.counts = None

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count the pixels of each class."""
        for sample in outputs if isinstance(outputs, Sequence) else ():
            if 'pred_sem_seg' in sample:
                label = sample.pred_sem_seg.data.long().flatten()
                found = torch.bincount(label, minlength=256)[:256]
                self.counts = found if self.counts is None else self.counts + found

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Warn, on the first process, of classes without a pixel on any of them."""
        if self.counts is None:
            return
        counts = self.counts.clone()
        all_reduce(counts)
        classes = (getattr(runner.val_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        dead = [name for name, count in zip(classes or (), counts.tolist()) if count == 0]
        if dead:
            text = f'never predicted in this validation: {", ".join(map(str, dead))}'
            print_log(text, 'current', logging.WARNING)
