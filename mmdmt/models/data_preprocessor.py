"""Data preprocessors: the color of padding, and labeled and unlabeled images of a batch."""

from collections.abc import Sequence
from typing import Any, Dict, List

import torch
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.utils import stack_batch
from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.models.forward import valid_mask
from mmdmt.registry import MODELS

#: Padding after normalization, with ``pad_val``, or before, with pixels of 0.
PADDINGS = ('mean', 'black')


@MODELS.register_module()
class PaddingPreprocessor(SegDataPreProcessor):
    """mmseg's preprocessor with a choice of what color padding has.

    mmseg pads after normalization, so that 0 is the mean color. Published code often pads first,
    which is black: ``(0 - mean) / std``, another number for each channel. It holds for all that
    this preprocessor pads: crops in training, the canvas (``test_cfg``) of evaluation and labeling.

    Args:
        *args: As ``**kwargs``, of :class:`SegDataPreProcessor`.
        padding (str): ``'mean'`` pads with ``pad_val`` after normalization, ``'black'`` with pixels
            of 0 before it.
        **kwargs: See ``*args``.

    Raises:
        ValueError: If ``padding`` is neither.
    """

    def __init__(self, *args: Any, padding: str = 'mean', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_choice('data_preprocessor.padding', padding, PADDINGS)
        self.padding = padding

    def forward(self, data: Dict[str, Any], training: bool = False) -> Dict[str, Any]:
        """As :class:`SegDataPreProcessor`, with padding of the chosen color."""
        sizes = [image.shape[-2:] for image in data['inputs']]
        out = super().forward(data, training)
        images = out['inputs']
        if self.padding == 'black' and any(size != images.shape[-2:] for size in sizes):
            out['inputs'] = self.fill_padding(images, valid_mask(sizes, images))
        return out

    def fill_padding(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) with padding where ``valid`` (N, H, W) is False."""
        return torch.where(valid[:, None], images, self._padding_value(images))

    def _padding_value(self, images: Tensor) -> Tensor:
        """Value of padding, (3, 1, 1) or a scalar."""
        black = self.padding == 'black'
        if black and self._enable_normalize:
            return (-self.mean / self.std).to(images)
        return images.new_full((), 0 if black else self.pad_val)


@MODELS.register_module()
class SemiDataPreprocessor(PaddingPreprocessor):
    """Stack, pad and normalize a batch once, and split it by labels.

    :class:`~mmdmt.models.methods.SemiSegmentor` makes it from the ``data_preprocessor`` of the
    segmentor that it wraps. A training batch, labeled samples (those with a ``gt_sem_seg``) first
    as ``mmdmt.MultiSourceSampler`` draws them, comes out as::

        inputs = {
            'sup': (Nl, 3, H, W),            # normalized
            'unsup_weak': (Nu, 3, H, W),     # normalized, padded as by `padding`
            'unsup_rgb': (Nu, 3, H, W),      # the same pixels as RGB in [0, 1], padded with 0
            'unsup_valid': (Nu, H, W) bool,  # False on padding
        }
        data_samples = {'sup': [...], 'unsup': [...]}

    The keys of a kind that the batch lacks are left out. With ``training=False`` nothing differs
    from :class:`PaddingPreprocessor`.

    Args:
        **kwargs: Arguments of :class:`PaddingPreprocessor` (``mean``, ``std``, ``size`` or
            ``size_divisor``, ``padding``, ``pad_val``, ``seg_pad_val``, ``bgr_to_rgb``,
            ``rgb_to_bgr``, ``test_cfg``). Images are expected on the scale 0 to 255, in BGR unless
            ``rgb_to_bgr`` means that they are loaded as RGB.

    Raises:
        ValueError: If neither or both of ``size`` and ``size_divisor`` are given, or
            ``batch_augments``, which would mix labeled and unlabeled images.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if (self.size is None) == (self.size_divisor is None):
            raise ValueError(
                '`data_preprocessor`: give either size or size_divisor, got '
                f'size={self.size} and size_divisor={self.size_divisor}'
            )
        if self.batch_augments is not None:
            raise ValueError(
                '`data_preprocessor.batch_augments` would mix labeled and unlabeled images: remove '
                'it'
            )
        # Official and maintained mmseg keep the channel order under different private names.
        self._loaded_rgb = bool(kwargs.get('rgb_to_bgr', False))
        self._network_rgb = bool(kwargs.get('bgr_to_rgb', False))

    def forward(self, data: Dict[str, Any], training: bool = False) -> Dict[str, Any]:
        """Prepare a batch, as described for the class.

        Args:
            data: ``inputs``, a list of (3, h, w) images, and ``data_samples``, a list of
                ``SegDataSample``, as the dataloader collates them.
            training: Whether the batch is trained on.

        Raises:
            ValueError: If a training batch is empty or has unlabeled samples before labeled ones.
        """
        if not training:
            return super().forward(data, training=False)
        if not data.get('inputs') or not data.get('data_samples'):
            raise ValueError(
                'SemiDataPreprocessor: a training batch needs non-empty lists `inputs` and '
                f'`data_samples`, got keys {sorted(data)}'
            )
        data = self.cast_data(data)
        num_labeled = _num_labeled(data['data_samples'])
        sizes = [image.shape[-2:] for image in data['inputs']]
        images, samples = stack_batch(
            list(data['inputs']),
            data['data_samples'],
            size=self.size,
            size_divisor=self.size_divisor,
            pad_val=0,
            seg_pad_val=self.seg_pad_val,
        )
        images = images.float()
        valid = valid_mask(sizes, images)
        network = self._normalize(images, self._loaded_rgb)
        if any(tuple(size) != tuple(images.shape[-2:]) for size in sizes):
            network = self.fill_padding(network, valid)
        inputs: Dict[str, Tensor] = {}
        branches: Dict[str, List] = {}
        if num_labeled:
            inputs['sup'] = network[:num_labeled]
            branches['sup'] = samples[:num_labeled]
        if num_labeled < len(samples):
            rgb = images[num_labeled:] if self._loaded_rgb else images[num_labeled:].flip(1)
            inputs['unsup_weak'] = network[num_labeled:]
            inputs['unsup_rgb'] = rgb / 255
            inputs['unsup_valid'] = valid[num_labeled:]
            branches['unsup'] = samples[num_labeled:]
        return dict(inputs=inputs, data_samples=branches)

    def normalize(self, rgb: Tensor) -> Tensor:
        """Turn RGB images in [0, 1], (N, 3, H, W), into what the network takes."""
        return self._normalize(rgb * 255, is_rgb=True)

    def denormalize(self, images: Tensor) -> Tensor:
        """Inverse of :meth:`normalize`."""
        images = images * self.std + self.mean if self._enable_normalize else images
        return (images if self._network_rgb else images.flip(1)) / 255

    def _normalize(self, images: Tensor, is_rgb: bool) -> Tensor:
        """Normalize images from 0 to 255, of which is known whether they are RGB or BGR."""
        images = images if is_rgb == self._network_rgb else images.flip(1)
        return (images - self.mean) / self.std if self._enable_normalize else images


def _num_labeled(samples: Sequence) -> int:
    """Number of labeled samples, which have to come first."""
    labeled = ['gt_sem_seg' in sample for sample in samples]
    count = sum(labeled)
    if not all(labeled[:count]):
        raise ValueError(
            'SemiDataPreprocessor: a batch has unlabeled samples before labeled ones; put the '
            'labeled source first in `train_dataloader.dataset.datasets`'
        )
    return count
