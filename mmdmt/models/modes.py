"""Modes, batch-norm statistics and gradients, for the time of a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def in_mode(network: nn.Module, training: bool, tracked: bool = False) -> Iterator[None]:
    """Put a network into training or eval mode inside the ``with`` block.

    Afterwards every module is in the mode it had. In training mode, running statistics of batch
    norm stay as they are, see :func:`untracked_statistics`, unless they are to be ``tracked``.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        with nullcontext() if tracked else untracked_statistics(network):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def untracked_statistics(network: nn.Module) -> Iterator[None]:
    """Normalize by batch statistics without moving the running ones, inside the ``with`` block.

    Concerns layers in training mode only; in eval mode the running statistics are what is used.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def without_gradient() -> Iterator[None]:
    """No gradients inside the ``with`` block, nor any lost behind it; also a decorator.

    Under autocast, torch 2.1 keeps the half-precision weights that a pass without gradients made
    for the next pass, from which no gradient then reaches the weights. They are forgotten here.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()
