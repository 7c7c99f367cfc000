"""How uncertain predictions are, and what share of the pixels is more certain than that."""

from collections.abc import Sequence
from typing import List

import torch
from torch import Tensor


@torch.no_grad()
def pixel_entropy(logits: Tensor) -> Tensor:
    """Entropy (N, *) in nats of the softmax of logits (N, C, *), in float32 or better."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_prob = logits.log_softmax(dim=1)
    return -(log_prob.exp() * log_prob).sum(dim=1)


@torch.no_grad()
def masked_quantiles(values: Tensor, mask: Tensor, shares: Sequence[float]) -> List[Tensor]:
    """Quantiles, as scalars, of the values on which a mask of the same shape is True.

    Interpolated linearly, as ``numpy.percentile`` does. One sort for all of them: it takes any
    number of values, where ``torch.quantile`` takes 16 million, and nothing waits for the device.
    Where the mask is False everywhere, the results mean nothing.
    """
    ordered = values.masked_fill(~mask, float('inf')).flatten().sort().values
    last = (mask.sum() - 1).clamp(min=0)
    place = torch.stack([last * share for share in shares])
    # A scalar as index would be read back to the host.
    low, high = (ordered.gather(0, each.long()) for each in (place.floor(), place.ceil()))
    return list(low.lerp(high, place.frac().to(ordered)))
