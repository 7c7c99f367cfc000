"""Strong augmentation of single pseudo-labeled images."""

from typing import Any, Dict, Optional

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mmdmt.checks import check_range, refuse_unknown_keys
from mmdmt.models.views.masks import area_boxes
from mmdmt.registry import MODELS, TRANSFORMS

#: Cutout of ST++ (CVPR 2022); area and aspect as of :func:`~mmdmt.models.views.masks.area_boxes`.
CUTOUT = dict(prob=0.5, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3))


@TRANSFORMS.register_module()
class StrongPseudoAugment(BaseTransform):
    """Color jitter, gray and blur, then Cutout: a box of noise that is not learned (ST, ST++).

    Goes right before the packing step, where image and label are cropped. Random numbers come from
    torch's generator, which :class:`~mmdmt.datasets.SemiDataset` seeds for each sample.

    Args:
        strong (dict): Config of the change of colors, ``mmdmt.StrongAugment`` with the magnitudes
            of UniMatch and ST++ by default.
        cutout (dict, optional): ``prob``, and ranges of ``area`` (share of the image) and
            ``aspect`` (height over width) instead of those of ``CUTOUT``; ``prob=0`` for none.

    Required keys: ``img`` (H, W, 3) uint8 in BGR. Modified keys: ``img``; in the box ``gt_seg_map``
    is 255 and ``pseudo_confidence`` 0, where there are any, as in padding.
    """

    def __init__(
        self, strong: Optional[dict] = None, cutout: Optional[Dict[str, Any]] = None
    ) -> None:
        refuse_unknown_keys('StrongPseudoAugment.cutout', cutout or {}, CUTOUT)
        self.cutout = dict(CUTOUT, **(cutout or {}))
        check_range('StrongPseudoAugment.cutout.prob', self.cutout['prob'], 0, 1)
        self.strong = MODELS.build(strong or dict(type='mmdmt.StrongAugment'))

    def transform(self, results: dict) -> dict:
        """Change colors, then cut a box out."""
        image = torch.from_numpy(np.ascontiguousarray(results['img'][..., ::-1]))
        image = self.strong(image.permute(2, 0, 1)[None].float() / 255)[0]
        image = (image * 255).round().byte().permute(1, 2, 0).numpy()
        results['img'] = np.ascontiguousarray(image[..., ::-1])
        if torch.rand(()) < self.cutout['prob']:
            self._cut_out(results)
        return results

    def _cut_out(self, results: dict) -> None:
        size, ranges = results['img'].shape[:2], (self.cutout['area'], self.cutout['aspect'])
        top, left, bottom, right = area_boxes(1, size, *ranges)[0, 0].tolist()
        box = slice(top, bottom), slice(left, right)
        noise = torch.randint(0, 256, (bottom - top, right - left, 3), dtype=torch.uint8)
        results['img'][box] = noise.numpy()
        for key, value in (('gt_seg_map', 255), ('pseudo_confidence', 0)):
            if key in results:
                results[key] = results[key].copy()
                results[key][box] = value

    def __repr__(self) -> str:
        return f'{type(self).__name__}(strong={self.strong!r}, cutout={self.cutout})'
