"""Exponential-moving-average (EMA) teachers."""

from typing import List

import torch
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range

BUFFER_RULES = ('ema', 'copy', 'keep')
MODES = ('eval', 'train')


class EMAUpdater:
    """Moves a teacher towards its student after an optimizer step.

    The teacher's parameters become ``a * teacher + (1 - a) * student`` with
    ``a = min(1 - 1 / (step + 1), momentum)``: a running mean that turns into an exponential one, so
    that the student's random start is forgotten (Tarvainen and Valpola, "Mean teachers are better
    role models", NeurIPS 2017, and the warm-up of their released code). At step 0 the teacher
    becomes the student. All parameters are moved by one fused operation.

    Integer buffers (``num_batches_tracked``, index tables) are always copied: averaging them in
    floating point and truncating back would damage them.

    Args:
        momentum (float): Upper bound of ``a``, in [0, 1]. Defaults to 0.99.
        buffers (str): What happens to floating-point buffers, i.e. the running statistics of
            batch norm: 'ema' averages them as the parameters, 'copy' takes the student's, 'keep'
            leaves them alone (only right for a teacher that runs in train mode and so collects
            its own). Defaults to 'ema'.
        warmup (bool): Whether ``a`` starts at 0 as above; otherwise it is ``momentum`` from the
            first step on. Defaults to True.
        mode (str): Mode of a teacher while it labels: 'eval' (default), or 'train' for batch
            statistics and dropout.

    Raises:
        ValueError: If a value is out of range or unknown.
    """

    def __init__(
        self,
        momentum: float = 0.99,
        buffers: str = 'ema',
        warmup: bool = True,
        mode: str = 'eval',
    ) -> None:
        check_range('ema.momentum', momentum, 0, 1)
        check_choice('ema.buffers', buffers, BUFFER_RULES)
        check_choice('ema.mode', mode, MODES)
        self.momentum = momentum
        self.buffers = buffers
        self.warmup = warmup
        self.mode = mode

    def momentum_at(self, step: int) -> float:
        """Weight of the old teacher in the update number ``step`` (counted from 0)."""
        return min(1 - 1 / (step + 1), self.momentum) if self.warmup else self.momentum

    @torch.no_grad()
    def update(self, teacher: nn.Module, student: nn.Module, step: int) -> None:
        """Move ``teacher`` towards ``student``, a network like it, in place.

        ``step`` is the number of updates this teacher has had before.
        """
        momentum = self.momentum_at(step)
        _lerp(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
        floats, others = _split_buffers(teacher, student)
        if self.buffers == 'ema':
            _lerp(*floats, 1 - momentum)
        elif self.buffers == 'copy':
            _copy(*floats)
        _copy(*others)


def _split_buffers(teacher: nn.Module, student: nn.Module):
    """Pairs of (teacher, student) buffer lists: floating-point ones, and all others."""
    floats, others = ([], []), ([], [])
    for target, source in zip(teacher.buffers(), student.buffers()):
        kind = floats if target.is_floating_point() else others
        kind[0].append(target)
        kind[1].append(source)
    return floats, others


def _lerp(targets: List[Tensor], sources: List[Tensor], weight: float) -> None:
    if not targets:
        return
    if weight == 1:  # exact, where the interpolation formula could round
        _copy(targets, sources)
    else:
        torch._foreach_lerp_(targets, [source.detach() for source in sources], weight)


def _copy(targets: List[Tensor], sources: List[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, [source.detach() for source in sources])
