"""Scores predictions at the size that images are resized to."""

from mmcv.transforms import BaseTransform

from mmdmt.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ScoreAtImageSize(BaseTransform):
    """Declare the size of the image so far to be its original one.

    mmseg scales predictions back to ``ori_shape``, the size of the file. Protocols that resize the
    labels together with the image (the released code of Dual Teacher on ADE20K) score at the size
    of the resized image instead: put this behind the last resizing, with the labels loaded before.

    Required keys: ``img_shape``. Modified keys: ``ori_shape``.
    """

    def transform(self, results: dict) -> dict:
        """Replace ``ori_shape``."""
        results['ori_shape'] = results['img_shape']
        return results
