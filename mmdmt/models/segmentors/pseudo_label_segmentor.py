"""The segmentor of off-line methods: ground truth and stored pseudo-labels in one batch."""

from typing import Dict, List

import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor

from mmdmt.registry import MODELS

from .forward import auxiliary_heads, stack_pixel_data


@MODELS.register_module()
class PseudoLabelSegmentor(EncoderDecoder):
    """An ``EncoderDecoder`` whose loss weighs pseudo-labeled pixels.

    Networks, keys and predictions are those of mmseg's ``EncoderDecoder``, so that its checkpoint
    is an ordinary one. In training, samples made by ``mmdmt.LoadPseudoLabels`` carry a stored
    label, its confidence, and ``is_pseudo=True``; ``pseudo_loss`` takes the whole batch at once
    (DMT normalizes labeled and pseudo-labeled pixels together). Auxiliary heads get the same loss
    times their own ``loss_weight``.

    Args:
        pseudo_loss (dict): Config of a loss with the signature of
            :class:`~mmdmt.models.losses.DynamicMutualLoss`.
        ignore_index (int): Label that is not learnt. Defaults to 255.
        **kwargs: Arguments of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If a head is no dense classifier over softmax channels, or has a pixel sampler,
            which the joint loss could not honor.
    """

    def __init__(self, *args, pseudo_loss: dict, ignore_index: int = 255, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.pseudo_loss = MODELS.build(pseudo_loss)
        self.ignore_index = ignore_index
        for head in [self.decode_head, *auxiliary_heads(self)]:
            if head.out_channels == 1 or getattr(head, 'sampler', None) is not None:
                raise ValueError(
                    f'{type(head).__name__} has out_channels={head.out_channels} and '
                    f'sampler={head.sampler}: PseudoLabelSegmentor needs at least two output '
                    'channels and no pixel sampler'
                )

    def loss(self, inputs: Tensor, data_samples: List[SegDataSample]) -> Dict[str, Tensor]:
        """Losses of a batch of labeled and pseudo-labeled images.

        Args:
            inputs (Tensor): Normalized images, (N, 3, H, W).
            data_samples (list[SegDataSample]): ``gt_sem_seg`` of all samples;
                ``pseudo_confidence`` and ``is_pseudo`` of the pseudo-labeled ones.

        Returns:
            dict[str, Tensor]: ``decode.loss_pseudo``, ``aux_<i>.loss_pseudo``, and the health of
            the method: ``pseudo_keep_ratio``, ``pseudo_disagreement``, ``pseudo_student_wins``
            (shares of the kept pseudo-labeled pixels), ``mean_weight``.
        """
        feats = self.extract_feat(inputs)
        targets = self._targets(data_samples, inputs)
        loss, stats = self._head_loss(self.decode_head, feats, *targets)
        losses = {'decode.loss_pseudo': loss, **self._health(stats, targets[0], targets[2])}
        for index, head in enumerate(auxiliary_heads(self)):
            aux, _ = self._head_loss(head, feats, *targets)
            weight = getattr(head.loss_decode, 'loss_weight', 1.0)
            losses[f'aux_{index}.loss_pseudo'] = aux * weight
        return losses

    def _targets(self, samples: List[SegDataSample], inputs: Tensor):
        """Label (N, H, W), confidence (N, H, W) and is_pseudo (N,) of a batch."""
        label = stack_pixel_data(samples, 'gt_sem_seg')
        is_pseudo = torch.tensor(
            [bool(sample.metainfo.get('is_pseudo', False)) for sample in samples]
        ).to(inputs.device, non_blocking=True)
        certain = torch.ones_like(label[0], dtype=torch.float32)
        confidence = torch.stack([_confidence(sample, certain) for sample in samples])
        return label, confidence, is_pseudo

    def _head_loss(self, head, feats, label, confidence, is_pseudo):
        logits = resize(
            head(feats), size=label.shape[1:], mode='bilinear', align_corners=self.align_corners
        )
        return self.pseudo_loss(
            logits, label, confidence, is_pseudo, ignore_index=self.ignore_index
        )

    def _health(
        self, stats: Dict[str, Tensor], label: Tensor, is_pseudo: Tensor
    ) -> Dict[str, Tensor]:
        """Counts of the loss as shares of the pseudo-labeled pixels."""
        pixels = is_pseudo.sum() * label[0].numel()
        kept = ((label != self.ignore_index) & is_pseudo[:, None, None]).sum()
        health = dict(pseudo_keep_ratio=kept / pixels.clamp(min=1))
        for key in ('disagreement', 'student_wins'):
            if key in stats:  # -1 where the loss does not weigh
                share = stats[key] / kept.clamp(min=1)
                health[f'pseudo_{key}'] = share.masked_fill(stats[key] < 0, float('nan'))
        if 'mean_weight' in stats:
            health['mean_weight'] = stats['mean_weight']
        return health


def _confidence(sample: SegDataSample, default: Tensor) -> Tensor:
    """Stored confidence (H, W) of a sample in [0, 1]; that of ground truth is not read."""
    if 'pseudo_confidence' not in sample:
        return default
    return sample.pseudo_confidence.data.squeeze(0)
