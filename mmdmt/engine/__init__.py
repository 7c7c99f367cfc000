"""What drives training: runners, hooks, checkpoints."""

from . import hooks, runners
from .cpu_amp_optim_wrapper import CPUAmpOptimWrapper
from .loops import NetworksTestLoop, NetworksValLoop

__all__ = ['CPUAmpOptimWrapper', 'NetworksTestLoop', 'NetworksValLoop', 'hooks', 'runners']
