"""RandAugment with a magnitude of its own for every image."""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple, Union

import numpy as np
from mmpretrain.datasets.transforms import RandAugment as FixedRandAugment
from mmpretrain.datasets.transforms.auto_augment import BaseAugTransform
from PIL import Image
from torchvision.transforms import functional as tv

from mmdmt.checks import check_choice, check_range
from mmdmt.registry import TRANSFORMS

#: The 14 transforms of the paper, each applied whenever it is drawn.
PAPER = (
    dict(type='mmdmt.Identity'),
    dict(type='AutoContrast', prob=1.0),
    dict(type='Equalize', prob=1.0),
    dict(type='Rotate', magnitude_range=(0, 30), prob=1.0),
    dict(type='Posterize', magnitude_range=(8, 4), prob=1.0),
    dict(type='Solarize', magnitude_range=(256, 0), prob=1.0),
    dict(type='ColorTransform', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Contrast', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Brightness', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Sharpness', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal', prob=1.0),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical', prob=1.0),
    dict(type='Translate', magnitude_range=(0, 0.3), direction='horizontal', prob=1.0),
    dict(type='Translate', magnitude_range=(0, 0.3), direction='vertical', prob=1.0),
)


def _warped(image: Image.Image, *matrix: float) -> Image.Image:
    """An image whose pixel (x, y) is that of (ax + by + c, dx + ey + f); black outside."""
    return image.transform(image.size, Image.AFFINE, matrix)


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    """Brighten all pixels by a value, then invert those of 128 and more."""
    return tv.solarize(image.point(lambda pixel: min(pixel + int(value), 255)), 128)


def _cutout(image: Image.Image, side: float) -> Image.Image:
    """Blacken a square around a random point; where it would begin outside, it is moved inside."""
    corner = [int(max(0, np.random.uniform(size) - side / 2)) for size in image.size]
    image = image.copy()
    image.paste((0, 0, 0), (*corner, *(start + int(side) for start in corner)))
    return image


class PillowOperation(NamedTuple):
    """An operation on an RGB image and what its value is at magnitudes 0 and 10.

    Attributes:
        function: Takes the image and the value.
        low, high: Value at magnitude 0 and 10.
        signed: Whether half of the draws take the value with a minus.
    """

    function: Callable[[Image.Image, float], Image.Image]
    low: float = 0.0
    high: float = 1.0
    signed: bool = False


#: The list of a widely used RandAugment package, with which DMT's figures on CIFAR-10 were made:
#: values are ``m / 10 * (high - low) + low``, so Posterize and Solarize get weaker with ``m``, and
#: images of 32x32 that are moved by more than their size turn black.
PILLOW_OPERATIONS: Dict[str, PillowOperation] = {
    'AutoContrast': PillowOperation(lambda image, value: tv.autocontrast(image)),
    'Equalize': PillowOperation(lambda image, value: tv.equalize(image)),
    'Invert': PillowOperation(lambda image, value: tv.invert(image)),
    'Rotate': PillowOperation(tv.rotate, 0, 30, signed=True),  # degrees
    'Posterize': PillowOperation(  # bits that are kept
        lambda image, value: tv.posterize(image, max(1, int(value))), 0, 4
    ),
    'Solarize': PillowOperation(tv.solarize, 0, 256),  # pixels from this value on are inverted
    'SolarizeAdd': PillowOperation(_solarize_add, 0, 110),
    'Color': PillowOperation(tv.adjust_saturation, 0.1, 1.9),
    'Contrast': PillowOperation(tv.adjust_contrast, 0.1, 1.9),
    'Brightness': PillowOperation(tv.adjust_brightness, 0.1, 1.9),
    'Sharpness': PillowOperation(tv.adjust_sharpness, 0.1, 1.9),
    'ShearX': PillowOperation(lambda i, v: _warped(i, 1, v, 0, 0, 1, 0), 0, 0.3, signed=True),
    'ShearY': PillowOperation(lambda i, v: _warped(i, 1, 0, 0, v, 1, 0), 0, 0.3, signed=True),
    'CutoutAbs': PillowOperation(_cutout, 0, 40),  # pixels
    'TranslateXabs': PillowOperation(
        lambda i, v: _warped(i, 1, 0, v, 0, 1, 0), 0, 100, signed=True
    ),
    'TranslateYabs': PillowOperation(
        lambda i, v: _warped(i, 1, 0, 0, 0, 1, v), 0, 100, signed=True
    ),
}


@TRANSFORMS.register_module()
class PillowTransform(BaseAugTransform):
    """One of :data:`PILLOW_OPERATIONS` as a transform of BGR images, which are left as they are.

    Args:
        operation (str): Its name.
        **kwargs: Of mmpretrain's ``BaseAugTransform``: ``magnitude_level``, ``total_level``.

    Raises:
        ValueError: On an unknown name.
    """

    def __init__(self, operation: str, **kwargs: Any) -> None:
        check_choice('operation', operation, PILLOW_OPERATIONS)
        _, low, high, signed = PILLOW_OPERATIONS[operation]
        super().__init__(
            magnitude_range=(low, high), prob=1.0, random_negative_prob=signed / 2, **kwargs
        )
        self.operation = operation

    def transform(self, results: dict) -> dict:
        """Apply the operation at the present magnitude."""
        function = PILLOW_OPERATIONS[self.operation].function
        value = self.random_negative(self.random_magnitude())
        image = Image.fromarray(np.ascontiguousarray(results['img'][..., ::-1]))
        results['img'] = np.array(function(image, value))[..., ::-1]
        return results


#: Lists of transforms by name. A name in a config keeps it short: mmengine takes a minute to print
#: one with many copies of a list.
POLICIES: Dict[str, Tuple[dict, ...]] = {
    'paper': PAPER,
    'released': tuple(
        dict(type='mmdmt.PillowTransform', operation=name) for name in PILLOW_OPERATIONS
    ),
}


@TRANSFORMS.register_module()
class RandAugment(FixedRandAugment):
    """mmpretrain's ``RandAugment`` with an integer magnitude drawn from 1 to a maximum.

    Cubuk et al., "RandAugment", 2020; a random magnitude for each image as in DMT's
    classification experiments.

    Args:
        policies (str | list[dict]): 'paper' for the transforms of the paper, 'released' for
            :data:`PILLOW_OPERATIONS`, or as in mmpretrain, where transforms are applied with
            ``prob=0.5`` unless a policy says otherwise. Defaults to 'paper'.
        cutout (int): Side in pixels of the largest square that the additional transform Cutout
            fills; 0 leaves it out. Defaults to 0.
        num_policies (int): Transforms for an image. Defaults to 1.
        max_magnitude (int): Largest magnitude, of ``total_level``. Defaults to 10.
        channel_order (str): Order of the channels of the images, 'bgr' as read from files or 'rgb'
            as of CIFAR-10: color and contrast weigh the channels differently. Defaults to 'bgr'.
        **kwargs: Of mmpretrain's ``RandAugment``: ``total_level``, ``hparams``.

    Raises:
        ValueError: If ``max_magnitude`` is below 1, or on an unknown ``channel_order``.
    """

    def __init__(
        self,
        policies: Union[str, List[dict]] = 'paper',
        cutout: int = 0,
        num_policies: int = 1,
        max_magnitude: int = 10,
        channel_order: str = 'bgr',
        **kwargs: Any,
    ) -> None:
        check_range('max_magnitude', max_magnitude, 1)
        check_choice('channel_order', channel_order, ('bgr', 'rgb'))
        if isinstance(policies, str):
            check_choice('policies', policies, POLICIES)
            policies = list(POLICIES[policies])
        if cutout:
            policies = [*policies, dict(type='Cutout', magnitude_range=(0, cutout), prob=1.0)]
        super().__init__(policies, num_policies, magnitude_level=max_magnitude, **kwargs)
        self.max_magnitude = max_magnitude
        self.channel_order = channel_order

    def transform(self, results: dict) -> dict:
        """Apply random transforms with one random magnitude."""
        level = int(np.random.randint(1, self.max_magnitude + 1))
        self._to_bgr(results)
        for index in self.random_policy_indices():
            transform = self.transforms[index]
            transform.magnitude_level = level
            results = transform(results)
        self._to_bgr(results)  # and back
        return results

    def _to_bgr(self, results: dict) -> None:
        """Turn the channels of an RGB image around."""
        if self.channel_order == 'rgb':
            results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
