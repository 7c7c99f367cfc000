"""Say how good the pseudo-labels of a stage are: kept shares, accuracy, IoU, calibration, pictures.

Usage::

python tools/analysis_tools/inspect_pseudo_labels.py work_dirs/dmt/stage_1_a/pseudo_labels
# all rounds of a chain, and how they compare:
python tools/analysis_tools/inspect_pseudo_labels.py work_dirs/dmt
# labels of another origin, or masks at another place than those of the labeled images:
python tools/analysis_tools/inspect_pseudo_labels.py STORE --config CONFIG --mask-dir masks/all

Where an image has a mask, of whatever origin, its pseudo-label is compared with it; masks are
looked for where those of the labeled images are. Writes quality.json, quality.txt and sheet.png
(the best and worst images) to STORE/../inspection, or to --out-dir. Of a chain, this is done for
every stage, and rounds.json and rounds.txt go to WORK_DIR/inspection.
"""

import argparse
import json
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.config import resolve_config
from mmdmt.evaluation.label_source import LabelSource
from mmdmt.evaluation.pseudo_label_quality import PseudoLabelQuality, quality_table, rounds_table
from mmdmt.evaluation.visualization import (
    IGNORE_COLOR,
    class_legend,
    colorize_label,
    confidence_heatmap,
    overlay_label,
    stack_sheets,
    tile_images,
)
from mmdmt.files import atomic_path, write_text_atomically
from mmdmt.pseudo import PseudoLabelStore, apply_thresholds

#: Colors of kept pixels that are right and wrong.
RIGHT, WRONG = [0, 140, 0], [220, 0, 0]
COLUMNS = ['image', 'pseudo-label', 'confidence', 'truth', 'kept pixels']
LEGEND = {
    'kept, right': RIGHT,
    'kept, wrong': WRONG,
    'not kept, or no truth': IGNORE_COLOR,
    **{f'confidence {value:g}': confidence_heatmap([[value]])[0, 0] for value in (0, 0.5, 1)},
}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Say how good stored pseudo-labels are')
    parser.add_argument(
        'store',
        help='folder of the pseudo-labels, such as .../pseudo_labels, or work dir of a chain',
    )
    parser.add_argument(
        '--config', help='config with both training sources (default: config.py beside the store)'
    )
    parser.add_argument('--mask-dir', help='where masks are (default: as the labeled images)')
    parser.add_argument('--mask-suffix', help='end of their names (default: the same)')
    parser.add_argument('--out-dir', help='default: inspection, beside the store')
    parser.add_argument(
        '--pictures', type=int, default=4, help='best images on the sheet, and as many worst'
    )
    parser.add_argument('--cell', type=int, default=240, help='largest side of a picture, pixels')
    args = parser.parse_args(argv)
    if args.pictures < 0 or args.cell < 16:
        parser.error('--pictures must not be negative and --cell at least 16')
    return args


@dataclass
class ImageScore:
    """What an image is sorted by: accuracy of kept pixels, or mean confidence without truth."""

    name: str
    value: float
    text: str


class Inspector:
    """Reads a store once, counts, and ranks the images.

    Args:
        store: A finished store.
        source: What belongs to its names.
    """

    def __init__(self, store: PseudoLabelStore, source: LabelSource) -> None:
        self.store = store
        self.source = source
        self.manifest = store.manifest
        self.quality = PseudoLabelQuality(self.manifest['num_classes'])
        self.scores: List[ImageScore] = []

    def run(self) -> Dict[str, Any]:
        """Count all images.

        Returns:
            dict: Of :meth:`PseudoLabelQuality.compute`, with ``store``, ``checkpoint``, ``ratio``
            and ``thresholds`` of the manifest.
        """
        for name in self.manifest['files']:
            self._add(name)
        self.scores.sort(key=lambda score: -score.value)
        facts = {key: self.manifest.get(key) for key in ('checkpoint', 'ratio', 'thresholds')}
        return dict(store=str(self.store.root), **facts, **self.quality.compute())

    def _add(self, name: str) -> None:
        label, confidence = self.store.get(name)
        kept = apply_thresholds(label, confidence, self.manifest['thresholds']) != 255
        truth = self.source.truth(name, label.shape)
        self.quality.update(label, confidence, kept, truth)
        self.scores.append(_score(name, label, confidence, kept, truth))

    def sheet(self, pictures: int, cell: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB: a row for each of the best and worst images, and a legend."""
        count = min(pictures, (len(self.scores) + 1) // 2)
        chosen = [('best', score) for score in self.scores[:count]]
        chosen += [('worst', score) for score in self.scores[count:][-count:]]
        grid = tile_images(
            [self._row(score.name) for _, score in chosen],
            column_titles=COLUMNS,
            row_titles=[f'{kind}: {score.name}, {score.text}' for kind, score in chosen],
            cell_size=(cell, cell),
        )
        meta = self.source.metainfo
        parts = ((LEGEND, LEGEND.values()), (meta['classes'], meta['palette']))
        width = max(grid.shape[1], 640)
        return stack_sheets([grid, *(class_legend(*part, width) for part in parts)])

    def _row(self, name: str) -> List[Optional[np.ndarray]]:
        kept, confidence = self.store.get_thresholded(name)
        image, palette = self.source.image(name), self.source.metainfo['palette']
        if image.shape[:2] != kept.shape:
            image = cv2.resize(image, kept.shape[::-1], interpolation=cv2.INTER_AREA)
        truth = self.source.truth(name, kept.shape)
        row = [image, overlay_label(image, kept, palette), confidence_heatmap(confidence)]
        if truth is None:
            return row
        marks = np.where((kept == 255) | (truth == 255), 255, kept != truth).astype(np.uint8)
        return [*row, overlay_label(image, truth, palette), colorize_label(marks, [RIGHT, WRONG])]


def _score(
    name: str,
    label: np.ndarray,
    confidence: np.ndarray,
    kept: np.ndarray,
    truth: Optional[np.ndarray],
) -> ImageScore:
    """Rank of an image; where nothing can be compared it is between the best and the worst."""
    share = f'kept {100 * kept.mean():.0f} %'
    if truth is None:
        mean = float(confidence.mean())
        return ImageScore(name, mean, f'{share}, mean confidence {mean:.3f}')
    known = kept & (truth != 255)
    if not known.any():
        return ImageScore(name, 0.5, f'{share}, none of it with truth')
    accuracy = float((label == truth)[known].mean())
    return ImageScore(name, accuracy, f'{share}, {100 * accuracy:.1f} % of it correct')


def stages_of(folder: str) -> Dict[str, Path]:
    """Finished stores of a chain by the name of their stage, in order; none of a single store."""
    found = {}
    for path in Path(folder).glob('stage_*_*/pseudo_labels'):
        if (path / 'manifest.json').is_file():
            found[path.parent.name] = path
        else:
            print(f'{path} is left out: its labeling was not finished')
    return dict(sorted(found.items(), key=lambda pair: (int(pair[0].split('_')[1]), pair[0])))


def inspect_store(store: Path, out_dir: Path, args: argparse.Namespace) -> Dict[str, Any]:
    """Inspect a store; what ``quality.json`` holds."""
    config = args.config or str(store.absolute().parent / 'config.py')
    if not osp.isfile(config):
        raise FileNotFoundError(f'{config} does not exist: name the config with --config')
    cfg = resolve_config(Config.fromfile(config))
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    source = LabelSource(cfg, args.mask_dir, args.mask_suffix)
    inspector = Inspector(PseudoLabelStore(store), source)
    quality = dict(inspector.run(), class_names=list(source.metainfo['classes']))
    table = quality_table(quality, quality['class_names'])
    write_text_atomically(out_dir / 'quality.json', json.dumps(quality, indent=1))
    write_text_atomically(out_dir / 'quality.txt', table + '\n')
    print(table)
    if args.pictures:
        sheet = inspector.sheet(args.pictures, args.cell)
        with atomic_path(out_dir / 'sheet.png') as temporary:
            temporary.write_bytes(cv2.imencode('.png', sheet[..., ::-1])[1].tobytes())
    print(f'\nWritten to {out_dir}')
    return quality


def main(argv: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Inspect a store, or all of a chain.

    Args:
        argv: Command line, for calls from Python.

    Returns:
        dict: What ``quality.json`` holds; of a chain ``rounds.json``, which has it by stage.
    """
    args = parse_args(argv)
    stages = stages_of(args.store)
    if not stages:
        store = Path(args.store)
        return inspect_store(
            store, Path(args.out_dir or store.absolute().parent / 'inspection'), args
        )
    out = Path(args.out_dir or osp.join(args.store, 'inspection'))
    qualities = {}
    for name, store in stages.items():
        print(f'\n{name}')
        folder = out / name if args.out_dir else store.parent / 'inspection'
        qualities[name] = inspect_store(store, folder, args)
    table = rounds_table(qualities, next(iter(qualities.values()))['class_names'])
    write_text_atomically(out / 'rounds.json', json.dumps(qualities, indent=1))
    write_text_atomically(out / 'rounds.txt', table + '\n')
    print(f'\n{table}\n\nWritten to {out}')
    return qualities


if __name__ == '__main__':
    main()
