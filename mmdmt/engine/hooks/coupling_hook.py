"""Logs how alike teachers and students are."""

from typing import Any, Dict, List

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmdmt.checks import check_range
from mmdmt.distributed import unwrap
from mmdmt.models.coupling import coupling
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class CouplingHook(Hook):
    """Logs the coupling of teachers and students, of any online method, now and then.

    A teacher that has become nearly a copy of its student repeats the student's errors. Every
    ``interval`` iterations this hook compares them on the unlabeled images of the batch, all in
    eval mode on the weak view, and logs

    - ``coupling_distance``: relative distance of the parameters, ``|teacher - student| /
      |student|``,
    - ``coupling_disagreement``: share of pixels on which they predict different classes,

    as means over the teachers that follow a student in this step (of Dual Teacher, the one on
    duty); and, where there are several, ``<teacher>/distance`` and ``<teacher>/disagreement`` of
    each. It costs one prediction by each network, and changes nothing in training. Models without
    teachers are left alone.

    Args:
        interval (int): Iterations between measurements. Defaults to 50, as the logger's.

    Raises:
        ValueError: If ``interval`` is not positive.
    """

    # After the teachers have moved (50), before the logger writes (60).
    priority = 55

    def __init__(self, interval: int = 50) -> None:
        check_range('CouplingHook.interval', interval, 1)
        self.interval = interval
        self.following: List[str] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict) -> None:
        """Note which teachers follow in this step; after it, it can be the turn of others."""
        model = unwrap(runner.model)
        self.following = model.teachers_to_update() if hasattr(model, 'student_of') else []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, **_: Any) -> None:
        """Measure if it is time to."""
        if not self.following or not self.every_n_train_iters(runner, self.interval):
            return
        model = unwrap(runner.model)
        pairs = zip(data_batch['inputs'], data_batch['data_samples'])
        unlabeled = [pair for pair in pairs if 'gt_sem_seg' not in pair[1]]
        if not unlabeled:
            return
        images, samples = map(list, zip(*unlabeled))
        data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
        for name, value in self._scalars(coupling(model, data['inputs'])).items():
            runner.message_hub.update_scalar(f'train/{name}', value.item())

    def _scalars(self, found: Dict[str, Dict[str, Tensor]]) -> Dict[str, Tensor]:
        """Means over the following teachers and, of several, the values of each."""
        scalars = {
            f'coupling_{kind}': torch.stack([found[name][kind] for name in self.following]).mean()
            for kind in ('distance', 'disagreement')
        }
        if len(found) > 1:
            for name, values in found.items():
                scalars.update({f'{name}/{kind}': value for kind, value in values.items()})
        return scalars
