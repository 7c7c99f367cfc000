"""RandAugment with a magnitude of its own for every image."""

from typing import Any, List, Union

import numpy as np
from mmpretrain.datasets.transforms import RandAugment as FixedRandAugment

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandAugment(FixedRandAugment):
    """mmpretrain's ``RandAugment`` with an integer magnitude drawn from 1 to a maximum.

    Cubuk et al., "RandAugment", 2020; a random magnitude for each image as in DMT's
    classification experiments.

    Args:
        policies (str | list[dict]): As in mmpretrain. Note that transforms are applied with
            ``prob=0.5`` unless a policy says otherwise.
        num_policies (int): Transforms for an image. Defaults to 1.
        max_magnitude (int): Largest magnitude, of ``total_level``. Defaults to 10.
        **kwargs: Of mmpretrain's ``RandAugment``: ``total_level``, ``hparams``.

    Raises:
        ValueError: If ``max_magnitude`` is below 1.
    """

    def __init__(
        self,
        policies: Union[str, List[dict]],
        num_policies: int = 1,
        max_magnitude: int = 10,
        **kwargs: Any,
    ) -> None:
        if max_magnitude < 1:
            raise ValueError(f'`max_magnitude` must be at least 1, got {max_magnitude}')
        super().__init__(policies, num_policies, magnitude_level=max_magnitude, **kwargs)
        self.max_magnitude = max_magnitude

    def transform(self, results: dict) -> dict:
        """Apply random transforms with one random magnitude."""
        level = int(np.random.randint(1, self.max_magnitude + 1))
        for index in self.random_policy_indices():
            transform = self.transforms[index]
            transform.magnitude_level = level
            results = transform(results)
        return results
