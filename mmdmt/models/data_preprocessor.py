"""Data preprocessors: the color of padding, and labeled and unlabeled images of a batch."""

from collections.abc import Sequence
from typing import Any, Dict, List

import numpy as np
import torch
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.utils import stack_batch
from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.models.forward import only_measured, valid_mask
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
        value_range (Sequence): Lowest and highest value of the images, two numbers or two lists
            with one for each band, in the order in which they are loaded. Strong views see this
            range as [0, 1]; values beyond it are cut off there and nowhere else. Defaults to
            (0, 255).
        **kwargs: See ``*args``. ``mean`` and ``std`` may have any number of values, one for each
            channel; ``bgr_to_rgb`` and ``rgb_to_bgr`` concern images of three channels alone.

    Raises:
        ValueError: If a setting is out of range, or images have another number of channels than
            ``mean``.
    """

    def __init__(
        self,
        *args: Any,
        padding: str = 'mean',
        value_range: Sequence = (0, 255),
        **kwargs: Any,
    ) -> None:
        mean, std = kwargs.get('mean'), kwargs.get('std')
        if mean is not None and len(mean) not in (1, 3):  # which mmengine refuses
            kwargs = dict(kwargs, mean=None, std=None)
        super().__init__(*args, **kwargs)
        check_choice('data_preprocessor.padding', padding, PADDINGS)
        self.padding = padding
        if mean is not None and not self._enable_normalize:
            if std is None or len(std) != len(mean) or min(std) <= 0:
                raise ValueError(
                    '`data_preprocessor.std` needs a positive value for each of the '
                    f'{len(mean)} of `mean`, got {std}'
                )
            self._enable_normalize = True
            for name, values in (('mean', mean), ('std', std)):
                self.register_buffer(name, torch.tensor(values).float().view(-1, 1, 1), False)
        # In NumPy, because a model may be built on a device without values.
        low, high = (np.asarray(each, np.float32) for each in value_range)
        if low.ndim > 1 or low.shape != high.shape or not (high > low).all():
            raise ValueError(
                '`data_preprocessor.value_range` must be (low, high), numbers or lists with one '
                f'for each band, low below high, got {value_range}'
            )
        self._is_8_bit = low.ndim == 0 and (float(low), float(high)) == (0.0, 255.0)
        for name, values in (('low', low), ('high', high)):
            self.register_buffer(name, torch.tensor(values.tolist()).view(-1, 1, 1), False)

    def forward(self, data: Dict[str, Any], training: bool = False) -> Dict[str, Any]:
        """As :class:`SegDataPreProcessor`, with padding of the chosen color."""
        self._check_channels(data['inputs'])
        sizes = [image.shape[-2:] for image in data['inputs']]
        out = super().forward(data, training)
        images = out['inputs']
        if self.padding == 'black' and any(size != images.shape[-2:] for size in sizes):
            out['inputs'] = self.fill_padding(images, valid_mask(sizes, images))
        return out

    def _check_channels(self, images: Sequence[Tensor]) -> None:
        values = self.mean.numel() if self._enable_normalize else 1
        values = max(values, self.low.numel())
        found = {image.shape[0] for image in images}
        if len(found) > 1 or (values > 1 and found != {values}):
            raise ValueError(
                f'images have {sorted(found)} channels, but `data_preprocessor.mean` or '
                f'`value_range` has {values} values: choose bands of the images, or give as many '
                'values (tools/misc/dataset_statistics.py)'
            )

    def fill_padding(self, images: Tensor, valid: Tensor) -> Tensor:
        """Normalized images (N, C, H, W) with padding where ``valid`` (N, H, W) is False."""
        return torch.where(valid[:, None], images, self._padding_value(images))

    def _padding_value(self, images: Tensor) -> Tensor:
        """Value of padding, (C, 1, 1) or a scalar."""
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
            'unsup_rgb': (Nu, 3, H, W),      # the same pixels as RGB in [0, 1], padded
            'unsup_valid': (Nu, H, W) bool,  # False on padding and where nothing was measured
        }
        data_samples = {'sup': [...], 'unsup': [...]}

    Images with another number of channels than three have theirs, in the order in which they are
    loaded, also in ``unsup_rgb``, where [0, 1] is their ``value_range``.

    The keys of a kind that the batch lacks are left out. With ``training=False`` nothing differs
    from :class:`PaddingPreprocessor`.

    Args:
        **kwargs: Arguments of :class:`PaddingPreprocessor` (``mean``, ``std``, ``size`` or
            ``size_divisor``, ``padding``, ``pad_val``, ``seg_pad_val``, ``bgr_to_rgb``,
            ``rgb_to_bgr``, ``test_cfg``, ``value_range``). Images of three channels are expected in
            BGR unless ``rgb_to_bgr`` means that they are loaded as RGB.

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
        self._check_channels(data['inputs'])
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
            inputs['unsup_weak'] = network[num_labeled:]
            inputs['unsup_rgb'] = self._as_rgb(self._to_unit(images[num_labeled:]))
            inputs['unsup_valid'] = only_measured(valid[num_labeled:], samples[num_labeled:])
            branches['unsup'] = samples[num_labeled:]
        return dict(inputs=inputs, data_samples=branches)

    def normalize(self, rgb: Tensor) -> Tensor:
        """Turn ``unsup_rgb`` images in [0, 1], (N, C, H, W), into what the network takes."""
        if self._is_8_bit:
            return self._normalize(rgb * 255, is_rgb=True)
        images = self._as_rgb(rgb) * (self.high - self.low) + self.low
        return self._normalize(images, self._loaded_rgb)

    def denormalize(self, images: Tensor) -> Tensor:
        """Inverse of :meth:`normalize`."""
        images = images * self.std + self.mean if self._enable_normalize else images
        if self._network_rgb != self._loaded_rgb:
            images = _flipped(images)
        return self._as_rgb(self._to_unit(images))

    def _to_unit(self, images: Tensor) -> Tensor:
        """Images as loaded on a scale from 0 to 1."""
        if self._is_8_bit:
            return images / 255
        return ((images - self.low) / (self.high - self.low)).clamp(0, 1)

    def _as_rgb(self, images: Tensor) -> Tensor:
        """From the order in which channels are loaded to that of RGB, or back."""
        return images if self._loaded_rgb else _flipped(images)

    def _normalize(self, images: Tensor, is_rgb: bool) -> Tensor:
        """Normalize images from 0 to 255, of which is known whether they are RGB or BGR."""
        images = images if is_rgb == self._network_rgb else _flipped(images)
        return (images - self.mean) / self.std if self._enable_normalize else images


def _flipped(images: Tensor) -> Tensor:
    """RGB from BGR, or back; other images than those of three channels stay."""
    return images.flip(1) if images.shape[1] == 3 else images


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
