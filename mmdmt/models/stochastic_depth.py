"""Sub-networks of a network by random skipping of its residual blocks."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, List

import torch
from torch import Tensor, nn

from mmdmt.checks import check_choice

RULES = ('linear', 'constant')
# How implementations mark that a block adds its input to its output: mmseg's, mmcv's and
# mmpretrain's inverted residuals; torchvision's; timm's.
_SHORTCUT_FLAGS = ('with_res_shortcut', 'use_res_connect', 'has_skip')


class StochasticDepth:
    """Draws sub-networks of a network, each without some of its residual blocks.

    Stochastic depth (Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016): a residual
    block ``x + f(x)`` is replaced by ``x`` for the whole batch. It works on networks that know
    nothing of it: blocks with an identity shortcut are found by what ResNets, MobileNets and their
    relatives have in common, and while a sub-network is in use the skipped ones pass their input
    through. Parameters, buffers, hooks and checkpoints are those of the full network; a skipped
    block costs nothing.

    Networks with active DropPath layers, as transformers have, skip their branches by themselves
    in every training pass. They are left as they are, and have no :attr:`blocks` here.

    Args:
        network (nn.Module): Any network. It is not changed outside of :meth:`sampled`.
        drop_rate (float): Probability of skipping, in [0, 1). Defaults to 0.1, the rate of the
            published transformers' DropPath.
        rule (str): 'linear' (default): from 0 at the first block to ``drop_rate`` at the last one,
            as published with stochastic depth and in transformers; 'constant': ``drop_rate``
            everywhere.
        block_types (Sequence[str]): Names of further classes with an identity shortcut, one input
            and an output like it. Defaults to none.

    Raises:
        ValueError: If a value is none of the above, or the network has no class of
            ``block_types``.
    """

    def __init__(
        self,
        network: nn.Module,
        drop_rate: float = 0.1,
        rule: str = 'linear',
        block_types: Sequence[str] = (),
    ) -> None:
        if not 0 <= drop_rate < 1:
            raise ValueError(f'StochasticDepth: drop_rate={drop_rate} is not in [0, 1)')
        check_choice('StochasticDepth.rule', rule, RULES)
        self.uses_drop_path = any(drop_paths(network))
        self.blocks = [] if self.uses_drop_path else residual_blocks(network, block_types)
        if drop_rate and not self.blocks and not self.uses_drop_path:
            warnings.warn(
                f'{type(network).__name__} has no residual block with an identity shortcut and no '
                'active DropPath: its only sub-model is itself. Name its blocks in '
                '`sub_model.block_types`, or set `sub_model=None`',
                stacklevel=2,
            )
        count = len(self.blocks)
        first = 0 if rule == 'linear' and count > 1 else drop_rate
        self.drop_probs = torch.linspace(first, drop_rate, count, device='cpu')

    def draw(self, step: int) -> List[nn.Module]:
        """Draw the :attr:`blocks` to skip in a step.

        The draw depends on the step alone and neither reads nor moves the global generators: all
        processes skip the same blocks. Synchronized batch norm needs that, whose reductions would
        not match otherwise.
        """
        generator = torch.Generator('cpu').manual_seed(step)
        uniform = torch.rand(len(self.blocks), generator=generator, device='cpu')
        skipped = (uniform < self.drop_probs).tolist()
        return [block for block, skip in zip(self.blocks, skipped) if skip]

    @contextmanager
    def sampled(self, step: int) -> Iterator[List[nn.Module]]:
        """Skip the blocks drawn for a step, which are yielded, inside the ``with`` block."""
        skipped = self.draw(step)
        for block in skipped:
            # An attribute of the instance hides the method of the class, and only that.
            block.forward = _pass_through
        try:
            yield skipped
        finally:
            for block in skipped:
                del block.forward


def _pass_through(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def residual_blocks(network: nn.Module, block_types: Sequence[str] = ()) -> List[nn.Module]:
    """Blocks of a network that add their input, unchanged, to their output; outermost only.

    They have the order of ``network.modules()``. Classes named in ``block_types`` count besides
    the known kinds.
    """
    found, inside = [], set()
    for module in network.modules():
        if module in inside:
            continue
        if has_identity_shortcut(module) or type(module).__name__ in block_types:
            found.append(module)
            inside.update(module.modules())
    missing = sorted(set(block_types) - {type(module).__name__ for module in network.modules()})
    if missing:
        raise ValueError(
            f'`block_types` names {missing}, but no module of {type(network).__name__} is of such '
            'a class; give the names of classes without their package'
        )
    return found


def has_identity_shortcut(module: nn.Module) -> bool:
    """Whether a module is a residual block whose shortcut changes nothing.

    True for ResNet blocks (``conv1``, ``conv2``, and a ``downsample`` that is None) and inverted
    residuals of mmseg, mmpretrain, torchvision and timm.
    """
    if any(getattr(module, flag, False) is True for flag in _SHORTCUT_FLAGS):
        return True
    is_resnet_block = all(hasattr(module, name) for name in ('conv1', 'conv2', 'downsample'))
    return is_resnet_block and module.downsample is None


def drop_paths(network: nn.Module) -> Iterator[nn.Module]:
    """The DropPath layers of a network that drop something, of whatever library they are."""
    for module in network.modules():
        if type(module).__name__ == 'DropPath' and getattr(module, 'drop_prob', 0):
            yield module


def disable_drop_path(network: nn.Module) -> nn.Module:
    """Let all DropPath layers of a network pass everything, and return the network."""
    for module in drop_paths(network):
        module.drop_prob = 0.0
    return network
