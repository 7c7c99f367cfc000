"""What drives training: runners, hooks, checkpoints."""

from . import hooks, runners
from .checkpoint import register_safe_globals
from .cpu_amp_optim_wrapper import CPUAmpOptimWrapper

# Stock tools build a plain mmengine runner, which must be able to load our checkpoints.
register_safe_globals()

__all__ = ['CPUAmpOptimWrapper', 'hooks', 'runners']
