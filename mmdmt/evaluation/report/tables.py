"""The tables of the page: runs by group, classes, confusions, curves by topic."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import numpy as np

from mmdmt.evaluation.record_metric import mean_of_known
from mmdmt.evaluation.report.plots import MAX_MATRIX, Plots
from mmdmt.evaluation.report.runs import Run

_OTHER = ('lr', 'base_lr', 'memory', 'grad_norm')
_SKIPPED = ('iter', 'step', 'epoch', 'time', 'data_time')
#: Charts of a topic; what is beyond is named.
MAX_CHARTS = 24


@dataclass
class Group:
    """The runs of one method, which differ in their seeds; mostly a single run.

    Attributes:
        name: What they are called.
        index: Number of its color.
        runs: The runs.
        records: Evaluation of each run that has one.
    """

    name: str
    index: int
    runs: List[Run] = field(default_factory=list)
    records: List[Dict[str, Any]] = field(default_factory=list)

    @property
    def scores(self) -> List[float]:
        """Score of each run in percent: evaluated, else the last one of validation."""
        found = [_number(record['metrics'].get('mIoU')) for record in self.records]
        found = found or [_number(run.last_score()) for run in self.runs]
        return [value for value in found if not np.isnan(value)]

    @property
    def confusion(self) -> Optional[np.ndarray]:
        """Sum over seeds."""
        tables = [np.array(record['confusion'], np.int64) for record in self.records]
        return sum(tables[1:], tables[0]) if tables else None

    def metric(self, name: str) -> Optional[float]:
        """Mean over seeds of a metric of the records, reliability included."""
        values = []
        for record in self.records:
            both = {**record['metrics'], **record.get('reliability', {}).get('metrics', {})}
            values.append(_number(both.get(name)))
        values = [value for value in values if not np.isnan(value)]
        return float(np.mean(values)) if values else None


def group_runs(runs: Sequence[Run], records: Dict[str, dict], baseline: Optional[str]) -> list:
    """Runs by group, the baseline first.

    Raises:
        ValueError: If no group or run has the name of the baseline.
    """
    groups: Dict[str, Group] = {}
    for run in runs:
        groups.setdefault(run.group, Group(run.group, 0)).runs.append(run)
    for group in groups.values():
        group.records = [records[run.name] for run in group.runs if records.get(run.name)]
    ordered = list(groups.values())
    if baseline is not None:
        names = [run.name for run in runs]
        meant = [g for g in ordered if baseline in (g.name, *(run.name for run in g.runs))]
        meant = meant or [g for g in ordered if Path(baseline) in [run.path for run in g.runs]]
        if not meant:
            raise ValueError(f'--baseline {baseline} is none of the runs {names}')
        ordered.sort(key=lambda group: group is not meant[0])
    for index, group in enumerate(ordered):
        group.index = index + (len(ordered) == 1)  # the baseline of others is gray
    return ordered


def summary(groups: Sequence[Group]) -> List[Dict[str, Any]]:
    """A row for each group."""
    base = groups[0].scores
    rows = []
    for group in groups:
        run, scores = group.runs[0], group.scores
        mean = float(np.mean(scores)) if scores else None
        sizes = {entry['part']: entry['size'] for entry in run.lists}
        origin = group.records[0] if group.records else {}
        facts = [origin.get('network'), origin.get('origin')]
        evaluated = ', '.join(str(fact) for fact in facts if fact)
        rows.append(
            dict(
                group=group,
                method=run.facts.get('Method', ''),
                labeled=sizes.get('labeled'),
                unlabeled=sizes.get('unlabeled'),
                steps=run.facts.get('Steps', ''),
                time=run.facts.get('Time', ''),
                seeds=len(group.runs),
                score=mean,
                spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                difference=mean - float(np.mean(base)) if scores and base else None,
                accuracy=group.metric('aAcc'),
                ece=group.metric('ECE'),
                evaluated=evaluated or ('last validation' if scores else ''),
                part=origin.get('dataset', 'val'),
            )
        )
    return rows


def class_table(groups: Sequence[Group]) -> Optional[Dict[str, Any]]:
    """IoU of each class by group, with differences to the first; None without evaluations.

    Groups with other classes than the first are left out.
    """
    known = [group for group in groups if group.records]
    if not known:
        return None
    classes = known[0].records[0]['classes']
    known = [group for group in known if group.records[0]['classes'] == classes]
    values = []
    for group in known:
        per_run = [[_number(v) for v in r['per_class']['IoU']] for r in group.records]
        values.append([mean_of_known(each) for each in zip(*per_run)])
    true = known[0].confusion.sum(1) / max(1, known[0].confusion.sum())
    rows = [
        dict(
            index=index,
            name=name,
            true=float(true[index]),
            cells=[_cell(column[index], values[0][index]) for column in values],
        )
        for index, name in enumerate(classes)
    ]
    return dict(classes=classes, groups=known, rows=rows, means=[mean_of_known(v) for v in values])


def _cell(value: Optional[float], base: Optional[float]) -> Dict[str, Optional[float]]:
    difference = None if value is None or base is None else value - base
    return dict(value=value, difference=difference)


def confusions(groups: Sequence[Group], plots: Plots, count: int = 12) -> List[Dict[str, Any]]:
    """Matrix and the largest confusions of each group that was evaluated."""
    found = []
    for group in groups:
        if not group.records:
            continue
        table, classes = group.confusion, group.records[0]['classes']
        true = table.sum(1)
        wrong = table - np.diag(np.diagonal(table))
        order = np.argsort(wrong, axis=None)[::-1][:count]
        pairs = [np.unravel_index(place, table.shape) for place in order]
        top = [
            dict(truth=int(t), predicted=int(p), share=wrong[t, p] / true[t])
            for t, p in pairs
            if wrong[t, p]
        ]
        drawn = len(classes) <= MAX_MATRIX
        picture = plots.confusion(group.name, table, classes) if drawn else None
        found.append(dict(group=group, classes=classes, picture=picture, top=top))
    return found


def reliability(groups: Sequence[Group], plots: Plots) -> Optional[Dict[str, Any]]:
    """Diagram of the groups that have a histogram; seeds are added up."""
    lines, values = [], []
    for group in groups:
        bins = [r['reliability'] for r in group.records if r.get('reliability')]
        if bins:
            lines.append((group.index, _sum_bins(bins)))
            names = list(dict.fromkeys(name for each in bins for name in each['metrics']))
            values.append(dict(group=group, metrics={n: group.metric(n) for n in names}))
    if not lines:
        return None
    names = list(dict.fromkeys(name for each in values for name in each['metrics']))
    return dict(picture=plots.reliability(lines), rows=values, names=names)


def _sum_bins(bins: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    bins = [each for each in bins if len(each['count']) == len(bins[0]['count'])]
    count = np.array([each['count'] for each in bins], float)
    means = {}
    for key in ('confidence', 'accuracy'):
        values = np.array([[_number(value) for value in each[key]] for each in bins])
        total = np.where(count > 0, np.nan_to_num(values) * count, 0).sum(0)
        means[key] = total / np.maximum(count.sum(0), 1)
    return dict(count=count.sum(0), **means)


def curve_topics(groups: Sequence[Group], plots: Plots) -> List[Dict[str, Any]]:
    """Charts of all logged values: scores, health of pseudo-labels, losses, the rest."""
    runs = [run for group in groups for run in group.runs]
    color = {run.name: group.index for group in groups for run in group.runs}
    scores = dict.fromkeys(name for run in runs for name in run.scores)
    keys = dict.fromkeys(key for run in runs for key in run.curves)
    topics: Dict[str, List[str]] = {
        'Scores in validation': [],
        'Health of pseudo-labels': [],
        'Losses': [],
        'Other values': [],
    }
    for key in keys:
        if key not in _SKIPPED and not key.startswith('pseudo_labels/'):
            topics[_topic(key, scores)].append(key)
    marks = sorted({step for run in runs for step in _round_ends(run)})
    found = []
    for title, names in topics.items():
        names.sort(key=lambda name: (name not in ('mIoU', 'loss', 'accuracy/top1'), '.' in name))
        lines = {
            name: [
                (color[run.name], [(net, c) for net, c in run.curves[name].items() if c])
                for run in runs
                if run.curves.get(name)
            ]
            for name in names[:MAX_CHARTS]
        }
        charts = [plots.curves(name, lines[name], marks=marks) for name in lines if lines[name]]
        if charts:
            found.append(dict(title=title, charts=charts, left_out=names[MAX_CHARTS:]))
    return found


def _topic(key: str, scores: Dict[str, None]) -> str:
    base = key.rsplit('/', 1)[-1]
    if key in scores or ('/' in key and base in scores):
        return 'Scores in validation'
    if 'loss' in key:
        return 'Losses'
    if key in _OTHER or 'acc_seg' in key or key.endswith(('_lr', '/lr')):
        return 'Other values'
    return 'Health of pseudo-labels'


def _round_ends(run: Run) -> List[int]:
    """Steps at which rounds of a chain begin."""
    ends, steps = [], 0
    first = run.stages[0].member if run.stages else None
    for stage in run.stages:
        if stage.member == first:
            steps += (stage.cfg or {}).get('train_cfg', {}).get('max_iters', 0)
            ends.append(steps)
    return ends[:-1]


def read_benchmark(folder: Union[str, Path]) -> Optional[Dict[str, Any]]:
    """Rows of the ``results.json`` of a benchmark, None where there is none."""
    folder = folder if Path(folder).is_dir() else str(folder).partition('=')[2]
    file = Path(folder, 'results.json')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = [row for row in content['rows'] if 'mean' in row and 'checkpoint' in row]
        return dict(content, rows=rows) if 'plan' in content and rows else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(value: Any) -> float:
    """NaN for None."""
    return float('nan') if value is None else float(value)
