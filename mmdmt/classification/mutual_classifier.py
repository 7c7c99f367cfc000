"""Dynamic mutual training for image classification."""

import contextlib
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor

from mmdmt.models.losses.functional import mixup_loss, mixup_weights, sigmoid_ramp
from mmdmt.models.modes import untracked_statistics, without_gradient
from mmdmt.registry import MODELS


class Mix(NamedTuple):
    """A draw of mixup: sample i becomes ``lam x_i + (1 - lam) x_perm(i)``.

    Attributes:
        lam (float): Share of the sample itself, in [0.5, 1].
        perm (Tensor): Partners, (N,) long.
    """

    lam: float
    perm: Tensor


@MODELS.register_module()
class MutualClassifier(ImageClassifier):
    r"""An ordinary image classifier that learns from labels and weighted soft pseudo-labels.

    Feng et al., "DMT: Dynamic mutual training for semi-supervised learning", Pattern Recognition
    2022, for classification. A step:

    1. Weights: the network sees the images of the batch, without gradient. With the stored label
       :math:`y`, its confidence :math:`c` and the softmax :math:`p` of the network, a
       pseudo-labeled image has the weight :math:`p_y^{\gamma_1}` where the network agrees,
       :math:`p_y^{\gamma_2}` where it does not and the label is more confident, and 0 where the
       network is more confident; a labeled image has the weight 1.
    2. Mixup: one :math:`\lambda` of a Beta distribution for the batch, replaced by
       :math:`\max(\lambda, 1 - \lambda)`, mixes images and weights.
    3. Loss: :math:`\frac{1}{N} \sum_i w_i (\lambda\,CE(p_i, y_i) +
       (1 - \lambda)\,CE(p_i, y_{\pi(i)}))`.

    The gammas rise over the schedule by :func:`~mmdmt.models.losses.functional.sigmoid_ramp`, but
    are full in the first step, as published.
    With both at 0 all weights are 1 and step 1 is left out (but for the statistics of
    ``update_bn_twice``): curriculum labeling, or labeled-only training. Samples with a
    ``soft_label`` are the pseudo-labeled ones, see :class:`~mmdmt.classification.ListedDataset`.

    Weights of a checkpoint have the names of an ``ImageClassifier``.

    Args:
        gamma1 (float): Exponent where network and label agree. Defaults to 0.
        gamma2 (float): Exponent where they disagree and the label is more confident. Defaults to 0.
        ramp (bool): Whether the gammas rise over the schedule. Defaults to True, as published.
        mixup_alpha (float): Both parameters of the Beta distribution; 0 switches mixup off.
            Defaults to 0.75, as published.
        update_bn_twice (bool): Whether the forward of step 1 updates the running statistics of
            batch norm too, as published. Defaults to False: they only see the mixed images.
        **kwargs: Of mmpretrain's ``ImageClassifier``: ``backbone``, ``neck``, ``head``, ...

    Raises:
        ValueError: If a gamma or ``mixup_alpha`` is negative, or for batch augmentations
            (``train_cfg.augments``) and losses (``head.loss``) of mmpretrain, which are not used.
    """

    def __init__(
        self,
        gamma1: float = 0.0,
        gamma2: float = 0.0,
        ramp: bool = True,
        mixup_alpha: float = 0.75,
        update_bn_twice: bool = False,
        **kwargs,
    ) -> None:
        _refuse_what_is_not_used(kwargs)
        super().__init__(**kwargs)
        for name, value in dict(gamma1=gamma1, gamma2=gamma2, mixup_alpha=mixup_alpha).items():
            if value < 0:
                raise ValueError(f'`{name}` must not be negative, got {value}')
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.ramp = ramp
        self.mixup_alpha = mixup_alpha
        self.update_bn_twice = update_bn_twice

    def loss(self, inputs: Tensor, data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """Loss of a batch.

        Args:
            inputs (Tensor): Normalized images, (N, 3, H, W).
            data_samples (list[DataSample]): ``gt_label`` of labeled images, and ``soft_label``,
                class probabilities (C,), of pseudo-labeled ones.

        Returns:
            dict[str, Tensor]: ``loss``; where gammas are on, ``pseudo_disagreement`` and
            ``pseudo_student_wins`` (shares of the pseudo-labeled images), ``mean_weight`` and
            ``gamma_ramp``.
        """
        soft_label, is_pseudo = self._targets(data_samples, inputs.device)
        mix = self._draw_mix(len(inputs), inputs.device)
        weight, stats = self._weights(inputs, soft_label, is_pseudo, mix)
        mixed = mix.lam * inputs + (1 - mix.lam) * inputs[mix.perm]
        loss = mixup_loss(self._logits(mixed), soft_label, mix.perm, mix.lam, weight)
        return dict(loss=loss, **stats)

    # ------------------------------------------------------------------ parts

    def _logits(self, images: Tensor) -> Tensor:
        """Class scores (N, C)."""
        return self.head(self.extract_feat(images))

    def _targets(
        self, data_samples: List[DataSample], device: torch.device
    ) -> Tuple[Tensor, Tensor]:
        """Class probabilities (N, C), one-hot where labeled, and which are pseudo-labels (N,)."""
        classes = self.head.num_classes
        nothing = np.zeros(classes, np.float32)
        stored = [sample.get('soft_label') for sample in data_samples]
        flags = [value is not None for value in stored]
        stored = [nothing if value is None else value for value in stored]
        # Filled on the host: assigning to a mask of rows would wait for the device.
        soft_label = torch.from_numpy(np.stack(stored)).to(device, non_blocking=True)
        is_pseudo = torch.tensor(flags).to(device, non_blocking=True)
        labels = torch.cat([sample.gt_label for sample in data_samples])
        labels = labels.to(device, non_blocking=True)
        one_hot = F.one_hot(labels.long(), classes).to(soft_label)
        return torch.where(is_pseudo[:, None], soft_label, one_hot), is_pseudo

    def _draw_mix(self, count: int, device: torch.device) -> Mix:
        """One mixup draw for a batch."""
        if not self.mixup_alpha:
            return Mix(1.0, torch.arange(count, device=device))
        lam = float(np.random.beta(self.mixup_alpha, self.mixup_alpha))
        return Mix(max(lam, 1 - lam), torch.randperm(count, device=device))

    def _weights(
        self, inputs: Tensor, soft_label: Tensor, is_pseudo: Tensor, mix: Mix
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Mixed weights (N,) and what is logged about them."""
        weighted = self.gamma1 or self.gamma2
        if weighted or self.update_bn_twice:
            keep = contextlib.nullcontext() if self.update_bn_twice else untracked_statistics(self)
            with without_gradient(), keep:
                logits = self._logits(inputs)
        if not weighted:
            return soft_label.new_ones(len(soft_label)), {}
        ramp = self._ramp()
        weight, stats = mixup_weights(
            logits, soft_label, is_pseudo, ramp * self.gamma1, ramp * self.gamma2, mix.perm, mix.lam
        )
        pseudo = is_pseudo.sum().clamp(min=1)
        return weight, dict(
            pseudo_disagreement=stats['disagreement'] / pseudo,
            pseudo_student_wins=stats['student_wins'] / pseudo,
            mean_weight=stats['mean_weight'],
            gamma_ramp=soft_label.new_full((), ramp),
        )

    def _ramp(self) -> float:
        """Factor of the gammas at the present iteration of the running training loop."""
        hub = MessageHub.get_current_instance()
        total = hub.get_info('max_iters')
        if not self.ramp or total is None:
            return 1.0
        return sigmoid_ramp(hub.get_info('iter', 0), total)


def _refuse_what_is_not_used(settings: dict) -> None:
    """Refuse settings of an ``ImageClassifier`` that would be ignored, or mix images twice."""
    preprocessor = settings.get('data_preprocessor')
    preprocessor = preprocessor if isinstance(preprocessor, dict) else {}
    places = {
        'train_cfg': settings.get('train_cfg'),
        'data_preprocessor.batch_augments': preprocessor.get('batch_augments'),
    }
    for name, augments in places.items():
        if augments:
            raise ValueError(
                f'`model.{name}`={augments} is not for MutualClassifier, which mixes images and '
                'weights by itself: take it out and set `model.mixup_alpha` (0 for no mixup)'
            )
    head = settings.get('head')
    loss = dict(head.get('loss') or {}) if isinstance(head, dict) else {}
    kind = str(loss.pop('type', 'CrossEntropyLoss')).split('.')[-1]
    if kind != 'CrossEntropyLoss' or loss.pop('loss_weight', 1.0) != 1.0 or any(loss.values()):
        raise ValueError(
            f'`model.head.loss`={head["loss"]} is not for MutualClassifier, whose loss is the '
            'weighted cross entropy of DMT: take it out'
        )
