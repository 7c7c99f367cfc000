"""What drives training: runners, hooks, checkpoints."""

from . import hooks, runners
from .cpu_amp_optim_wrapper import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper', 'hooks', 'runners']
