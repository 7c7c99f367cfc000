"""Mixed precision on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from mmdmt.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass in bfloat16 on the CPU.

    mmengine's ``AmpOptimWrapper`` asserts a GPU. bfloat16 has the range of float32, so that no
    loss scaling is needed.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter gradient accumulation as usual, and bfloat16 autocast.

        Args:
            model: The model that runs inside the context.
        """
        with super().optim_context(model), autocast(device_type='cpu', dtype=torch.bfloat16):
            yield
