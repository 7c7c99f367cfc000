"""Scores and predictions of a run: its own records, else one pass over its test images."""

import copy
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor
from tqdm import tqdm

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.evaluation.label_source import LabelSource, as_rgb
from mmdmt.evaluation.pseudo_label_quality import PseudoLabelQuality
from mmdmt.evaluation.record_metric import scores_of
from mmdmt.evaluation.report.runs import Run, first_line
from mmdmt.registry import DATASETS, MODELS
from mmdmt.weights import load_weights

#: Longest side, in pixels, of maps that are kept for the browser.
KEPT_SIDE = 256


@dataclass
class Maps:
    """What a network, or a stored pseudo-label, says of an image, scaled down.

    Attributes:
        label: (h, w) uint8 classes, 255 where there is none.
        confidence: (h, w) uint8, 255 for 1.
        mean_confidence: At full size.
        error: Of the pixels with label and truth, the share that is wrong; None without any.
        kept: Share of the pixels that have a label.
        classes: Per class that is there ``[pixels of truth, of prediction, of both]``.
    """

    label: np.ndarray
    confidence: np.ndarray
    mean_confidence: float
    error: Optional[float]
    kept: float
    classes: Dict[int, List[int]]


@dataclass
class Picture:
    """An image of the browser: (h, w, 3) RGB, its truth (h, w) if there is one, maps by column."""

    name: str
    image: Optional[np.ndarray] = None
    truth: Optional[np.ndarray] = None
    maps: Dict[str, Maps] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Mean error of the columns; without truth, how unsure they are."""
        errors = [maps.error for maps in self.maps.values() if maps.error is not None]
        return float(np.mean(errors or [1 - maps.mean_confidence for maps in self.maps.values()]))


def summarize(
    label: np.ndarray, confidence: np.ndarray, truth: Optional[np.ndarray], ignore: int = 255
) -> Maps:
    """Statistics at full size, maps at that of the browser; all (H, W)."""
    error, classes = None, {}
    known = label != ignore
    if truth is not None:
        known = known & (truth != ignore)
        error = float((label != truth)[known].mean()) if known.any() else None
    for index in np.union1d(label, label if truth is None else truth):
        if index != ignore:
            own = (label == index) & known
            true = np.zeros_like(own) if truth is None else truth == index
            classes[int(index)] = [int(part.sum()) for part in (true, own, own & true)]
    return Maps(
        shrink(label, nearest=True),
        shrink(np.rint(confidence * 255).astype(np.uint8)),
        float(confidence.mean()),
        error,
        float((label != ignore).mean()),
        classes,
    )


def shrink(array: np.ndarray, side: int = KEPT_SIDE, nearest: bool = False) -> np.ndarray:
    """Scale an image or a map down to a longest side."""
    scale = side / max(array.shape[:2])
    if scale >= 1:
        return array
    size = [max(1, round(length * scale)) for length in array.shape[1::-1]]
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA
    return cv2.resize(array, size, interpolation=how)


def read_records(run: Run) -> List[Dict[str, Any]]:
    """Evaluations that lie in the work dir, the one to show first.

    Those on test images come before those on validation images, those of the last checkpoint
    before those of one that was selected, those of the network that predicts before others.
    """
    found = []
    for file in sorted(run.path.glob('evaluation/*.json')):
        try:
            record = json.loads(file.read_text(encoding='utf-8'))
            np.array(record['confusion'], np.int64).reshape(len(record['classes']), -1)
            found.append(dict(record, origin=f'evaluation/{file.name}'))
        except (ValueError, KeyError, TypeError) as error:
            run.notes.append(f'evaluation/{file.name} cannot be read: {first_line(error)}.')
    selected = ('', 'last', None)  # by nothing
    return sorted(
        found,
        key=lambda record: (
            record.get('dataset') != 'test',
            record.get('selected_by') not in selected,
            not record.get('default', True),
            record['origin'],
        ),
    )


def evaluation_data(run: Run) -> Optional[Dict[str, Any]]:
    """Config of the test images, else of the validation images; its key is ``part``."""
    for part in ('test', 'val'):
        loader = (run.cfg or {}).get(f'{part}_dataloader')
        if loader:
            return dict(part=part, dataset=loader.dataset)
    return None


class Predictor:
    """The network of a run, on a GPU if there is one.

    Args:
        run: With a config and a checkpoint.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.cfg = run, run.cfg
        with self._scope():
            model = MODELS.build(copy.deepcopy(self.cfg.model))
        load_weights(model, load_checkpoint_file(run.checkpoint), str(run.checkpoint))
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.model = revert_sync_batchnorm(model).to(device).eval()

    def _scope(self):
        return DefaultScope.overwrite_default_scope(self.cfg.get('default_scope', 'mmseg'))

    def dataset(self, source: Dict[str, Any]) -> Any:
        """Build a dataset of a config."""
        with self._scope():
            return DATASETS.build(copy.deepcopy(source))

    def predict(self, dataset: Any, indices: Sequence[int]) -> Iterator[Dict[str, Any]]:
        """``name``, ``path``, ``image``, (H, W) ``label``, ``confidence``, ``truth`` or None."""
        for index in indices:
            data = dataset[index]
            image = _visible(data['inputs'], getattr(dataset, 'pipeline', None))
            with torch.no_grad():
                sample = self.model.test_step(pseudo_collate([data]))[0]
            label, confidence = _decide(sample.seg_logits.data.float(), sample)
            truth = sample.get('gt_sem_seg')
            truth = None if truth is None else truth.data.squeeze(0).cpu().numpy()
            path = sample.metainfo.get('img_path', str(index))
            yield dict(
                name=Path(path).stem,
                path=path,
                image=image,
                label=label,
                confidence=confidence,
                truth=None if truth is None else truth.astype(np.uint8),
            )


def _visible(inputs: Tensor, pipeline: Optional[Compose]) -> np.ndarray:
    """(h, w, 3) RGB of what a pipeline packed; of other bands the first three."""
    array = inputs.cpu().numpy().transpose(1, 2, 0)
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = (255 * (array - low) / max(high - low, 1e-6)).astype(np.uint8)
    array = array[..., :3] if array.shape[2] >= 3 else array[..., :1].repeat(3, 2)
    return as_rgb(array, pipeline)


def _decide(logits: Tensor, sample: Any) -> tuple:
    """Label and confidence (H, W) from logits (C, H, W); one channel is that of the second class.

    mmseg decides for the latter, by the threshold of the head.
    """
    if logits.shape[0] > 1:
        confidence, label = logits.softmax(0).max(0)
    else:
        label = sample.pred_sem_seg.data.squeeze(0)
        prob = logits.sigmoid().squeeze(0)
        confidence = torch.where(label > 0, prob, 1 - prob)
    return label.cpu().numpy().astype(np.uint8), confidence.cpu().numpy()


def evaluate(
    predictor: Predictor,
    run: Run,
    pictures: Dict[str, Picture],
    only: Optional[Collection[str]] = None,
    counted: bool = True,
) -> Dict[str, Any]:
    """Predict the test images once: counts as a record, and maps for the browser.

    Args:
        predictor: Of the run.
        run: The run.
        pictures: By path of the image; maps of the run are added to those of ``only``.
        only: Paths of the images to show. None: all are added.
        counted: Whether scores are needed; if not, only those images are predicted.

    Returns:
        dict: As ``WORK_DIR/evaluation`` holds them, with ``reliability``; empty without truth.
    """
    data = evaluation_data(run)
    dataset = predictor.dataset(data['dataset'])
    classes = list(dataset.metainfo['classes'])
    quality = PseudoLabelQuality(len(classes))
    indices = range(len(dataset))
    if not counted and only is not None:
        indices = [i for i in indices if dataset.get_data_info(i).get('img_path') in only]
    steps = tqdm(indices, desc=f'{run.name}: test images', leave=False)
    for found in predictor.predict(dataset, steps):
        label, truth = found['label'], found['truth']
        if only is None or found['path'] in only:
            add_maps(pictures, run.name, found)
        if truth is not None:
            quality.update(label, found['confidence'], label != 255, truth)
    if not counted or not quality.confusion.sum():
        return {}
    origin = f'predicted with {relative(run.checkpoint, run.path)}'
    record = dict(classes=classes, dataset=data['part'], origin=origin)
    record['reliability'] = reliability_of(quality)
    return dict(record, **scores_of(quality.confusion[:, :-1]))


def predict_unlabeled(
    predictor: Predictor,
    source: LabelSource,
    names: Collection[str],
    pictures: Dict[str, Picture],
    column: str,
) -> None:
    """Add maps of unlabeled images, loaded as test images are; with truth where it exists."""
    test = evaluation_data(predictor.run)['dataset']
    while 'pipeline' not in test:
        test = test['dataset'] if 'dataset' in test else test['datasets'][0]
    loads_labels = ('Annotations', 'LoadMasks')
    pipeline = [s for s in test['pipeline'] if not any(n in str(s['type']) for n in loads_labels)]
    dataset = predictor.dataset(dict(source.unlabeled_cfg, pipeline=pipeline))
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    indices = [index for index, info in enumerate(infos) if info['name'] in names]
    for index, found in zip(indices, predictor.predict(dataset, indices)):
        name = dataset.get_data_info(index)['name']
        truth = source.truth(name, found['label'].shape)
        add_maps(pictures, column, dict(found, path=name, name=name, truth=truth))


def add_maps(pictures: Dict[str, Picture], column: str, found: Dict[str, Any]) -> None:
    """Add maps of an image, and the image itself where it is new."""
    picture = pictures.setdefault(found['path'], Picture(found['name']))
    truth = found['truth']
    picture.maps[column] = summarize(found['label'], found['confidence'], truth)
    if picture.image is None and found['image'] is not None:
        picture.image = shrink(found['image'])
    if truth is not None:
        picture.truth = shrink(truth, nearest=True)


def choose(pictures: Dict[str, Picture], count: int) -> Dict[str, Picture]:
    """Images of evenly spaced ranks, from the least to the largest error."""
    ranked = sorted(pictures, key=lambda path: (pictures[path].error, path))
    return {path: pictures[path] for path in spread(ranked, count)}


def spread(items: Sequence[Any], count: int) -> List[Any]:
    """``count`` evenly spaced items, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    places = np.linspace(0, len(items) - 1, max(count, 1)).round().astype(int)
    return [items[place] for place in places[:count]]


def relative(file: Path, folder: Path) -> str:
    """A path as seen from a work dir, where it lies in it."""
    inside = folder.resolve() in file.resolve().parents
    return str(file.resolve().relative_to(folder.resolve()) if inside else file)


def reliability_of(quality: PseudoLabelQuality) -> Dict[str, Any]:
    """Histogram of the confidence in the form of ``mmdmt.ReliabilityMetric``."""
    result = quality.compute()
    rows = result['reliability']
    return dict(
        bins=len(rows),
        count=[row['pixels'] for row in rows],
        confidence=[row['confidence'] for row in rows],
        accuracy=[row['accuracy'] for row in rows],
        metrics=dict(ECE=result['ece']),
    )
