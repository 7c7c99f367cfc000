"""The transform of RandAugment that changes nothing."""

from mmcv.transforms import BaseTransform

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Identity(BaseTransform):
    """Leaves an image as it is: one of the transforms that RandAugment draws from."""

    def transform(self, results: dict) -> dict:
        """Return ``results``."""
        return results
