"""Strong augmentation of single pseudo-labeled images."""

from collections.abc import Sequence
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
        value_range (Sequence[float]): Lowest and highest value of images; what lies beyond it is
            cut off. Defaults to (0, 255).

    Required keys: ``img`` (H, W, C) of any type, in BGR if C is 3. Modified keys: ``img``; in the
    box ``gt_seg_map`` is 255 and ``pseudo_confidence`` 0, where there are any, as in padding.
    """

    def __init__(
        self,
        strong: Optional[dict] = None,
        cutout: Optional[Dict[str, Any]] = None,
        value_range: Sequence[float] = (0, 255),
    ) -> None:
        low, high = value_range
        check_range('StrongPseudoAugment.value_range', high, np.nextafter(low, np.inf))
        self.value_range = low, high
        refuse_unknown_keys('StrongPseudoAugment.cutout', cutout or {}, CUTOUT)
        self.cutout = dict(CUTOUT, **(cutout or {}))
        check_range('StrongPseudoAugment.cutout.prob', self.cutout['prob'], 0, 1)
        self.strong = MODELS.build(strong or dict(type='mmdmt.StrongAugment'))

    def transform(self, results: dict) -> dict:
        """Change colors, then cut a box out."""
        image, (low, high) = results['img'], self.value_range
        order = slice(None, None, -1 if image.shape[-1] == 3 else 1)
        unit = (np.ascontiguousarray(image[..., order]).astype(np.float32) - low) / (high - low)
        unit = self.strong(torch.from_numpy(unit).permute(2, 0, 1)[None].clamp(0, 1))[0]
        found = unit.permute(1, 2, 0).numpy() * (high - low) + low
        found = found.round() if image.dtype.kind in 'ui' else found
        results['img'] = np.ascontiguousarray(found[..., order].astype(image.dtype))
        if torch.rand(()) < self.cutout['prob']:
            self._cut_out(results)
        return results

    def _cut_out(self, results: dict) -> None:
        size, ranges = results['img'].shape[:2], (self.cutout['area'], self.cutout['aspect'])
        top, left, bottom, right = area_boxes(1, size, *ranges)[0, 0].tolist()
        box = slice(top, bottom), slice(left, right)
        image, (low, high) = results['img'], self.value_range
        shape = bottom - top, right - left, image.shape[-1]
        if image.dtype == np.uint8:
            image[box] = torch.randint(int(low), int(high) + 1, shape, dtype=torch.uint8).numpy()
        else:
            image[box] = torch.rand(shape).numpy() * (high - low) + low
        for key, value in (('gt_seg_map', 255), ('pseudo_confidence', 0)):
            if key in results:
                results[key] = results[key].copy()
                results[key][box] = value

    def __repr__(self) -> str:
        return f'{type(self).__name__}(strong={self.strong!r}, cutout={self.cutout})'
