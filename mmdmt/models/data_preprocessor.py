"""Data preprocessor that makes the views of semi-supervised training on the device."""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.utils import stack_batch
from torch import Tensor, nn

from mmdmt.registry import MODELS


@MODELS.register_module()
class SemiDataPreprocessor(SegDataPreProcessor):
    """Split a batch by labels, normalize and pad it, and make weak and strong views.

    A sample is labeled if it has a ``gt_sem_seg``. All images of a batch are padded to one size.
    The weak view is the normalized image as loaded; each strong view is made from the same
    pixels, so that labels predicted on the weak view fit it pixel by pixel.

    With ``branches=True`` a training batch comes out as::

        inputs = {
            'sup': (Nl, 3, H, W),
            'unsup_weak': (Nu, 3, H, W), 'unsup_strong': (Nu, 3, H, W),
            'unsup_strong_1': ..., # with num_strong > 1
            'unsup_valid': (Nu, H, W) bool, False on padding
        }
        data_samples = {'sup': [...], 'unsup': [...]}

    The keys of a kind that the batch lacks are left out. With ``branches=False`` (a stage of
    off-line training, where pseudo-labeled samples have a ``gt_sem_seg`` as well) it comes out
    as from :class:`SegDataPreProcessor`, in the order of the batch. Either way
    ``pseudo_confidence`` is padded with 0 together with the label. With ``training=False``
    nothing differs from :class:`SegDataPreProcessor`.

    Args:
        strong: Config of the strong augmentation (see
            :class:`~mmdmt.models.views.StrongAugment`) or a module called as
            ``strong(images, valid)`` on RGB images in [0, 1]. None: strong views are the weak
            view itself.
        num_strong: Number of strong views, each drawn on its own.
        branches: Whether to split and make views in training.
        **kwargs: Arguments of :class:`SegDataPreProcessor` (``mean``, ``std``, ``size`` or
            ``size_divisor``, ``pad_val``, ``seg_pad_val``, ``bgr_to_rgb``, ``rgb_to_bgr``,
            ``test_cfg``). Images are expected on the scale 0 to 255, in BGR unless
            ``rgb_to_bgr`` says that they are loaded as RGB.

    Raises:
        ValueError: If ``num_strong`` is below 1, neither or both of ``size`` and
            ``size_divisor`` are given, or ``batch_augments`` is used with branches.
    """

    def __init__(
        self,
        strong: Optional[Union[dict, nn.Module]] = None,
        num_strong: int = 1,
        branches: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_strong < 1:
            raise ValueError(f'SemiDataPreprocessor: num_strong={num_strong} must be at least 1')
        if (self.size is None) == (self.size_divisor is None):
            raise ValueError(
                'SemiDataPreprocessor: give either size or size_divisor, got '
                f'size={self.size} and size_divisor={self.size_divisor}'
            )
        if branches and self.batch_augments is not None:
            raise ValueError(
                'SemiDataPreprocessor: batch_augments would mix labeled and unlabeled images; '
                'remove it, or set branches=False'
            )
        self.strong = MODELS.build(strong) if isinstance(strong, dict) else strong
        self.num_strong = num_strong
        self.branches = branches
        # Official and maintained mmseg keep the channel order under different private names.
        self._loaded_rgb = bool(kwargs.get('rgb_to_bgr', False))
        self._network_rgb = bool(kwargs.get('bgr_to_rgb', False))

    def forward(self, data: Dict[str, Any], training: bool = False) -> Dict[str, Any]:
        """Prepare a batch.

        Args:
            data: ``inputs``, a list of (3, h, w) images, and ``data_samples``, a list of
                :class:`SegDataSample`, as the dataloader collates them.
            training: Whether the batch is trained on.

        Returns:
            ``inputs`` and ``data_samples`` as described for the class.

        Raises:
            ValueError: If a training batch lacks its data samples or is empty.
        """
        if not training:
            return super().forward(data, training=False)
        if not data.get('inputs') or not data.get('data_samples'):
            raise ValueError(
                'SemiDataPreprocessor: a training batch needs non-empty lists `inputs` and '
                f'`data_samples`, got keys {sorted(data)}'
            )
        if not self.branches:
            return self._stack(data)
        data, num_labeled = _labeled_first(self.cast_data(data))
        stacked = self._stack(data)
        return self._split(stacked, num_labeled, data['inputs'][num_labeled:])

    def normalize(self, images: Tensor) -> Tensor:
        """Turn RGB images in [0, 1] into what the network takes.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1].

        Returns:
            (N, 3, H, W) in the network's channel order, normalized.
        """
        images = (images if self._network_rgb else images.flip(1)) * 255
        return (images - self.mean) / self.std if self._enable_normalize else images

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Invert :meth:`normalize`, up to rounding.

        Args:
            inputs: (N, 3, H, W) as the network takes them.

        Returns:
            (N, 3, H, W) RGB in [0, 1].
        """
        images = inputs * self.std + self.mean if self._enable_normalize else inputs
        images = (images / 255).clamp(0, 1)
        return images if self._network_rgb else images.flip(1)

    def _stack(self, data: Dict[str, Any]) -> Dict[str, Any]:
        """Do what :class:`SegDataPreProcessor` does, and pad the confidence maps as well."""
        stacked = super().forward(data, training=True)
        for sample in stacked['data_samples']:
            if 'pseudo_confidence' in sample:
                confidence = sample.pseudo_confidence.data
                # Deleted first: mmengine refuses to replace data by data of another size.
                del sample.pseudo_confidence.data
                sample.pseudo_confidence.data = F.pad(confidence, sample.padding_size, value=0)
        return stacked

    def _split(
        self, stacked: Dict[str, Any], num_labeled: int, raw: Sequence[Tensor]
    ) -> Dict[str, Any]:
        """Build the branches from a batch whose first ``num_labeled`` samples are labeled."""
        images, samples = stacked['inputs'], stacked['data_samples']
        inputs: Dict[str, Tensor] = {}
        branches: Dict[str, List] = {}
        if num_labeled:
            inputs['sup'] = images[:num_labeled]
            branches['sup'] = samples[:num_labeled]
        if raw:
            weak = images[num_labeled:]
            valid = _valid_mask([image.shape[-2:] for image in raw], weak)
            inputs['unsup_weak'] = weak
            inputs.update(self._strong_views(weak, raw, valid))
            inputs['unsup_valid'] = valid
            branches['unsup'] = samples[num_labeled:]
        return dict(inputs=inputs, data_samples=branches)

    def _strong_views(
        self, weak: Tensor, raw: Sequence[Tensor], valid: Tensor
    ) -> Dict[str, Tensor]:
        names = [f'unsup_strong_{i}' if i else 'unsup_strong' for i in range(self.num_strong)]
        if self.strong is None:
            return dict.fromkeys(names, weak)
        size = tuple(weak.shape[-2:])
        rgb, _ = stack_batch(list(raw), size=size, pad_val=0)
        rgb = (rgb if self._loaded_rgb else rgb.flip(1)).to(weak.dtype) / 255
        # Known from the shapes: without padding the augmentation need not look out for it.
        padded = any(tuple(image.shape[-2:]) != size for image in raw)
        views = {}
        for name in names:
            view = self.normalize(self.strong(rgb, valid if padded else None))
            views[name] = torch.where(valid[:, None], view, weak) if padded else view
        return views


def _labeled_first(data: Dict[str, Any]) -> Tuple[Dict[str, Any], int]:
    """Move labeled samples to the front, keeping the order within both kinds."""
    pairs = list(zip(data['inputs'], data['data_samples']))
    labeled = [pair for pair in pairs if 'gt_sem_seg' in pair[1]]
    unlabeled = [pair for pair in pairs if 'gt_sem_seg' not in pair[1]]
    inputs, samples = zip(*(labeled + unlabeled))
    return dict(data, inputs=list(inputs), data_samples=list(samples)), len(labeled)


def _valid_mask(sizes: Sequence[Tuple[int, int]], images: Tensor) -> Tensor:
    """Return (N, H, W) bool: True on the top left (h, w) of each image."""
    limits = torch.tensor([list(size) for size in sizes]).to(images.device, non_blocking=True)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < limits[:, :1]
    columns = torch.arange(width, device=images.device) < limits[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
