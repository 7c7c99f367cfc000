"""Drawing helpers: label maps, confidence maps and labeled contact sheets.

All images are numpy arrays (H, W, 3), uint8, RGB. Nothing here needs a display.
"""

from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

IGNORE_COLOR = (255, 255, 255)
FONT_SIZE = 13
MARGIN = 4

Color = Tuple[int, int, int]


def colorize_label(
    label: np.ndarray, palette: Sequence[Sequence[int]], ignore_color: Color = IGNORE_COLOR
) -> np.ndarray:
    """Paint a label map.

    Args:
        label: (H, W) integer labels.
        palette: RGB color of each class, as in ``dataset.metainfo['palette']``.
        ignore_color: RGB color of every label that is no class (255 among them).
    """
    label = np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in 'iub':
        raise ValueError(f'labels must be integers (H, W), got {label.dtype} {label.shape}')
    colors = np.array([*palette, ignore_color], dtype=np.uint8).reshape(-1, 3)
    last = len(colors) - 1
    label = label.astype(np.int64)
    return colors[np.where((label >= 0) & (label < last), label, last)]


def overlay_label(
    image: np.ndarray, label: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.6
) -> np.ndarray:
    """Blend a label map (H, W) over an image; labels that are no class leave it as it is.

    ``alpha``, 0 to 1, is the weight of the label's color.
    """
    label = np.asarray(label)
    _check_same_size(image, label)
    colors = colorize_label(label, palette)
    blended = (1 - alpha) * image.astype(np.float32) + alpha * colors.astype(np.float32)
    is_class = (label >= 0) & (label < len(palette))
    return np.where(is_class[..., None], np.rint(blended), image).astype(np.uint8)


def confidence_heatmap(confidence: np.ndarray, valid: Optional[np.ndarray] = None) -> np.ndarray:
    """Paint a confidence map, dark blue (0) to yellow (1).

    Args:
        confidence: (H, W) floats in [0, 1], or uint8 where 255 stands for 1.
        valid: (H, W) bool; pixels where it is False become white.
    """
    confidence = np.asarray(confidence)
    if confidence.dtype != np.uint8:
        confidence = np.rint(np.clip(confidence, 0, 1) * 255).astype(np.uint8)
    colors = cv2.applyColorMap(np.ascontiguousarray(confidence), cv2.COLORMAP_VIRIDIS)
    colors = np.ascontiguousarray(colors[..., ::-1])
    if valid is not None:
        _check_same_size(colors, valid)
        colors[~np.asarray(valid, dtype=bool)] = IGNORE_COLOR
    return colors


def to_uint8_image(image: Tensor) -> np.ndarray:
    """Convert a tensor (C, H, W) in [0, 1] on any device to an image.

    Three channels are RGB; of others the first three are shown, or the first one as gray.
    """
    if len(image) != 3:
        image = image[:3] if len(image) > 3 else image[:1].expand(3, -1, -1)
    array = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def tile_images(
    rows: Sequence[Sequence[Optional[np.ndarray]]],
    column_titles: Optional[Sequence[str]] = None,
    row_titles: Optional[Sequence[str]] = None,
    cell_size: Optional[Tuple[int, int]] = None,
) -> np.ndarray:
    """Arrange images in a grid with titles.

    Args:
        rows: Rows of images; None leaves a cell empty, and rows may differ in length.
        column_titles: Text above each column.
        row_titles: Text above each row's first image, one line of its own.
        cell_size: Largest height and width of a cell; by default those of the largest image. Larger
            images are scaled down, none is scaled up, and cells are as large as images need.

    Raises:
        ValueError: If there is no image at all, or the number of row titles differs from that of
            the rows.
    """
    images = [image for row in rows for image in row if image is not None]
    if not images:
        raise ValueError('tile_images needs at least one image')
    if row_titles is not None and len(row_titles) != len(rows):
        raise ValueError(f'tile_images got {len(row_titles)} row titles for {len(rows)} rows')
    if cell_size is not None:
        rows = [[None if each is None else _fit(each, *cell_size) for each in row] for row in rows]
        images = [image for row in rows for image in row if image is not None]
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    columns = max(len(row) for row in rows)
    sheet_width = columns * (int(width) + MARGIN) + MARGIN
    bands = [] if column_titles is None else [_titles(column_titles, int(width), sheet_width)]
    for index, row in enumerate(rows):
        if row_titles is not None:
            bands.append(_titles([row_titles[index]], sheet_width, sheet_width))
        bands.append(_band(row, int(height), int(width), sheet_width))
    return np.concatenate(bands)


def class_legend(
    classes: Sequence[str], palette: Sequence[Sequence[int]], width: int = 640
) -> np.ndarray:
    """Draw class names beside their colors, in as many lines of ``width`` pixels as needed."""
    box, line = FONT_SIZE, FONT_SIZE + 2 * MARGIN
    font = _font()
    places: List[Tuple[int, int]] = []
    left, top = MARGIN, MARGIN
    for name in classes:
        needed = box + 3 * MARGIN + int(font.getlength(name))
        if left > MARGIN and left + needed > width:
            left, top = MARGIN, top + line
        places.append((left, top))
        left += needed
    canvas = Image.new('RGB', (width, top + line), IGNORE_COLOR)
    draw = ImageDraw.Draw(canvas)
    for name, color, (x, y) in zip(classes, palette, places):
        draw.rectangle([x, y, x + box, y + box], fill=tuple(color), outline=(0, 0, 0))
        draw.text((x + box + MARGIN, y), name, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)


def stack_sheets(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Put sheets of different widths below each other on white."""
    width = max(sheet.shape[1] for sheet in sheets)
    gaps = [((0, 0), (0, width - sheet.shape[1]), (0, 0)) for sheet in sheets]
    return np.concatenate([np.pad(*pair, constant_values=255) for pair in zip(sheets, gaps)])


def save_image(path: Union[str, Path], image: np.ndarray) -> Path:
    """Write an image, creating its folder; the ending of the path decides the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path)
    return path


def _check_same_size(image: np.ndarray, other: np.ndarray) -> None:
    if image.shape[:2] != other.shape[:2]:
        raise ValueError(f'image {image.shape[:2]} and map {other.shape[:2]} differ in size')


def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _titles(titles: Sequence[str], step: int, width: int) -> np.ndarray:
    """Draw one line of text, a title every ``step`` pixels."""
    canvas = Image.new('RGB', (width, FONT_SIZE + 2 * MARGIN), IGNORE_COLOR)
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(titles):
        left = MARGIN + index * (step + MARGIN)
        draw.text((left, MARGIN), _shorten(title, step), fill=(0, 0, 0), font=_font())
    return np.asarray(canvas)


def _shorten(text: str, width: int) -> str:
    """Cut a text in the middle so that it fits into a cell."""
    font = _font()
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        cut = f'{text[: keep - keep // 2]}...{text[len(text) - keep // 2 :]}'
        if font.getlength(cut) <= width:
            break
    return cut


def _band(
    row: Sequence[Optional[np.ndarray]], height: int, width: int, sheet_width: int
) -> np.ndarray:
    """Draw one row of images."""
    band = np.full((height + MARGIN, sheet_width, 3), IGNORE_COLOR, dtype=np.uint8)
    for index, image in enumerate(row):
        if image is None:
            continue
        left = MARGIN + index * (width + MARGIN)
        band[: image.shape[0], left : left + image.shape[1]] = image
    return band


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(height / image.shape[0], width / image.shape[1], 1.0)
    if scale == 1.0:
        return image
    size = (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
