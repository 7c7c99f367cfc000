"""Logs how alike teachers and students are."""

from typing import Dict, List, Optional

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

    A teacher that has become its student's mirror repeats the student's errors. Every ``interval``
    iterations this hook compares them on the unlabeled images of the batch, all in eval mode on
    the weak view, and logs

    - ``coupling_distance``: relative distance of the parameters, ``|teacher - student| /
      |student|``,
    - ``coupling_disagreement``: share of pixels on which they predict different classes,

    as means over the teachers that follow a student in this step (of Dual Teacher, the one on
    duty); and, where there are several, ``<teacher>/distance`` and ``<teacher>/disagreement`` of
    each. It costs one prediction by each network, and changes nothing in training.

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
        self._following: List[str] = []

    def before_train(self, runner: Runner) -> None:
        """Check once that the model has teachers."""
        model = unwrap(runner.model)
        if not getattr(model, 'student_of', None):
            raise TypeError(
                'CouplingHook needs a model with teachers, such as mmdmt.MeanTeacher, got '
                f'{type(model).__name__}: remove the hook from `custom_hooks`'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Note which teachers follow; the model counts on before it is measured."""
        self._following = unwrap(runner.model).teachers_to_update()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Measure if it is time to."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        model = unwrap(runner.model)
        inputs = _unlabeled_inputs(model, data_batch)
        if inputs is not None:
            for name, value in _scalars(model, inputs, self._following).items():
                runner.message_hub.update_scalar(f'train/{name}', value.item())


def _unlabeled_inputs(model: torch.nn.Module, batch: dict) -> Optional[Dict[str, Tensor]]:
    """The preprocessed unlabeled images of a batch, which come last; None if it has none."""
    samples = batch['data_samples']
    labeled = sum('gt_sem_seg' in sample for sample in samples)
    if labeled == len(samples):
        return None
    data = dict(inputs=batch['inputs'][labeled:], data_samples=samples[labeled:])
    return model.data_preprocessor(data, training=True)['inputs']


def _scalars(
    model: torch.nn.Module, inputs: Dict[str, Tensor], following: List[str]
) -> Dict[str, Tensor]:
    found = coupling(model, inputs)
    scalars = {
        f'coupling_{kind}': torch.stack([found[name][kind] for name in following]).mean()
        for kind in ('distance', 'disagreement')
    }
    if len(found) > 1:
        for name, values in found.items():
            scalars.update({f'{name}/{kind}': value for kind, value in values.items()})
    return scalars
