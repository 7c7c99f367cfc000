"""What drives training: runners, hooks, checkpoints."""

from mmdmt.engine import hooks, runners
from mmdmt.engine.cpu_amp_optim_wrapper import CPUAmpOptimWrapper
from mmdmt.engine.loops import NetworksTestLoop, NetworksValLoop

__all__ = ['CPUAmpOptimWrapper', 'NetworksTestLoop', 'NetworksValLoop', 'hooks', 'runners']
