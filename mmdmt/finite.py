"""NaN and infinity go no further: finding them with one look at the device, and naming them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, List, Tuple

import torch
from torch import Tensor

from mmdmt.checks import listed


class NonFiniteError(RuntimeError):
    """A loss, a weight or a prediction is NaN or infinite."""


def non_finite(values: Any) -> List[str]:
    """Names of the tensors that hold NaN or infinity, in order.

    The host waits once for each device and type of number if all is sound; no tensor is copied.

    Args:
        values: Tensors in nested dicts and lists, such as a state dict or the losses of some
            steps. All but floating-point tensors are passed over.

    Returns:
        Keys and positions joined by dots: ``'state.0.exp_avg'``.
    """
    groups = defaultdict(list)
    named = list(_float_tensors(values))
    for position, (_, tensor) in enumerate(named):
        groups[tensor.device, tensor.dtype].append(position)
    suspects: List[int] = []
    for positions in groups.values():
        norms = torch._foreach_norm([named[index][1] for index in positions])
        finite = torch.stack(norms).isfinite().tolist()
        suspects += [index for index, sound in zip(positions, finite) if not sound]
    # The square of a large finite weight overflows, too.
    return [
        name
        for name, tensor in (named[index] for index in sorted(suspects))
        if not tensor.isfinite().all()
    ]


def refuse_non_finite(values: Any, origin: str) -> None:
    """Refuse weights with NaN or infinity, such as those of a run that has diverged.

    Args:
        values: As of :func:`non_finite`.
        origin: Where they come from, such as the path of the checkpoint.

    Raises:
        NonFiniteError: With the origin and the first bad tensors.
    """
    bad = non_finite(values)
    if bad:
        raise NonFiniteError(
            f'{origin} holds NaN or infinity in {len(bad)} tensors: {listed(bad, 3)}. The training '
            'that made it has diverged: use a checkpoint from before, or train again with a lower '
            'learning rate'
        )


def _float_tensors(values: Any, name: str = '') -> Iterator[Tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        if values.is_floating_point() and values.numel():
            yield name, values.detach()
    elif isinstance(values, (Mapping, list, tuple)):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in pairs:
            yield from _float_tensors(value, f'{name}.{key}' if name else str(key))
