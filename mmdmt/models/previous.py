"""Students of earlier in the run as further labelers (PrevMatch)."""

from collections.abc import Sequence
from typing import Any, Dict, List, Tuple, Union

import torch
from mmengine.dist import broadcast
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn
from torch.func import functional_call

from mmdmt.checks import check_choice, check_count, check_range
from mmdmt.models.forward import Targets, dense_logits, hard_labels
from mmdmt.models.modes import in_mode

DEVICES = ('cpu', 'model')


class PreviousStudents(nn.Module):
    """The last copies of a student, some of which label together in each step (PrevMatch).

    Shin et al., "Revisiting and Maximizing Temporal Knowledge in Semi-supervised Semantic
    Segmentation", 2024. Of the copies, 1 to ``max_labelers`` are chosen; their logits, in eval
    mode, are added with random weights that sum to 1, from a flat Dirichlet distribution.

    A copy is one row with the parameters and floating-point buffers of the student, which is put
    into the student for a pass: no second network is held. Rows are no buffers, so that they stay
    on their device and outside of what DDP exchanges; they are in the state dict, as many as there
    are. What is drawn is the same on all ranks.

    Args:
        every (int | str): Iterations between two copies; 'epoch', those of a pass over the
            unlabeled images; or 'best', a copy whenever a validation is the best so far (as
            published, which lets validation labels choose). Defaults to 'epoch'.
        keep (int): Largest number of copies; the oldest goes first. Defaults to 8.
        max_labelers (int): Largest number that labels in a step. Defaults to 3.
        skip (int): Iterations at the start of the run without copies. Defaults to 0.
        threshold (float): Confidence a pixel needs, in [0, 1]. Defaults to 0.9.
        metric (str): Metric that is compared for 'best'; larger is better. Defaults to 'mIoU'.
        device (str): Where copies are kept: 'cpu', from where the chosen ones are fetched in each
            step, or 'model', the memory of the GPU. Defaults to 'cpu'.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        every: Union[int, str] = 'epoch',
        keep: int = 8,
        max_labelers: int = 3,
        skip: int = 0,
        threshold: float = 0.9,
        metric: str = 'mIoU',
        device: str = 'cpu',
    ) -> None:
        super().__init__()
        if every not in ('epoch', 'best'):
            check_count("previous.every, if not 'epoch' or 'best',", every, 1)
        check_count('previous.keep', keep, 1)
        check_count('previous.max_labelers', max_labelers, 1)
        check_count('previous.skip', skip, 0)
        check_range('previous.threshold', threshold, 0, 1)
        check_choice('previous.device', device, DEVICES)
        self.every, self.keep, self.max_labelers, self.skip = every, keep, max_labelers, skip
        self.threshold, self.metric, self.device = threshold, metric, device
        # (n, numbers of the student), the oldest first.
        self.copies = torch.zeros(0, 0, device='cpu')
        self.best = float('-inf')

    def __len__(self) -> int:
        """Number of copies."""
        return len(self.copies)

    def is_due(self, step: int, pass_iters: Sequence[int]) -> bool:
        """Whether a copy is to be taken after ``step`` iterations; ``pass_iters`` by source."""
        if self.every == 'best' or step < self.skip:
            return False
        if self.every != 'epoch':
            return step % self.every == 0
        if len(pass_iters) < 2:
            raise ValueError(
                "`previous.every` is 'epoch', but the sampler has no passes: give a number of "
                'iterations'
            )
        return step % pass_iters[1] == 0

    def is_best(self, step: int, metrics: Dict[str, Any]) -> bool:
        """Whether the metrics of a validation after ``step`` iterations ask for a copy."""
        if self.every != 'best' or step < self.skip:
            return False
        if self.metric not in metrics:
            raise ValueError(
                f'`previous.metric` is {self.metric!r}, but the validation has {sorted(metrics)}'
            )
        value = float(metrics[self.metric])
        better = value > self.best
        self.best = value if better else self.best
        return better

    @torch.no_grad()
    def take(self, student: nn.Module) -> None:
        """Copy the student; all ranks call it together and get the copy of rank 0."""
        row = torch.cat([value.detach().float().flatten() for value in _numbers(student).values()])
        # Running statistics may differ between ranks.
        broadcast(row, src=0)
        row = row if self.device == 'model' else row.cpu()
        rows = [self.copies.to(row), row[None]] if len(self) else [row[None]]
        self.copies = torch.cat(rows)[-self.keep :]

    @torch.no_grad()
    def label(self, student: BaseSegmentor, images: Tensor, valid: Tensor, step: int) -> Targets:
        """What some of the copies label on images (N, 3, H, W); there must be a copy.

        ``student`` lends its layers, ``step`` seeds the draws.
        """
        chosen, weights = self.draw(step)
        logits: Any = 0
        with in_mode(student, training=False):
            for index, weight in zip(chosen, weights):
                logits = logits + weight * self._logits(index, student, images).float()
        return hard_labels(logits, valid)

    def draw(self, step: int) -> Tuple[List[int], List[float]]:
        """Indices of the copies that label, and their weights: lists of the same length."""
        generator = torch.Generator(device='cpu').manual_seed(step)
        limit = self.max_labelers + 1
        count = int(torch.randint(1, limit, (1,), generator=generator, device='cpu'))
        chosen = torch.randperm(len(self), generator=generator, device='cpu')[:count].tolist()
        # Exponential numbers over their sum have a flat Dirichlet distribution.
        shares = torch.empty(len(chosen), device='cpu').exponential_(generator=generator)
        return chosen, (shares / shares.sum()).tolist()

    def _logits(self, index: int, student: BaseSegmentor, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of a copy."""
        if self.device == 'model' and self.copies.device != images.device:
            self.copies = self.copies.to(images.device)
        row = self.copies[index].to(images.device, non_blocking=True)
        numbers = _numbers(student)
        parts = row.split([value.numel() for value in numbers.values()])
        state = {
            f'segmentor.{name}': part.view(value.shape).to(value.dtype)
            for (name, value), part in zip(numbers.items(), parts)
        }
        return functional_call(_Dense(student), state, (images,))

    def _save_to_state_dict(self, destination: dict, prefix: str, *_: Any) -> None:
        destination[f'{prefix}copies'] = self.copies
        # Before the first validation there is no best; checkpoints have to be finite.
        found = [self.best] if self.best > float('-inf') else []
        destination[f'{prefix}best'] = torch.tensor(found, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, _metadata: dict, _strict: bool, missing: list, *_: Any
    ) -> None:
        """Take over the copies of a checkpoint, however many it has."""
        for name in ('copies', 'best'):
            if f'{prefix}{name}' not in state_dict:
                missing.append(f'{prefix}{name}')
                return
        self.copies = state_dict[f'{prefix}copies'].detach().clone()[-self.keep :]
        self.best = max([float('-inf'), *state_dict[f'{prefix}best'].tolist()])


class _Dense(nn.Module):
    """A segmentor whose forward gives dense logits."""

    def __init__(self, segmentor: BaseSegmentor) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor) -> Tensor:
        return dense_logits(self.segmentor, images)


def _numbers(module: nn.Module) -> Dict[str, Tensor]:
    """Parameters and buffers of a network that hold floating-point numbers, in order."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value for name, value in named if value.is_floating_point()}
