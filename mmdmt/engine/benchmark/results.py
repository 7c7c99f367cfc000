"""Tables of a benchmark: means and deviations over seeds, differences with their uncertainty."""

from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from mmdmt.engine.benchmark.evaluate import read_records
from mmdmt.engine.benchmark.job import read_state
from mmdmt.engine.benchmark.plan import Plan, Run
from mmdmt.evaluation.record_metric import class_iou, mean_of

DRAWS = 2000
_CHUNK = 100
COUNTS = ('intersect', 'pred', 'label')
#: What of ``mmdmt.ReliabilityMetric`` stands in the table.
RELIABILITY = ('ECE', 'cwECE', 'NLL', 'Brier', 'AURC', 'RSS', 'mIoU@90', 'BoundaryIoU')


def score_of(counts: np.ndarray, metric: str) -> np.ndarray:
    """Metric in percent of pixel counts (..., 3, C): intersection, predicted, labeled.

    Counts are those of all images together. 'mIoU' and 'mAcc' are means over the classes that
    have a value, as of mmseg.
    """
    intersect, pred, label = np.moveaxis(np.asarray(counts, float), -2, 0)
    if metric == 'mIoU':
        return mean_of(class_iou(intersect, pred, label))
    with np.errstate(invalid='ignore'):
        if metric == 'mAcc':
            return mean_of(100 * intersect / label)
        return 100 * intersect.sum(-1) / label.sum(-1)


def bootstrap_difference(
    method: np.ndarray,
    baseline: np.ndarray,
    metric: str = 'mIoU',
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 95.0,
) -> Tuple[float, float]:
    """Percentile interval of the mean paired difference of a metric, over seeds and images.

    Each draw takes S of the S seeds and I of the I images with replacement, the same for both
    methods; counts are summed over the drawn images, the metric is computed for every drawn seed,
    and the differences are averaged (two-level bootstrap; Efron and Tibshirani, "An introduction
    to the bootstrap", 1993, chapter 13, for the percentile interval).

    Args:
        method: (S, I, 3, C) pixel counts of each seed and image.
        baseline: The same of the other method.
        metric: As of :func:`score_of`.
        draws: Number of draws.
        seed: Of the generator.
        level: In percent.

    Returns:
        tuple[float, float]: Lower and upper end.

    Raises:
        ValueError: If the shapes differ.
    """
    if method.shape != baseline.shape:
        raise ValueError(f'counts of {method.shape} are compared with {baseline.shape}')
    seeds, images = method.shape[:2]
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size).astype(float)
        scores = [
            score_of(np.einsum('di,sikc->dskc', weights, counts, optimize=True), metric)
            for counts in (method.astype(float), baseline.astype(float))
        ]
        chosen = rng.integers(0, seeds, (size, seeds))
        found.append(np.take_along_axis(scores[0] - scores[1], chosen, 1).mean(1))
    tail = (100 - level) / 2
    low, high = np.nanpercentile(np.concatenate(found), [tail, 100 - tail])
    return float(low), float(high)


def collect(plan: Plan, work_dirs: Dict[Run, str]) -> Dict[str, Any]:
    """All results that are there, as JSON values: every run, and the rows of the tables."""
    runs, records = [], {}
    for run, work_dir in work_dirs.items():
        state = read_state(work_dir)
        found = read_records(work_dir) if state.get('state') == 'done' else []
        for record in found:
            if record['row'] and record['default']:
                records[run, _kind(record)] = record
        runs.append(_run_facts(run, state, found, plan.metric))
    rows = [
        _row(plan, labels, method, kind, records, runs)
        for labels in plan.labels
        for kind in ('last', 'best')
        for method in plan.methods
    ]
    classes = next((record['classes'] for record in records.values()), [])
    return dict(
        plan=plan.name,
        quick=plan.quick,
        metric=plan.metric,
        baseline=plan.baseline,
        budget=plan.budget,
        classes=classes,
        finished=sum(run['state'] == 'done' for run in runs),
        runs=runs,
        rows=[row for row in rows if row['seeds']],
    )


def _kind(record: Dict[str, Any]) -> str:
    return record['selected_by'].split()[0]


def _run_facts(run: Run, state: dict, records: List[dict], metric: str) -> Dict[str, Any]:
    facts = dict(run._asdict(), name=run.name, state=state.get('state', 'open'))
    facts.update({key: state.get(key) for key in ('steps', 'passes', 'val_is_test', 'cost')})
    facts['resumed'] = state.get('attempts', 1) > 1
    facts['networks'] = [
        dict(
            {key: r[key] for key in ('network', 'selected_by', 'step', 'checkpoint', 'val_score')},
            metrics=r['metrics'],
            row=r['row'] and r['default'],
        )
        for r in records
    ]
    return facts


def _row(
    plan: Plan, labels: str, method: str, kind: str, records: dict, runs: List[dict]
) -> Dict[str, Any]:
    """Statistics of a method over folds and seeds."""
    keys = [(fold, seed) for fold in plan.folds for seed in plan.seeds]
    own = {key: records.get((Run(method, labels, *key), kind)) for key in keys}
    own = {key: record for key, record in own.items() if record}
    values = [_value(record, plan.metric) for record in own.values()]
    facts = [f for f in runs if (f['method'], f['labels']) == (method, labels) and f['cost']]
    row = dict(labels=labels, method=method, checkpoint=kind, seeds=[list(key) for key in own])
    row.update(values=values, mean=_mean(values), std=_std(values))
    row['steps'] = next((f['steps'] for f in facts), None)
    row['passes'] = next((f['passes'] for f in facts), None)
    row['selected_by'] = next((r['selected_by'] for r in own.values()), None)
    row['network'] = next((r['network'] for r in own.values()), None)
    row['val_is_test'] = any(f['val_is_test'] for f in facts)
    row['difference'] = None
    base = {key: records.get((Run(plan.baseline, labels, *key), kind)) for key in own}
    if method != plan.baseline:
        row['difference'] = difference(own, {k: r for k, r in base.items() if r}, plan.metric)
    row['per_class'] = _per_class(list(own.values()), 'IoU' if plan.metric == 'mIoU' else 'Acc')
    row['reliability'] = _reliability(list(own.values()))
    row['cost'] = _cost([f for f in facts if not f['resumed']])
    return row


def difference(own: dict, base: dict, metric: str) -> Optional[Dict[str, Any]]:
    """Paired difference of records to those of the baseline with the same keys.

    Raises:
        ValueError: If they are not of the same images.
    """
    keys = [key for key in own if key in base]
    if not keys:
        return None
    names = [image['name'] for image in base[keys[0]]['images']]
    counts = [_counts([records[key] for key in keys], names) for records in (own, base)]
    values = [_value(own[key], metric) - _value(base[key], metric) for key in keys]
    low, high = bootstrap_difference(*counts, metric)
    return dict(mean=_mean(values), low=low, high=high, values=values, seeds=[*map(list, keys)])


def _counts(records: Sequence[dict], names: List[str]) -> np.ndarray:
    """(S, I, 3, C) counts in the order of ``names``."""
    found = []
    for record in records:
        images = {image['name']: image for image in record['images']}
        if images.keys() != set(names):
            raise ValueError(f'{record["file"]} is not of the images of the baseline')
        found.append([[images[name][key] for key in COUNTS] for name in names])
    return np.asarray(found, np.int64)


def _value(record: dict, metric: str) -> float:
    value = record['metrics'][metric]
    return float('nan') if value is None else value


def _per_class(records: Sequence[dict], key: str) -> List[Optional[Dict[str, Any]]]:
    """Mean and deviation over the seeds in which a class has a value."""
    found = []
    for values in zip(*(record['per_class'][key] for record in records)):
        known = [value for value in values if value is not None]
        found.append(dict(mean=_mean(known), std=_std(known)) if known else None)
    return found


def _reliability(records: Sequence[dict]) -> Dict[str, float]:
    """Means over the seeds; empty where it was not measured."""
    found = [record.get('reliability', {}).get('metrics', {}) for record in records]
    known = {name: [each[name] for each in found if name in each] for name in RELIABILITY}
    # Sums in float32, which depend on the number of threads, have no more digits.
    return {name: round(_mean(values), 6) for name, values in known.items() if values}


def _cost(facts: Sequence[dict]) -> Dict[str, float]:
    """Mean times and largest memory; runs that were interrupted do not count."""
    names = {name for each in facts for name in each['cost']}
    found = {name: [f['cost'][name] for f in facts if name in f['cost']] for name in sorted(names)}
    return {n: max(v) if n.endswith('gib') else _mean(v) for n, v in found.items()}


def _mean(values: Sequence[float]) -> Optional[float]:
    return float(np.mean(values)) if len(values) else None


def _std(values: Sequence[float]) -> Optional[float]:
    """Of a sample, which needs two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
