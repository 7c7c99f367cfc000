"""RandAugment with a magnitude of its own for every image."""

from typing import Any, List, Union

import numpy as np
from mmpretrain.datasets.transforms import RandAugment as FixedRandAugment

from mmdmt.checks import check_choice, check_range
from mmdmt.registry import TRANSFORMS

#: The 14 transforms of the paper, each applied whenever it is drawn. A name in a config instead of
#: this list keeps configs short: mmengine takes a minute to print one with many copies of it.
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


@TRANSFORMS.register_module()
class RandAugment(FixedRandAugment):
    """mmpretrain's ``RandAugment`` with an integer magnitude drawn from 1 to a maximum.

    Cubuk et al., "RandAugment", 2020; a random magnitude for each image as in DMT's
    classification experiments.

    Args:
        policies (str | list[dict]): 'paper' for the transforms of the paper, or as in mmpretrain,
            where transforms are applied with ``prob=0.5`` unless a policy says otherwise. Defaults
            to 'paper'.
        cutout (int): Side in pixels of the largest square that the additional transform Cutout
            fills; 0 leaves Cutout out. Defaults to 0.
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
        if policies == 'paper':
            policies = list(PAPER)
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
