"""The averaged network of mmengine's ``EMAHook``, moved as the teachers of this package are."""

from typing import Any, Optional

import torch
from mmengine.model import BaseAveragedModel
from torch import nn

from mmdmt.models.teachers import EMAUpdater
from mmdmt.registry import MODELS


@MODELS.register_module()
class EMAModel(BaseAveragedModel):
    """Exponential moving average of a network, by :class:`~mmdmt.models.EMAUpdater`.

    For ``dict(type='EMAHook', ema_type='mmdmt.EMAModel')``: the hook validates the average, and
    stores it as the ``state_dict`` of a checkpoint and the last iterate as ``ema_state_dict``.

    The published classification code of DMT subtracts 0.999 times the difference, so that its
    average is nearly the last iterate: ``momentum=0.001, buffers='copy', warmup=False``.

    Args:
        model (nn.Module): The network to average.
        momentum (float): Weight of the old average, at most. Defaults to 0.999.
        buffers (str): 'ema' averages the statistics of batch norm too, 'copy' takes those of the
            network. Defaults to 'ema'.
        warmup (bool): Whether to start as a running mean. Defaults to True.
        device (torch.device, optional): Where to keep the average. Defaults to the network's.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.999,
        buffers: str = 'ema',
        warmup: bool = True,
        device: Optional[torch.device] = None,
    ) -> None:
        # `update_buffers` also tells the hook to swap buffers with the network's for validation.
        super().__init__(model, device=device, update_buffers=True)
        self.updater = EMAUpdater(momentum, buffers, warmup)
        self._step: Optional[int] = None

    def avg_func(self, *_: Any) -> None:
        """Not used: :meth:`update_parameters` moves all parameters at once."""
        raise NotImplementedError('EMAModel moves all parameters at once')

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards ``model``; the first call copies it."""
        if self._step is None:  # read back from the device once, also after resuming
            self._step = int(self.steps)
        self.updater.update(self.module, model, self._step)
        self._step += 1
        self.steps += 1

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._step = None
