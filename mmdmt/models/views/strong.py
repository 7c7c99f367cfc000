"""Strong photometric augmentation of a whole batch on its own device."""

import math
from collections.abc import Sequence
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from kornia.color import grayscale_to_rgb, rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_hue,
    adjust_saturation,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_range, refuse_unknown_keys
from mmdmt.registry import MODELS

_UNIMATCH = dict(
    color_jitter=(0.5, 0.5, 0.5, 0.25),
    jitter_prob=0.8,
    gray_prob=0.2,
    blur_prob=0.5,
    blur_sigma=(0.1, 2.0),
    jitter_style='pil',
    per_batch=False,
)
#: Made for mixed images: Dual Teacher (its flip is geometry, so not here) and CTT.
_AFTER_MIXING = dict(
    _UNIMATCH, color_jitter=(0.25, 0.25, 0.25, 0.25), gray_prob=0.0, blur_sigma=(0.15, 1.15)
)
#: Published magnitudes by paper; see :class:`StrongAugment`.
STRONG_PRESETS: Dict[str, dict] = {
    # UniMatch (CVPR 2023) and UniMatch V2, dataset/semi.py.
    'unimatch': _UNIMATCH,
    # Dual Teacher (NeurIPS 2023), tools/train.py: the view of the implicit-consistency term.
    'dual_teacher': dict(_UNIMATCH, jitter_prob=1.0, blur_prob=0.0),
    # Dual Teacher, seg_core/augmentations.py: after CutMix.
    'dual_teacher_cutmix': _AFTER_MIXING,
    # CutMix-Seg (BMVC 2020), the student's unlabeled images.
    'cutmix_seg': dict(_UNIMATCH, color_jitter=(0.4, 0.4, 0.4, 0.1), blur_prob=0.0),
    # Cross Teacher Training (Neurocomputing 2022); the second as its released code computes it.
    'ctt': _AFTER_MIXING,
    'ctt_released': dict(_AFTER_MIXING, jitter_style='hsv', per_batch=True),
}
JITTER_STYLES = ('pil', 'hsv')


class StrongDraws(NamedTuple):
    """Random parameters of one call, all on the CPU, one row per image.

    Attributes:
        factors: (N, 4) brightness, contrast and saturation factors and hue shift in turns.
        order: (4,) order in which the four are applied, one for the batch.
        jitter: (N,) bool, images that get the color jitter.
        gray: (N,) bool, images that lose their color.
        blur: (N,) bool, images that are blurred.
        sigma: (N,) standard deviation of the blur in pixels.
    """

    factors: Tensor
    order: Tensor
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor


@MODELS.register_module()
class StrongAugment(nn.Module):
    """Color jitter, random gray and Gaussian blur, drawn separately for each image of a batch.

    Brightness, contrast and saturation follow PIL and torchvision (multiply; blend with the mean
    luminance; blend with the luminance), or older releases of kornia (add; multiply; scale the
    saturation of HSV); hue is a rotation in HSV. Their order is drawn once per
    call, so the batch shares it and each operation stays one batched kernel; every other
    parameter is drawn per image.

    All draws come from torch's global CPU generator and their number depends on the batch size
    alone, so that ``torch.manual_seed`` before an iteration makes it reproducible whatever was
    chosen before. Nothing is read back from the device.

    Of images with other than three channels, or with ``rgb_bands``, each band is blended with its
    own mean; brightness, contrast and blur act on every band, and saturation, hue and gray on
    ``rgb_bands`` alone.

    Args:
        preset: Name in :data:`STRONG_PRESETS` that the arguments below default to.
        rgb_bands: Red, green and blue among the channels, counted from 0, of images with other
            channels; ``()`` if there is no color, also in three channels. Defaults to all of three
            channels, and to none of any other number.
        noise: Standard deviation of Gaussian noise on every pixel of each band, in [0, 1], for
            images that are jittered. Defaults to 0, no noise.
        **magnitudes: ``color_jitter``, the magnitudes (brightness, contrast, saturation, hue): the
            first three draw a factor from U(max(0, 1 - m), 1 + m), the hue a shift from U(-m, m)
            turns; ``jitter_prob``, ``gray_prob``, ``blur_prob``, probabilities per image;
            ``blur_sigma``, range of the blur's standard deviation in pixels; ``jitter_style``,
            'pil' or 'hsv' as above; ``per_batch``, whether these probabilities and the blur's
            deviation are drawn once for all images of a call (the factors never are).

    Raises:
        ValueError: If a name is unknown or a magnitude is out of range.
    """

    def __init__(
        self,
        preset: str = 'unimatch',
        *,
        rgb_bands: Optional[Sequence[int]] = None,
        noise: float = 0.0,
        **magnitudes: Any,
    ) -> None:
        super().__init__()
        self.rgb_bands = check_rgb_bands('StrongAugment', rgb_bands)
        check_range('StrongAugment.noise', noise, 0, 1)
        self.noise = noise
        check_choice('StrongAugment.preset', preset, STRONG_PRESETS)
        refuse_unknown_keys('StrongAugment', magnitudes, STRONG_PRESETS[preset])
        settings = dict(STRONG_PRESETS[preset], **magnitudes)
        self.color_jitter = tuple(settings['color_jitter'])
        self.blur_sigma = tuple(settings['blur_sigma'])
        check_choice('StrongAugment.jitter_style', settings['jitter_style'], JITTER_STYLES)
        self.jitter_style, self.per_batch = settings['jitter_style'], settings['per_batch']
        for name in ('jitter_prob', 'gray_prob', 'blur_prob'):
            check_range(f'StrongAugment.{name}', settings[name], 0, 1)
            setattr(self, name, settings[name])
        if len(self.color_jitter) != 4 or min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                f'StrongAugment: color_jitter={self.color_jitter} must be (brightness, contrast, '
                'saturation, hue), none negative and hue at most 0.5 turns'
            )
        if len(self.blur_sigma) != 2 or not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(
                f'StrongAugment: blur_sigma={self.blur_sigma} must be (low, high) with 0 < low <= '
                'high'
            )
        # Taps beyond three standard deviations weigh under 0.3 % in sum.
        self.blur_kernel = 2 * math.ceil(3 * self.blur_sigma[1]) + 1

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """Augment float images (N, C, H, W) in [0, 1], on any device; RGB if C is 3.

        Pixels that are not ``valid`` (N, H, W), the padding, come back unchanged and have no
        influence on the others. ValueErrors name images and masks of another kind.
        """
        check_images(images, valid, rgb_bands=self.rgb_bands)
        draws = self.draw(len(images))
        seed = int(torch.randint(2**31, (), device='cpu')) if self.noise else 0
        # Runners call the data preprocessor under autocast, which would blur in half precision.
        with torch.autocast(images.device.type, enabled=False):
            out = _where(draws.jitter, self._jitter, images, draws.factors, draws.order, valid)
            out = _where(draws.jitter, self._add_noise, out, seed) if self.noise else out
            out = _where(draws.gray, lambda out: self._color(to_gray, out), out)
            out = _where(draws.blur, blur, out, draws.sigma, self.blur_kernel, valid)
        out = out.clamp(0, 1)
        return out if valid is None else torch.where(valid[:, None], out, images)

    def draw(self, num_images: int) -> StrongDraws:
        """Draw the parameters of one call: always ``8 * num_images`` numbers and one order."""
        uniform = torch.rand(num_images, 8, device='cpu', dtype=torch.float32)
        shared = uniform[:1].expand_as(uniform) if self.per_batch else uniform
        magnitude = uniform.new_tensor(self.color_jitter)
        center = uniform.new_tensor([1.0, 1.0, 1.0, 0.0])
        low, high = center - magnitude, center + magnitude
        low[:3].clamp_(min=0)
        sigma_low, sigma_high = self.blur_sigma
        return StrongDraws(
            factors=low + (high - low) * uniform[:, :4],
            order=torch.randperm(4, device='cpu'),
            jitter=shared[:, 4] < self.jitter_prob,
            gray=shared[:, 5] < self.gray_prob,
            blur=shared[:, 6] < self.blur_prob,
            sigma=sigma_low + (sigma_high - sigma_low) * shared[:, 7],
        )

    def _jitter(
        self, images: Tensor, factors: Tensor, order: Tensor, valid: Optional[Tensor]
    ) -> Tensor:
        """Brightness, contrast, saturation and hue in the drawn order."""
        brightness, contrast, saturation, hue = factors.to(
            images.device, images.dtype, non_blocking=True
        ).unbind(1)
        if self.jitter_style == 'hsv':
            operations = [
                lambda images: (images + _per_image(brightness - 1)).clamp(0, 1),
                lambda images: (images * _per_image(contrast)).clamp(0, 1),
                lambda images: self._color(adjust_saturation, images, saturation),
            ]
        else:
            operations = [
                lambda images: adjust_brightness_accumulative(images, brightness),
                lambda images: adjust_contrast(images, contrast, valid, self.rgb_bands),
                lambda images: self._color(
                    adjust_saturation_with_gray_subtraction, images, saturation
                ),
            ]
        operations.append(lambda images: self._color(adjust_hue, images, hue * (2 * math.pi)))
        for index in order.tolist():
            images = operations[index](images)
        return images

    def _color(self, operation: Callable, images: Tensor, *args: Any) -> Tensor:
        return on_colors(operation, images, self.rgb_bands, *args)

    def _add_noise(self, images: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(images.device).manual_seed(seed)
        noise = torch.empty_like(images).normal_(0, self.noise, generator=generator)
        return (images + noise).clamp(0, 1)

    def extra_repr(self) -> str:
        """Magnitudes as shown by ``print(module)``."""
        names = STRONG_PRESETS['unimatch']
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def _per_image(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def check_rgb_bands(name: str, rgb_bands: Optional[Sequence[int]]) -> Optional[Tuple[int, ...]]:
    """``rgb_bands`` as a tuple, refused if they are neither none nor three different channels."""
    bands = None if rgb_bands is None else tuple(rgb_bands)
    if bands and (len(bands) != 3 or len(set(bands)) != 3 or min(bands) < 0):
        raise ValueError(f'`{name}.rgb_bands` must be (red, green, blue) or (), got {rgb_bands}')
    return bands


def on_colors(
    operation: Callable, images: Tensor, rgb_bands: Optional[Sequence[int]], *args: Any
) -> Tensor:
    """Apply an operation on RGB images to the color bands of images (N, C, H, W), if any."""
    if rgb_bands is None and images.shape[1] == 3:
        return operation(images, *args)
    if not rgb_bands:
        return images
    # No lists of indices, which would be copied to the device.
    colors = torch.stack([images[:, band] for band in rgb_bands], 1)
    changed = dict(zip(rgb_bands, operation(colors, *args).unbind(1)))
    return torch.stack([changed.get(band, each) for band, each in enumerate(images.unbind(1))], 1)


def to_gray(images: Tensor) -> Tensor:
    """RGB images without their color."""
    return grayscale_to_rgb(rgb_to_grayscale(images))


def check_images(
    images: Tensor,
    valid: Optional[Tensor],
    name: str = 'StrongAugment',
    rgb_bands: Optional[Sequence[int]] = None,
) -> None:
    """Refuse what is no float image (N, C, H, W), of these bands, or no bool mask (N, H, W)."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f'{name} needs float images (N, C, H, W) in [0, 1], got '
            f'{images.dtype} {tuple(images.shape)}'
        )
    if rgb_bands and max(rgb_bands) >= images.shape[1]:
        raise ValueError(
            f'`{name}.rgb_bands` is {tuple(rgb_bands)}, but images have {images.shape[1]} channels'
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != images[:, 0].shape):
        raise ValueError(
            f'{name} needs a bool valid mask {tuple(images[:, 0].shape)}, got '
            f'{valid.dtype} {tuple(valid.shape)}'
        )


def _where(chosen: Tensor, operation, images: Tensor, *args) -> Tensor:
    """Apply ``operation`` to the chosen images only (``chosen`` (N,) bool on the CPU)."""
    if not chosen.any():
        return images
    mask = chosen.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    return torch.where(mask, operation(images, *args), images)


def adjust_contrast(
    images: Tensor,
    factor: Tensor,
    valid: Optional[Tensor],
    rgb_bands: Optional[Sequence[int]] = None,
) -> Tensor:
    """Blend with the mean luminance; kornia's would count the padding into that mean.

    Bands other than RGB are blended with their own mean.
    """
    is_rgb = rgb_bands is None and images.shape[1] == 3
    luminance = rgb_to_grayscale(images) if is_rgb else images
    weight = images.new_ones(images[:, :1].shape) if valid is None else valid[:, None].to(images)
    total = (luminance * weight).sum((2, 3), keepdim=True)
    mean = total / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.lerp(mean, images, _per_image(factor)).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, kernel: int, valid: Optional[Tensor]) -> Tensor:
    """Gaussian blur of images (N, C, H, W) over their valid pixels (N, H, W).

    ``sigma`` (N,), in pixels, is on the CPU; ``kernel`` is the odd side of the window.
    """
    # Sigma stays on the CPU: kornia checks that it is positive, which would wait for a GPU.
    sigma = sigma[:, None].expand(-1, 2)
    if valid is None:
        return gaussian_blur2d(images, (kernel, kernel), sigma, 'replicate')
    # Normalized convolution: the average over the valid part of the window.
    weight = valid[:, None].to(images.dtype)
    stacked = torch.cat([images * weight, weight], dim=1)
    blurred = gaussian_blur2d(stacked, (kernel, kernel), sigma, 'replicate')
    return blurred[:, :-1] / blurred[:, -1:].clamp(min=1e-6)
