"""Thumbnails that share a number of bytes."""

import base64
import io
from collections.abc import Sequence
from typing import List, Optional

import numpy as np
from PIL import Image

from mmdmt.evaluation.report.predictions import shrink
from mmdmt.evaluation.visualization import confidence_heatmap

#: Longest sides that are tried until all thumbnails fit, and the quality of photographs.
SIDES = ((256, 82), (200, 80), (160, 78), (128, 74), (96, 70), (72, 62), (48, 55), (32, 45))
#: Palette of the maps of errors: right, wrong; where nothing is known they are transparent.
ERROR_COLORS = ((176, 186, 196), (213, 94, 0))


class Gallery:
    """Collects pictures, then encodes them all at one size.

    Args:
        palette: RGB color of each class.
    """

    def __init__(self, palette: Sequence[Sequence[int]]) -> None:
        self.palette = [tuple(color) for color in palette]
        self._pictures: List[tuple] = []

    def photo(self, image: Optional[np.ndarray]) -> Optional[int]:
        """Add (h, w, 3) RGB; the number to find it by, None for None."""
        return self._add('photo', image)

    def confidence(self, values: np.ndarray) -> Optional[int]:
        """Add (h, w) uint8, painted dark blue (0) to yellow (255)."""
        return self._add('photo', confidence_heatmap(values))

    def label(self, label: Optional[np.ndarray]) -> Optional[int]:
        """Add (h, w) classes in the colors of the dataset, transparent where there is none."""
        return self._add('label', label)

    def errors(self, label: np.ndarray, truth: Optional[np.ndarray]) -> Optional[int]:
        """Add where (h, w) labels are wrong; without truth there is nothing to add."""
        if truth is None:
            return None
        if truth.shape != label.shape:
            truth = np.asarray(Image.fromarray(truth).resize(label.shape[::-1], Image.NEAREST))
        known = (truth != 255) & (label != 255)
        return self._add('error', np.where(known, label != truth, 255).astype(np.uint8))

    def _add(self, kind: str, array: Optional[np.ndarray]) -> Optional[int]:
        if array is None:
            return None
        self._pictures.append((kind, array))
        return len(self._pictures) - 1

    def encode(self, budget: int) -> List[Optional[str]]:
        """All pictures as addresses of type ``data:``, at the largest size that fits.

        Args:
            budget: Bytes of all addresses together. Where even the smallest size does not fit,
                the last pictures are None.
        """
        for side, quality in SIDES:
            found, used = [], 0
            for kind, array in self._pictures:
                found.append(self._encode(kind, array, side, quality))
                used += len(found[-1])
                if used > budget:
                    break
            else:
                return list(found)
        return [*found[:-1], *[None] * (len(self._pictures) - len(found) + 1)]

    def _encode(self, kind: str, array: np.ndarray, side: int, quality: int) -> str:
        stream = io.BytesIO()
        if kind == 'photo':
            image = Image.fromarray(np.ascontiguousarray(shrink(array, side)))
            image.save(stream, 'JPEG', quality=quality, optimize=True)
        else:
            colors = self.palette if kind == 'label' else ERROR_COLORS
            colors = [*colors[:255], *[(0, 0, 0)] * (256 - len(colors[:255]))]
            image = Image.fromarray(np.ascontiguousarray(shrink(array, side, nearest=True)))
            image.putpalette([level for color in colors for level in color])
            image.save(stream, 'PNG', optimize=True, transparency=255)
        kind = 'jpeg' if kind == 'photo' else 'png'
        return f'data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}'
