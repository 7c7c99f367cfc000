"""Predict images with what was trained: masks, overlays and confidence maps.

Usage::

    python tools/predict.py WORK_DIR IMAGES --out DIR                   # the final checkpoint
    python tools/predict.py CHECKPOINT IMAGES --out DIR --network student
    python tools/predict.py CHECKPOINT IMAGES --out DIR --config CONFIG # of plain mmseg
    python tools/predict.py WORK_DIR list.txt --out DIR --save mask overlay confidence

IMAGES are folders, images, or text files with a path in each line. DIR/masks has a PNG of class ids
for each image, under its own name and folder.
"""

import argparse
import ast
import json
import os
import os.path as osp
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checks import listed
from mmdmt.datasets.rasters import is_windowed, raster_info
from mmdmt.evaluation.large_images import NO_CLASS, predict_large
from mmdmt.evaluation.visualization import overlay_label
from mmdmt.export.loading import LoadedSegmentor, add_source_options, load_source
from mmdmt.files import atomic_path, require_writable, write_text_atomically
from mmdmt.pseudo.prediction import predict_probabilities
from mmdmt.registry import TRANSFORMS

KINDS = dict(mask='masks', overlay='overlays', confidence='confidence')
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.npy'}

# Steps of a test pipeline that load an image and leave it as it is.
AS_IT_IS = {'LoadImageFromFile', 'LoadBands', 'PackSegInputs', 'PackSemiInputs'}


class Item(NamedTuple):
    """An image, and where below DIR/masks its mask goes, without suffix."""

    path: Path
    name: str


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Predict masks of images')
    add_source_options(parser)
    parser.add_argument('images', nargs='+', help='folders, images, or text files of paths')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--save',
        nargs='+',
        choices=list(KINDS),
        default=['mask'],
        help='what to write: class ids (default); classes painted over the image; confidence as '
        'gray values, 255 is 1',
    )
    parser.add_argument(
        '--palette', action='store_true', help='masks with the colors of the classes as palette'
    )
    parser.add_argument(
        '--original-values',
        action='store_true',
        help='masks with the values that the masks of the training data have, not class ids',
    )
    parser.add_argument('--device', default=get_device(), help='such as cpu or cuda:0')
    parser.add_argument('--batch-size', type=int, default=1, help='images of one size at once')
    parser.add_argument('--workers', type=int, default=0, help='processes that load images')
    parser.add_argument('--amp', action='store_true', help='half precision')
    parser.add_argument(
        '--tta', action='store_true', help='mean over flips and the scales 0.75, 1 and 1.25'
    )
    parser.add_argument(
        '--window',
        type=int,
        metavar='PIXELS',
        help='predict square windows of this side, which overlap by a third, instead of whole '
        'images: for images that do not fit into memory',
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--overwrite', action='store_true', help='replace what is in DIR')
    existing.add_argument('--resume', action='store_true', help='leave out what is in DIR')
    return parser.parse_args()


# --- Which images --------------------------------------------------------------------------------


def find_images(given: Sequence[str], out: Path) -> List[Item]:
    """All images of folders, lists and files, with names that no two of them share.

    Raises:
        FileNotFoundError: A path does not exist, or there is no image.
    """
    pairs: List[Tuple[Path, Path]] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            found = (p for p in sorted(path.rglob('*')) if p.suffix.lower() in SUFFIXES)
            pairs += [(p, p.relative_to(path)) for p in found if out not in p.resolve().parents]
        elif path.suffix.lower() == '.txt' and path.is_file():
            pairs += _of_list(path)
        elif path.is_file():
            pairs.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f'{path} does not exist: name images, folders or .txt lists')
    if not pairs:
        raise FileNotFoundError(f'no image in {", ".join(given)}: known are {sorted(SUFFIXES)}')
    stems = Counter(name.with_suffix('') for _, name in pairs)
    # Beside a.jpg, a.png becomes a.png.png.
    items = [
        Item(path, str(name if stems[name.with_suffix('')] > 1 else name.with_suffix('')))
        for path, name in dict.fromkeys(pairs)
    ]
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise ValueError(f'several images would be written as {listed(twice)}: predict apart')
    return items


def _of_list(path: Path) -> Iterator[Tuple[Path, Path]]:
    """Images of a list, relative to where the command runs or to the list."""
    lines = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    paths = [Path(line) for line in lines if line and not line.startswith('#')]
    paths = [p if p.exists() else path.parent / p for p in paths]
    folders = [osp.abspath(p.parent) for p in paths]
    common = osp.commonpath(folders) if folders else ''
    for each in paths:
        yield each, Path(osp.relpath(osp.abspath(each), common))


class Images(Dataset):
    """Images through the test pipeline; what cannot be loaded is an error message."""

    def __init__(self, items: Sequence[Item], pipeline: Sequence[dict], keep: bool) -> None:
        self.items, self.keep = items, keep
        self.steps = [TRANSFORMS.build(step) for step in pipeline]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tuple[int, Any, Optional[np.ndarray]]:
        """Index, batch of one or error message, and the image as loaded if it is kept."""
        results: Any = dict(img_path=str(self.items[index].path), seg_fields=[])
        results['reduce_zero_label'] = False
        loaded = None
        try:
            for step in self.steps:
                results = step(results)
                if self.keep and loaded is None and isinstance(results.get('img'), np.ndarray):
                    loaded = results['img'].copy()
        except Exception as error:
            return index, f'{type(error).__name__}: {error}', None
        return index, results, loaded


# --- What is written -----------------------------------------------------------------------------


class Writer:
    """Writes masks, overlays and confidence maps, each complete or not at all."""

    def __init__(self, args: argparse.Namespace, loaded: LoadedSegmentor) -> None:
        self.out, self.kinds = Path(args.out), args.save
        self.palette, self.threshold = loaded.palette, loaded.threshold
        self.colors = np.array(loaded.palette, np.uint8).ravel().tolist() if args.palette else None
        self.values = original_values(loaded) if args.original_values else None
        if self.values is not None and self.values.ndim > 1 and args.palette:
            raise ValueError('--palette: with --original-values the masks are colors already')

    def path(self, kind: str, item: Item) -> Path:
        """Where something of an image goes."""
        return self.out / KINDS[kind] / f'{item.name}.png'

    def exists(self, item: Item) -> bool:
        """Whether all that is wanted of an image is there."""
        return all(self.path(kind, item).is_file() for kind in self.kinds)

    def write(self, item: Item, probs: torch.Tensor, loaded: Optional[np.ndarray]) -> np.ndarray:
        """Write what is wanted of probabilities (C, H, W); the pixels of each class."""
        if self.threshold is None:
            confidence, label = probs.max(dim=0)
        else:  # of a head of one channel
            label = (probs[1] > self.threshold).long()
            confidence = probs.gather(0, label[None])[0]
        label = label.cpu().numpy()
        gray = (confidence.clamp(0, 1) * 255).round().byte().cpu().numpy()
        if 'overlay' in self.kinds:
            image = to_rgb(loaded, label.shape)
            painted = overlay_label(image, label, self.palette, alpha=0.5)
            self._save(self.path('overlay', item), Image.fromarray(painted))
        self.write_classes(item, label, gray)
        return np.bincount(label.ravel(), minlength=len(probs))

    def write_classes(self, item: Item, label: np.ndarray, gray: Optional[np.ndarray]) -> None:
        """Write class ids (H, W), 255 where nothing was measured, and confidence if wanted."""
        if 'confidence' in self.kinds:
            self._save(self.path('confidence', item), Image.fromarray(gray))
        if 'mask' in self.kinds:  # last: an image with a mask is finished
            self._save(self.path('mask', item), self._mask(label))

    def _mask(self, label: np.ndarray) -> Image.Image:
        values = label
        if self.values is not None:
            values = self.values[np.minimum(label, len(self.values) - 1)]
            values[label >= len(self.values)] = NO_CLASS
        largest = values.max() if values.size else 0
        mask = Image.fromarray(values.astype(np.uint8 if largest < 256 else np.uint16))
        if self.colors is not None and largest < 256:
            mask = mask.convert('L')
            mask.putpalette(self.colors)
        return mask

    def _save(self, path: Path, image: Image.Image) -> None:
        with atomic_path(path) as temporary:
            image.save(temporary, format='PNG')


def original_values(loaded: LoadedSegmentor) -> np.ndarray:
    """What masks of the training data hold for each class: (C,), or (C, 3) colors.

    Of several values of one class it is the first.

    Raises:
        ValueError: The config says nothing of it.
    """
    given, count = loaded.masks.get('mask_values'), len(loaded.classes)
    dataset = (loaded.cfg.get('test_dataloader') or {}).get('dataset') or {}
    if loaded.masks.get('reduce_zero_label') or dataset.get('reduce_zero_label'):
        return np.arange(1, count + 1)
    if given is None:
        raise ValueError(
            '--original-values: the config has no `mask_values`, so that masks hold class ids as '
            'they are; leave the option out'
        )
    first: Dict[Any, Any] = {}
    pairs = given.items() if isinstance(given, dict) else ((v, i) for i, v in enumerate(given))
    for value, name in pairs:
        if name is not None:
            first.setdefault(name, ast.literal_eval(str(value)))  # a color may be text
    return np.array(list(first.values()))


def to_rgb(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """An image as loaded, BGR or of any bands and depth, as RGB uint8 of a size (H, W)."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        values = image.astype(np.float32)
        # mmcv loads 8-bit images as floats with to_float32; others are stretched to be seen.
        if not 1 < np.nanmax(values) <= 255:
            low, high = np.nanpercentile(values, (1, 99))
            values = (values - low) / max(high - low, 1e-6) * 255
        image = np.nan_to_num(values).clip(0, 255).astype(np.uint8)
    image = np.ascontiguousarray(image)
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1])


# --- Predicting ----------------------------------------------------------------------------------


def use_windows(model: torch.nn.Module, side: int) -> None:
    """Let every network of a model predict by overlapping windows."""
    for part in model.modules():
        if hasattr(part, 'slide_inference'):
            stride = max(1, side * 2 // 3)
            part.test_cfg = ConfigDict(
                mode='slide', crop_size=(side, side), stride=(stride, stride)
            )


def goes_by_windows(args: argparse.Namespace, loaded: LoadedSegmentor, item: Item) -> bool:
    """Whether an image is larger than a window, and can be read and predicted by windows.

    Only TIFF and ``.npy`` can be read so. Views, overlays and other sizes need all of an image, a
    head with a threshold is not for means; ``LoadImageFromFile`` makes 8-bit colors of all TIFFs.
    """
    steps = [str(step['type']).split('.')[-1] for step in loaded.pipeline]
    whole = args.tta or 'overlay' in args.save or loaded.threshold is not None
    if not args.window or whole or set(steps) - AS_IT_IS or not is_windowed(str(item.path)):
        return False
    try:
        info = raster_info(str(item.path))
    except (OSError, ValueError):  # said where it is loaded
        return False
    colors = info.dtype == np.uint8 and info.bands in (3, 4)
    colors = colors and loaded.pipeline[0].get('color_type', 'color') == 'color'
    return max(info.height, info.width) > args.window and (steps[0] == 'LoadBands' or colors)


def predict_windows(
    args: argparse.Namespace, loaded: LoadedSegmentor, item: Item, writer: Writer
) -> np.ndarray:
    """Predict and write an image of which one window at a time is loaded; pixels of each class."""
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        label, sure = (osp.join(folder, name) for name in ('label.npy', 'sure.npy'))
        wanted = sure if 'confidence' in args.save else None
        settings = dict(load=loaded.pipeline[0], confidence_path=wanted, amp=args.amp)
        facts = predict_large(loaded.model, str(item.path), label, args.window, 1 / 3, **settings)
        gray = None
        if wanted:
            gray = np.empty((facts['height'], facts['width']), np.uint8)
            for row, values in zip(gray, np.load(sure, mmap_mode='r')):
                row[:] = (values.clip(0, 1) * 255).round()
        writer.write_classes(item, np.load(label), gray)
    return np.array([facts['pixels'].get(index, 0) for index in range(len(loaded.classes))])


def predict(
    args: argparse.Namespace, loaded: LoadedSegmentor, items: List[Item], writer: Writer
) -> Tuple[np.ndarray, Dict[Item, str]]:
    """Predict and write images; pixels of each class, and what went wrong with which image."""
    large = [item for item in items if goes_by_windows(args, loaded, item)]
    items = [item for item in items if item not in set(large)]
    images = Images(items, loaded.pipeline, 'overlay' in args.save)
    loader = DataLoader(images, args.batch_size, num_workers=args.workers, collate_fn=list)
    tta = dict(flip=True, scales=[0.75, 1.0, 1.25]) if args.tta else None
    pixels, failed = np.zeros(len(loaded.classes), np.int64), {}
    # None: no bar where the output is no terminal.
    total = len(items) + len(large)
    with tqdm(total=total, unit='image', disable=None, file=sys.stderr) as bar:
        for item in large:
            try:
                pixels += predict_windows(args, loaded, item, writer)
            except Exception as error:
                failed[item] = f'{type(error).__name__}: {error}'
            bar.update()
        for batch in loader:
            broken = [(items[i], found) for i, found, _ in batch if isinstance(found, str)]
            failed.update(broken)
            rows = [row for row in batch if not isinstance(row[1], str)]
            for group in [rows] if len(rows) > 1 else [[row] for row in rows]:
                pixels += _predict(args, loaded, items, writer, group, tta, failed)
            bar.update(len(batch))
    return pixels, failed


def _predict(args, loaded, items, writer, rows, tta, failed) -> np.ndarray:
    """Pixels of each class of some images; where they fail together, one by one."""
    batch = dict(
        inputs=[found['inputs'] for _, found, _ in rows],
        data_samples=[found['data_samples'] for _, found, _ in rows],
    )
    try:
        with torch.no_grad():
            probs = predict_probabilities(loaded.model, batch, args.amp, tta)
    except Exception as error:
        if len(rows) > 1:
            each = [_predict(args, loaded, items, writer, [r], tta, failed) for r in rows]
            return np.sum(each, axis=0)
        failed[items[rows[0][0]]] = f'{type(error).__name__}: {error}'
        return np.zeros(len(loaded.classes), np.int64)
    written = [writer.write(items[i], p, image) for (i, _, image), p in zip(rows, probs)]
    return np.sum(written, axis=0)


def choose(args: argparse.Namespace, items: List[Item], writer: Writer) -> List[Item]:
    """The images to predict, in view of what is there already.

    Raises:
        FileExistsError: Something is there, and neither --resume nor --overwrite is given.
    """
    if args.resume:
        return [item for item in items if not writer.exists(item)]
    paths = [writer.path(kind, item) for item in items for kind in args.save]
    there = [] if args.overwrite else [str(path) for path in paths if path.exists()]
    if there:
        raise FileExistsError(
            f'{len(there)} files are there already, such as {there[0]}: give --resume to leave '
            'them, --overwrite to replace them, or another --out'
        )
    return items


def main() -> None:
    """Predict."""
    args = parse_args()
    try:
        items = find_images(args.images, Path(args.out).resolve())
        require_writable(args.out, '--out')
        loaded = load_source(args, args.device)
        if not loaded.pipeline:
            raise ValueError(f'the config in {loaded.checkpoint} has no test pipeline: --config')
        writer = Writer(args, loaded)
        wanted = choose(args, items, writer)
    except (OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    if args.window:
        use_windows(loaded.model, args.window)
    began = time.monotonic()
    pixels, failed = predict(args, loaded, wanted, writer)
    seconds = time.monotonic() - began
    report(args, loaded, pixels, failed, (len(items), len(wanted), seconds))


def report(args, loaded, pixels, failed, facts) -> None:
    """Say and write what was done; the exit code is 1 if an image failed."""
    total, wanted, seconds = facts
    done = wanted - len(failed)
    shares = pixels / max(1, pixels.sum())
    record = dict(
        checkpoint=os.fspath(loaded.checkpoint),
        network='+'.join(loaded.networks),
        temperature=loaded.temperature,
        classes=loaded.classes,
        palette=loaded.palette,
        images=done,
        failed={os.fspath(item.path): message for item, message in failed.items()},
        class_shares=dict(zip(loaded.classes, shares.round(5).tolist())),
    )
    write_text_atomically(Path(args.out) / 'prediction.json', json.dumps(record, indent=1))
    network = f', network {"+".join(loaded.networks)}' if loaded.networks[0] else ''
    print(f'{loaded.checkpoint}{network}')
    left = f', {total - wanted} were there already' if total > wanted else ''
    print(f'{done} images in {seconds:.1f} s ({done / max(seconds, 1e-9):.2f} images/s){left}')
    if done:
        parts = [f'{name} {share:.1%}' for name, share in zip(loaded.classes, shares) if share]
        print(f'class shares: {listed(parts, 20)}')
    print(f'written to {args.out}: {", ".join(KINDS[kind] for kind in args.save)}')
    for item, message in failed.items():
        print(f'FAILED {item.path}: {message.splitlines()[0]}', file=sys.stderr)
    if failed:
        sys.exit(f'{len(failed)} of {wanted} images failed')


if __name__ == '__main__':
    main()
