"""Puts the page together."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from mmengine.registry import DefaultScope

from mmdmt.checks import check_count
from mmdmt.evaluation.report import tables
from mmdmt.evaluation.report.gallery import Gallery
from mmdmt.evaluation.report.labels import StoredLabels, label_source
from mmdmt.evaluation.report.plots import NUM_COLORS, Plots
from mmdmt.evaluation.report.predictions import (
    Picture,
    Predictor,
    choose,
    evaluate,
    evaluation_data,
    predict_unlabeled,
    read_records,
    spread,
)
from mmdmt.evaluation.report.runs import Run, first_line, read_runs
from mmdmt.files import write_text_atomically
from mmdmt.registry import DATASETS
from mmdmt.version import __version__

#: Bytes of a page, and what is left for text that is not known when pictures are scaled.
MAX_BYTES, RESERVE = 10_000_000, 200_000
#: Groups whose first run is shown in the browser.
MAX_SHOWN = 6


def write_report(
    work_dirs: Sequence[Union[str, Path]],
    out: Union[str, Path],
    *,
    baseline: Optional[str] = None,
    images: int = 24,
    predict: bool = True,
    label_images: int = 500,
    title: str = 'Training report',
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write a page about runs, as one HTML file that needs nothing else.

    Args:
        work_dirs: Work dirs of runs or chains, or folders of several such as that of a benchmark;
            each optionally as ``NAME=FOLDER``.
        out: HTML file.
        baseline: Name of the run or group that others are compared with. Defaults to that of a
            benchmark, else to the first.
        images: Test images in the browser, and as many unlabeled ones.
        predict: Whether to predict what no evaluation in the work dir says.
        label_images: Stored pseudo-labels of each round that are compared with their truth.
        title: Of the page.
        max_bytes: Largest size of the file; pictures become smaller until it fits.

    Returns:
        Path: ``out``.

    Raises:
        FileNotFoundError: A work dir does not exist or holds no run.
        ValueError: ``baseline`` is no run, or a number is out of range.
    """
    check_count('images', images, 0)
    check_count('label_images', label_images, 1)
    runs = read_runs(work_dirs)
    benchmarks = [found for found in map(tables.read_benchmark, work_dirs) if found]
    if baseline is None:
        baseline = tables.baseline_of(benchmarks, runs)
    tables.group_runs(runs, {}, baseline)  # refuses an unknown baseline before all the work
    report = _Report(runs, baseline, images, predict, label_images)
    text = _render(dict(report.context(), benchmarks=benchmarks, title=title), max_bytes, report)
    write_text_atomically(out, text)
    return Path(out)


class _Report:
    """What the page says; everything that is missing becomes a note of its run."""

    def __init__(
        self, runs: List[Run], baseline: Optional[str], images: int, predict: bool, labels: int
    ) -> None:
        self.runs, self.images, self.may_predict, self.labels = runs, images, predict, labels
        order = tables.group_runs(runs, {}, baseline)
        self.runs = [run for group in order for run in group.runs]
        self.shown = [group.runs[0].name for group in order[:MAX_SHOWN]]
        self.predictors: Dict[str, Predictor] = {}
        self.records: Dict[str, dict] = {}
        self.tested: Dict[str, Picture] = {}
        self._evaluate_all()
        self.groups = tables.group_runs(self.runs, self.records, baseline)
        self.colors = {run.name: group.index for group in self.groups for run in group.runs}
        self.metainfo = self._metainfo()
        self.gallery = Gallery(self.metainfo.get('palette') or [])
        self.plots = Plots()

    def _evaluate_all(self) -> None:
        """Records and pictures; the baseline decides which images are shown."""
        wanted: Optional[List[str]] = None
        for run in self.runs:
            found = read_records(run)
            if found:
                self.records[run.name] = found[0]
                wanted = wanted or _wanted(found[0], self.images)
        for run in self.runs:
            if run.is_classification:
                run.notes.append('Images are shown of segmentation only.')
                continue
            needed = run.name in self.shown and self.images
            if (run.name in self.records and not needed) or not self._can_predict(run):
                continue
            only = wanted if wanted is not None or self.images else []
            only = only if needed else []
            counted = run.name not in self.records
            try:
                predictor = self.predictors[run.name] = Predictor(run)
                record = evaluate(predictor, run, self.tested, only, counted)
            except Exception as error:  # of data, weights or network of any kind
                run.notes.append(f'Nothing could be predicted: {first_line(error)}.')
                self.predictors.pop(run.name, None)
                if only is None:
                    self.tested.clear()
                continue
            if counted and record:
                self.records[run.name] = record
            elif counted:
                run.notes.append('The test images have no ground truth: no scores.')
            if only is None:
                self.tested = choose(self.tested, self.images)
                wanted = list(self.tested)

    def _can_predict(self, run: Run) -> bool:
        reasons = {
            'predicting is off (--no-predict)': not self.may_predict,
            'there is no config': run.cfg is None,
            'there is no checkpoint yet': run.checkpoint is None,
            'the config has no test_dataloader': evaluation_data(run) is None,
        }
        reason = next((text for text, holds in reasons.items() if holds), None)
        if reason and run.name not in self.records:
            run.notes.append(f'No evaluation in the work dir, and {reason}.')
        return reason is None

    def _metainfo(self) -> Dict[str, Any]:
        """Classes and palette of the first dataset that can be built without its images."""
        for run in self.runs:
            data = None if run.cfg is None or run.is_classification else evaluation_data(run)
            try:
                if data:
                    settings = dict(data['dataset'], pipeline=[], lazy_init=True)
                    with DefaultScope.overwrite_default_scope('mmseg'):
                        return DATASETS.build(settings).metainfo
            except Exception as error:  # another wrapper than those known
                run.notes.append(f'The palette is not known: {first_line(error)}.')
        return {}

    def context(self) -> Dict[str, Any]:
        """Values of the template."""
        chains = [self._chain(run) for run in self.runs if run.stages]
        sections = [self._tested_section(), self._unlabeled_section(chains)]
        rows = tables.summary(self.groups)
        return dict(
            version=__version__,
            date=time.strftime('%Y-%m-%d %H:%M'),
            groups=self.groups,
            runs=self.runs,
            colors=self.colors,
            summary=rows,
            metric=self.runs[0].metric,
            classes=tables.class_table(self.groups),
            class_names=list(self.metainfo.get('classes') or []),
            palette=self.gallery.palette,
            confusions=tables.confusions(self.groups, self.plots),
            reliability=tables.reliability(self.groups, self.plots),
            topics=tables.curve_topics(self.groups, self.plots),
            chains=chains,
            sections=[section for section in sections if section],
        )

    def _chain(self, run: Run) -> Dict[str, Any]:
        """Rounds of a chain and its stored labels."""
        stored = StoredLabels(run, self.labels)
        rounds = stored.rounds()
        known = any(entry['num_true_pixels'] for entry in rounds)
        charts = []
        if rounds:
            keys = {'kept': 'kept pixels', 'confidence': 'mean confidence'}
            charts.append(self.plots.label_rounds('Kept pixels and confidence, %', rounds, keys, 0))
            if known:
                keys = {'accuracy': 'all pixels', 'accuracy_kept': 'kept pixels'}
                charts.append(self.plots.label_rounds('Correct pseudo-labels, %', rounds, keys, 0))
        names = list(self.metainfo.get('classes') or [])
        by_class = bool(rounds) and len(names) == len(rounds[0]['classes']) <= 60 and known
        palette = self.gallery.palette
        return dict(
            run=run,
            stored=stored,
            rounds=rounds,
            known=known,
            diagram=self.plots.chain(run.stages, run.metric) if len(run.stages) > 1 else None,
            charts=charts,
            by_class=self.plots.class_rounds(rounds, names, palette) if by_class else None,
        )

    def _tested_section(self) -> Optional[Dict[str, Any]]:
        columns = [(name, self.colors[name]) for name in self.shown]
        intro = (
            'Images of evenly spaced ranks, from the one that the baseline does best to the one '
            'it does worst.'
        )
        return self._section('tested', 'Predictions on test images', intro, self.tested, columns)

    def _unlabeled_section(self, chains: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        """Stored labels of chains, and what the networks of other runs say of the same images."""
        chains = [c for c in chains if c['rounds'] and c['run'].name in self.shown]
        source, names = self._unlabeled_names(chains)
        pictures: Dict[str, Picture] = {}
        columns = []
        for name in self.shown:
            own = [chain for chain in chains if chain['run'].name == name]
            if own:
                found = own[0]['stored'].add_pictures(pictures, names)
                columns += [(column, self.colors[name]) for column in found]
            elif name in self.predictors and source and names:
                run = self.predictors[name].run
                try:
                    predict_unlabeled(
                        self.predictors[name], source, set(names), pictures, f'{name}: trained'
                    )
                    columns.append((f'{name}: trained', self.colors[name]))
                except Exception as error:
                    run.notes.append(f'Unlabeled images: {first_line(error)}.')
        stored = 'Stored pseudo-labels round by round, pixels that are not learned left empty'
        trained = 'what the trained networks say of them'
        intro = f'{stored}, and {trained}.' if chains else f'{trained.capitalize()}.'
        return self._section('unlabeled', 'Unlabeled images', intro, pictures, columns)

    def _unlabeled_names(self, chains: List[Dict[str, Any]]) -> tuple:
        """Where unlabeled images come from, and the names of those to show."""
        for chain in chains:
            errors = chain['stored'].errors()
            ranked = sorted(errors, key=lambda name: (errors[name], name))
            if ranked:
                return chain['stored'].source, spread(ranked, self.images)
        for run in self.runs if self.predictors else ():
            source = label_source(run)
            if source is not None:
                return source, spread(sorted(source.image_paths), self.images)
        return None, []

    def _section(
        self, key: str, title: str, intro: str, pictures: Dict[str, Picture], columns: List[tuple]
    ) -> Optional[Dict[str, Any]]:
        """A part of the browser; None without images."""
        columns = [c for c in columns if any(c[0] in p.maps for p in pictures.values())]
        if not pictures or not columns:
            return None
        items = [self._item(picture, columns) for picture in pictures.values()]
        present = sorted({int(index) for item in items for index in item['data']['classes']})
        compared = any(item['data']['disagreement'] is not None for item in items)
        own = dict(items=items, columns=columns, present=present, compared=compared)
        return dict(key=key, title=title, intro=intro, **own)

    def _item(self, picture: Picture, columns: List[tuple]) -> Dict[str, Any]:
        maps = {name: picture.maps[name] for name, _ in columns if name in picture.maps}
        errors = [own.error for own in maps.values() if own.error is not None]
        classes: Dict[int, List[float]] = {}
        for own in maps.values():
            for index, (true, predicted, both) in own.classes.items():
                union = true + predicted - both
                classes.setdefault(index, []).append(1 - both / union if union else 0.0)
        data = dict(
            name=picture.name,
            error=_rounded(np.mean(errors) if errors else None),
            confidence=_rounded(np.mean([own.mean_confidence for own in maps.values()])),
            disagreement=_rounded(_disagreement([own.label for own in maps.values()])),
            classes={index: _rounded(np.mean(values)) for index, values in classes.items()},
        )
        cells = [
            dict(
                title=name,
                color=color,
                maps=maps[name],
                label=self.gallery.label(maps[name].label),
                confidence=self.gallery.confidence(maps[name].confidence),
                wrong=self.gallery.errors(maps[name].label, picture.truth),
            )
            for name, color in columns
            if name in maps
        ]
        image, truth = self.gallery.photo(picture.image), self.gallery.label(picture.truth)
        return dict(picture=picture, data=data, image=image, truth=truth, cells=cells)


def _wanted(record: Dict[str, Any], count: int) -> Optional[List[str]]:
    """Paths of images of evenly spaced ranks by the error that a record notes of each."""
    images = record.get('images')
    if not images:
        return None
    errors = {i['name']: 1 - sum(i['intersect']) / max(1, sum(i['label'])) for i in images}
    return spread(sorted(errors, key=lambda name: (errors[name], name)), count)


def _disagreement(labels: List[np.ndarray]) -> Optional[float]:
    """Share of pixels on which not all labels agree, where all have one."""
    labels = [label for label in labels if label.shape == labels[0].shape]
    if len(labels) < 2:
        return None
    stack = np.stack(labels)
    known = (stack != 255).all(0)
    return float((stack != stack[0]).any(0)[known].mean()) if known.any() else 0.0


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None or math.isnan(value) else round(float(value), 4)


def _render(context: Dict[str, Any], max_bytes: int, report: _Report) -> str:
    """The page, with pictures as large as the rest of it allows."""
    loader = PackageLoader('mmdmt.evaluation.report', 'templates')
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, signed=_signed, percent=_percent)
    environment.globals.update(num_colors=NUM_COLORS, inline=lambda name: _inline(loader, name))
    template = environment.get_template('page.html')
    text = template.render(context, thumb=lambda number: '')
    sources = report.gallery.encode(max_bytes - len(text.encode()) - RESERVE)
    return template.render(context, thumb=lambda number: sources[number])


def _inline(loader: PackageLoader, name: str) -> Markup:
    """Text of the style sheet or the script; both are of this package."""
    return Markup(loader.get_source(Environment(autoescape=True), name)[0])


def _number(value: Optional[float], digits: int = 1) -> str:
    return '–' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def _signed(value: Optional[float], digits: int = 1) -> str:
    text = '–' if value is None or math.isnan(value) else f'{value:+.{digits}f}'
    return text.replace('-', '−')


def _percent(share: Optional[float], digits: int = 1) -> str:
    return '–' if share is None else f'{100 * share:.{digits}f} %'
