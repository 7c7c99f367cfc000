"""What a step of a method costs, in bare passes of images through one network."""

from typing import Any, NamedTuple, Optional

from mmengine.config import Config

from mmdmt.datasets.samplers.multi_source_sampler import split_batch
from mmdmt.registry import MODELS

BACKWARD = 2  # a backward pass takes as long as two forward passes

# (labeled, unlabeled) images of a step that go through a network with gradient, and without. What
# `tools/analysis_tools/benchmark_step.py` counts; docs/methods.md has the table.
_PASSES = {
    'MeanTeacher': ((1, 1), (0, 1)),
    'FixMatch': ((1, 1), (0, 1)),
    'CutMixSeg': ((1, 1), (0, 1)),
    'AugSeg': ((1, 1), (0, 1)),
    'UniMatchV2': ((1, 2), (0, 1)),
    'UniMatch': ((1, 3), (0, 1)),
    'U2PL': ((1, 1), (1, 2)),
    'DualTeacher': ((1, 2), (0, 1)),
    'CPS': ((2, 2), (0, 0)),
    'CrossTeacher': ((2, 2), (2, 2)),
}


class StepCost(NamedTuple):
    """Images through one network in a step of all students.

    Attributes:
        gradient: With forward, loss and backward.
        free: With a forward pass alone.
    """

    gradient: float
    free: float

    @property
    def passes(self) -> float:
        """In forward passes of one image."""
        return (1 + BACKWARD) * self.gradient + self.free


def step_cost(cfg: Config, passes: Optional[Any] = None) -> Optional[StepCost]:
    """Cost of a step of a resolved config; of mutual training of one step of every member.

    Passes over the unlabeled images that make labels between two stages are not in it.

    Args:
        cfg: The config.
        passes: ``((labeled, unlabeled) with gradient, (labeled, unlabeled) without)`` of a method
            that is not known here, as multiples of the images in a batch.

    Returns:
        StepCost: None if the method is not known and ``passes`` is not given.
    """
    batch = cfg.train_dataloader.batch_size
    if 'mutual' in cfg:
        return StepCost(batch * len(cfg.mutual.members), 0)
    known = passes or _known(cfg.model)
    if known is None:
        return None
    ratio = list((cfg.train_dataloader.get('sampler') or {}).get('source_ratio', [1]))
    labeled = split_batch(batch, ratio)[0]
    gradient, free = (part[0] * labeled + part[1] * (batch - labeled) for part in known)
    return StepCost(gradient, free)


def _known(model: dict) -> Optional[tuple]:
    if 'segmentor' not in model:  # a plain network
        return (1, 1), (0, 0)
    names = [kind.__name__ for kind in MODELS.get(str(model['type'])).__mro__]
    found = next((_PASSES[name] for name in names if name in _PASSES), None)
    if found is None:
        return None
    gradient, (labeled, unlabeled) = found
    if 'CPS' in names and model.get('mix'):
        unlabeled += 2  # labels are made on unmixed images
    if model.get('previous'):  # between one and `max_labelers` copies label besides
        unlabeled += (1 + model['previous'].get('max_labelers', 1)) / 2
    return gradient, (labeled, unlabeled)
