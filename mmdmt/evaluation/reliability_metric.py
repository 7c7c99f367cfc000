"""How far the confidence of a segmentor can be trusted, beside how accurate it is."""

import json
import math
import os.path as osp
from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from prettytable import PrettyTable
from torch import Tensor

from mmdmt.checks import check_count, check_range
from mmdmt.evaluation.boundaries import boundary_areas, near_boundary
from mmdmt.evaluation.calibration import (
    area_under_risk_coverage,
    certainty_table,
    classwise_histogram,
    confidence_histogram,
    covered_areas,
    expected_calibration_error,
    maximum_calibration_error,
    mean_iou,
    reliable_segmentation_score,
    selective_histogram,
)
from mmdmt.evaluation.prediction_maps import PredictionMaps, prediction_maps
from mmdmt.files import write_text_atomically
from mmdmt.registry import METRICS

Counts = Dict[str, Tensor]

#: Shares of the most confident pixels whose mIoU is given.
COVERAGES = (0.8, 0.9, 0.95)

_CHUNK = 2**20  # probabilities that are worked on at a time
_LEAST_LOG = -100.0  # of a probability, as in torch's binary cross entropy
# Counts whose first dimension are the regions.
_REGIONAL = ('calibration', 'classwise', 'selective', 'scores', 'certainty')
_CURVE = [step / 20 for step in range(1, 21)]  # coverages of the curve in the file
REGIONS = ('interior', 'boundary')


@METRICS.register_module()
class ReliabilityMetric(BaseMetric):
    """Calibration, selective prediction and quality at boundaries, in constant memory.

    It stands beside ``IoUMetric`` in the evaluator of any mmseg config and reads the
    ``seg_logits`` of a prediction (:func:`~mmdmt.evaluation.prediction_maps.prediction_maps`).
    Images become histograms on the device of the logits; these add up over images and ranks, and
    every number is pooled over the pixels of the dataset. Images that a sampler repeats, so that
    all ranks have as many, count once. docs/reliability.md has the formulas.

    It gives ``ECE``, ``MCE``, ``cwECE``, ``NLL`` (nats), ``Brier`` (sum over classes, in [0, 2]),
    ``AURC``, ``acc_certain``, ``unc_wrong``, ``RSS`` as shares; ``mIoU@<coverage>``,
    ``BoundaryIoU`` and ``TrimapIoU`` in percent, as ``IoUMetric`` does. With ``trimap_width`` all
    but the last two also as ``<name>_boundary`` and ``<name>_interior``.

    Args:
        num_bins (int): Bins of the calibration errors. Defaults to 15.
        coverages (Sequence[float]): Shares of the most confident pixels whose mIoU is given.
        trimap_width (int, optional): Pixels no further than this from a change of the true label
            are the boundary, all others the interior. 5 is usual. Defaults to no such split.
        boundary_ratio (float, optional): Width of the band of boundary IoU as a share of the
            diagonal of the image. None leaves it out. Defaults to 0.02.
        weights (Sequence[float]): Of the four parts of the RSS. Defaults to ones.
        temperature (float): Logits are divided by it; the predicted classes stay. Defaults to 1.
        ignore_index (int): Label of pixels that do not count. Defaults to 255.
        out_file (str, optional): JSON file with all of it, the histogram, the risk-coverage curve
            and values per class under ``reliability``. Other keys of a file that is there stay.
        collect_device (str): Of mmengine's ``BaseMetric``.
        prefix (str, optional): Of mmengine's ``BaseMetric``.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        num_bins: int = 15,
        coverages: Sequence[float] = COVERAGES,
        trimap_width: Optional[int] = None,
        boundary_ratio: Optional[float] = 0.02,
        weights: Sequence[float] = (1, 1, 1, 1),
        temperature: float = 1.0,
        ignore_index: int = 255,
        out_file: Optional[str] = None,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        check_count('num_bins', num_bins, 1)
        for coverage in coverages:
            check_range('coverages', coverage, 1e-6, 1)
        if trimap_width is not None:
            check_count('trimap_width', trimap_width, 1)
        if boundary_ratio is not None:
            check_range('boundary_ratio', boundary_ratio, 0, 1)
        check_range('temperature', temperature, 1e-6)
        reliable_segmentation_score(1, 0, 1, 1, weights)  # refuses bad weights
        self.num_bins = num_bins
        self.coverages = list(coverages)
        self.trimap_width = trimap_width
        self.boundary_ratio = boundary_ratio
        self.weights = list(weights)
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.out_file = out_file
        self._reset()

    def _reset(self) -> None:
        self._total: Counts = {}
        # Of the last image: whether a sampler repeated it is known at the end.
        self._last: Counts = {}
        self._num_images = 0

    # --- Images ----------------------------------------------------------------------------------

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Add the images of a batch.

        Args:
            data_batch (dict): Not read.
            data_samples (Sequence[dict]): With ``seg_logits``, ``pred_sem_seg``, ``gt_sem_seg``.

        Raises:
            KeyError: As :func:`~mmdmt.evaluation.prediction_maps.prediction_maps`.
            ValueError: As there.
            NonFiniteError: As there.
        """
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            maps = prediction_maps(sample, num_classes, self.ignore_index)
            self._total = _sum(self._total, self._last)
            self._last = self._count(maps)
            self._num_images += 1

    @torch.no_grad()
    def _count(self, maps: PredictionMaps) -> Counts:
        """Histograms of an image; those of interior and boundary in the first dimension."""
        known = maps.label != self.ignore_index
        parts = [known]
        if self.trimap_width:
            band = near_boundary(maps.label, self.trimap_width)
            parts = [known & ~band, known & band]
        found = [self._count_pixels(maps, part.flatten().nonzero()[:, 0]) for part in parts]
        counts = {key: torch.stack([each[0][key] for each in found]) for key in found[0][0]}
        entropies = torch.cat([entropy for _, entropy, _ in found])
        threshold = entropies.median() if len(entropies) else entropies.new_zeros(())
        tables = [certainty_table(entropy, correct, threshold) for _, entropy, correct in found]
        counts['certainty'] = torch.stack(tables)
        if self.boundary_ratio is not None:
            counts['boundary'] = boundary_areas(
                maps.pred, maps.label, len(maps.logits), self.boundary_ratio, self.ignore_index
            )
        counts['images'] = torch.ones(1)
        return {key: value.cpu() for key, value in counts.items()}

    def _count_pixels(self, maps: PredictionMaps, pixels: Tensor) -> Tuple[Counts, Tensor, Tensor]:
        """Histograms of some pixels of an image, with their entropy and whether they are right."""
        counts: Counts = {}
        entropies, rights = [], []
        logits, pred, label = maps.logits.flatten(1), maps.pred.flatten(), maps.label.flatten()
        step = max(1, _CHUNK // len(logits))
        for chunk in pixels.split(step) if len(pixels) else [pixels]:
            part = logits.index_select(1, chunk)
            if self.temperature != 1:
                part /= self.temperature
            new, entropy = self._score(part, pred[chunk], label[chunk])
            counts = _sum(counts, new)
            entropies.append(entropy)
            rights.append(pred[chunk] == label[chunk])
        return counts, torch.cat(entropies), torch.cat(rights)

    def _score(self, logits: Tensor, pred: Tensor, label: Tensor) -> Tuple[Counts, Tensor]:
        """Histograms of pixels with logits (C, n), and their entropy (n,)."""
        log_prob = logits.log_softmax(dim=0).clamp_(min=_LEAST_LOG)
        prob = log_prob.exp()
        nll = -log_prob.gather(0, label[None]).double().sum()
        entropy = log_prob.mul_(prob).sum(dim=0).neg_()
        confidence = prob.gather(0, pred[None])[0]
        brier = prob.square().sum(dim=0) - 2 * prob.gather(0, label[None])[0] + 1
        counts = dict(
            calibration=confidence_histogram(confidence, pred == label, self.num_bins),
            classwise=classwise_histogram(prob, label, self.num_bins),
            selective=selective_histogram(confidence, pred, label, len(logits)),
            scores=torch.stack([nll, brier.double().sum()]),
        )
        return counts, entropy

    # --- Dataset ---------------------------------------------------------------------------------

    def evaluate(self, size: int) -> Dict[str, float]:
        """Add up the images of all ranks; see mmengine's ``BaseMetric``.

        Args:
            size (int): Images of the dataset. A rank's image j is image j * ranks + rank of it,
                so that the last one may be one of the first again.
        """
        is_repeated = (self._num_images - 1) * get_world_size() + get_rank() >= size
        total = self._total if is_repeated else _sum(self._total, self._last)
        self._reset()
        self.results = [total]
        return super().evaluate(size)

    def compute_metrics(self, results: List[Counts]) -> Dict[str, float]:
        """Metrics of the summed histograms.

        Args:
            results (list[dict]): One for each rank.
        """
        counts: Counts = {}
        for each in results:
            counts = _sum(counts, each)
        if not counts:
            return dict.fromkeys(
                metric_keys(self.coverages, self.trimap_width, self.boundary_ratio), math.nan
            )
        regions = {'': {key: counts[key].sum(0) for key in _REGIONAL}}
        for index, name in enumerate(REGIONS if self.trimap_width else ()):
            regions[f'_{name}'] = {key: counts[key][index] for key in _REGIONAL}
        metrics = {
            f'{key}{name}': value
            for name, region in regions.items()
            for key, value in self._metrics(region).items()
        }
        if self.boundary_ratio is not None:
            metrics['BoundaryIoU'] = 100 * float(mean_iou(counts['boundary']))
        if self.trimap_width:
            areas = regions['_boundary']['selective'].sum(0)
            metrics['TrimapIoU'] = 100 * float(mean_iou(areas))
        print_log('\n' + _table(metrics, list(regions)), 'current')
        if self.out_file:
            self._write(metrics, regions[''], counts)
        return metrics

    def _metrics(self, region: Counts) -> Dict[str, float]:
        """Metrics of the pixels of a region."""
        hist, selective = region['calibration'], region['selective']
        pixels, (uncertain, certain) = hist[:, 0].sum(), region['certainty']
        nll, brier = (region['scores'] / pixels).tolist()
        areas = selective.sum(0)
        parts = dict(
            ece=float(expected_calibration_error(hist)),
            certain_accuracy=float(certain[1] / certain.sum()),
            wrong_uncertainty=float(uncertain[0] / (uncertain[0] + certain[0])),
        )
        by_confidence = torch.stack([selective[..., 0].sum(-1), selective[..., 2].sum(-1)], -1)
        return {
            'ECE': parts['ece'],
            'MCE': float(maximum_calibration_error(hist)),
            'cwECE': float(expected_calibration_error(region['classwise']).mean()),
            'NLL': nll,
            'Brier': brier,
            'AURC': float(area_under_risk_coverage(by_confidence)),
            **{
                _coverage_key(share): 100 * float(mean_iou(covered_areas(selective, share)))
                for share in self.coverages
            },
            'acc_certain': parts['certain_accuracy'],
            'unc_wrong': parts['wrong_uncertainty'],
            'RSS': reliable_segmentation_score(
                float(mean_iou(areas)), weights=self.weights, **parts
            ),
        }

    def _write(self, metrics: Dict[str, float], whole: Counts, counts: Counts) -> None:
        """Put everything into the file, which may hold other facts about this evaluation."""
        count, confidence, correct = whole['calibration'].unbind(-1)
        curve = [covered_areas(whole['selective'], share).sum(0) for share in _CURVE]
        per_class = dict(cwECE=expected_calibration_error(whole['classwise']))
        if 'boundary' in counts:
            pred, label, both = counts['boundary'].unbind(-1)
            per_class['BoundaryIoU'] = 100 * both / (pred + label - both)
        found = dict(
            bins=self.num_bins,
            count=count.long(),
            confidence=confidence / count,
            accuracy=correct / count,
            metrics=metrics,
            images=int(counts['images']),
            pixels=int(count.sum()),
            classes=list(self.dataset_meta['classes']),
            per_class=per_class,
            risk_coverage=dict(
                coverage=_CURVE, risk=torch.stack([1 - areas[2] / areas[0] for areas in curve])
            ),
            settings=dict(
                coverages=self.coverages,
                trimap_width=self.trimap_width,
                boundary_ratio=self.boundary_ratio,
                weights=self.weights,
                temperature=self.temperature,
            ),
        )
        content = {}
        if osp.exists(self.out_file):
            with open(self.out_file, encoding='utf-8') as file:
                content = json.load(file)
        content['reliability'] = _plain(found)
        write_text_atomically(self.out_file, json.dumps(content, indent=1))


def metric_keys(
    coverages: Sequence[float] = COVERAGES,
    trimap_width: Optional[int] = None,
    boundary_ratio: Optional[float] = 0.02,
    **settings: Any,
) -> List[str]:
    """Names of the metrics that :class:`ReliabilityMetric` gives with some settings."""
    pooled = ['ECE', 'MCE', 'cwECE', 'NLL', 'Brier', 'AURC', *map(_coverage_key, coverages)]
    pooled += ['acc_certain', 'unc_wrong', 'RSS']
    suffixes = ['', *(f'_{name}' for name in REGIONS if trimap_width)]
    keys = [f'{key}{suffix}' for suffix in suffixes for key in pooled]
    keys += ['BoundaryIoU'] if boundary_ratio is not None else []
    return keys + (['TrimapIoU'] if trimap_width else [])


def _coverage_key(share: float) -> str:
    return f'mIoU@{100 * share:g}'


def _sum(one: Counts, two: Counts) -> Counts:
    """Counts of both; the other one where one is empty."""
    if not (one and two):
        return one or two
    return {key: value + two[key] for key, value in one.items()}


def _plain(value: Any) -> Any:
    """JSON of tensors and numbers, None for what is not defined."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(metrics: Dict[str, float], suffixes: Sequence[str]) -> str:
    """One line for each metric, one column for each region."""
    table = PrettyTable(['reliability', *(name.strip('_') or 'all' for name in suffixes)])
    table.align = 'r'
    names = [key for key in metrics if not key.endswith(tuple(filter(None, suffixes)))]
    for name in names:
        found = (metrics.get(f'{name}{suffix}') for suffix in suffixes)
        table.add_row([name, *('' if value is None else f'{value:.4f}' for value in found)])
    return table.get_string()
