"""Plots as SVG that lies in the page and takes the colors of its theme."""

import io
import re
from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from mmdmt.evaluation.report.curves import Curve

#: Colors of the style sheet for lines of runs: ``--s0``, ``--s1``, ...
NUM_COLORS = 8
DASHES = ['-', (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2))]
#: More points than a picture of this width can show make the page large.
MAX_POINTS = 240
#: Above this number of classes their names cannot be read beside a matrix.
MAX_MATRIX = 40

# Colors that are drawn here, and those of the theme that stand for them in the page.
_INK, _MUTED, _LINE, _CARD = '#010101', '#010102', '#010103', '#010104'
_THEME = {_INK: 'currentColor', _MUTED: 'var(--muted)', _LINE: 'var(--line)', _CARD: 'var(--card)'}
_THEME.update({f'#0102{index:02x}': f'var(--s{index})' for index in range(NUM_COLORS)})
_SETTINGS = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mmdmt',
    'font.size': 9,
    'text.color': _INK,
    'axes.labelcolor': _MUTED,
    'axes.edgecolor': _LINE,
    'axes.facecolor': 'none',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.titleweight': 'bold',
    'xtick.color': _MUTED,
    'ytick.color': _MUTED,
    'grid.color': _LINE,
    'grid.linewidth': 0.6,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'text.parse_math': False,
}


def color_of(index: int) -> str:
    """Color of a run in a plot."""
    return f'#0102{index % NUM_COLORS:02x}'


class Plots:
    """Draws; every picture has ids of its own, so that many can lie in one page."""

    def __init__(self) -> None:
        self._count = 0

    def curves(
        self,
        title: str,
        lines: Sequence[Tuple[int, Sequence[Tuple[str, Curve]]]],
        marks: Sequence[int] = (),
    ) -> Markup:
        """Values over steps.

        Args:
            title: Name of the value.
            lines: Number of a run, which decides on the color, and its networks with their values;
                the place of a network decides on the dashes.
            marks: Steps of upright lines.
        """
        names: Dict[int, List[str]] = {}
        with rc_context(_SETTINGS):
            figure, axes = self._figure(title, 4.2, 2.6)
            for mark in marks:
                axes.axvline(mark, color=_MUTED, linewidth=0.7, linestyle=':')
            for run, networks in lines:
                for place, (network, curve) in enumerate(networks):
                    points = sorted(curve.items())
                    points = points[:: -(-len(points) // MAX_POINTS)]
                    style = dict(ls=DASHES[place % len(DASHES)], markersize=3)
                    marker = 'o' if len(points) < 12 else None
                    axes.plot(*zip(*points), color=color_of(run), marker=marker, **style)
                    names.setdefault(place, []).append(network)
            axes.set_xlabel('step')
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if len(names) > 1:
                self._network_legend(axes, names)
            return self._svg(figure, title)

    def _network_legend(self, axes: Axes, names: Dict[int, List[str]]) -> None:
        """Dashes of networks, below the picture where they cover no line."""
        handles = [
            axes.plot([], [], color=_INK, linestyle=DASHES[place % len(DASHES)])[0]
            for place in names
        ]
        texts = [', '.join(filter(None, dict.fromkeys(own))) for own in names.values()]
        axes.legend(
            handles, texts, loc='upper center', bbox_to_anchor=(0.5, -0.22), ncol=3, fontsize=8
        )

    def reliability(self, lines: Sequence[Tuple[int, Dict[str, Any]]]) -> Markup:
        """Accuracy against confidence, and below it how many pixels have that confidence.

        Args:
            lines: Number of a run and ``count``, ``confidence``, ``accuracy`` of its bins.
        """
        with rc_context(_SETTINGS):
            figure = Figure(figsize=(4.2, 4.4), layout='constrained')
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
            above.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9, linestyle=':')
            above.text(0.03, 0.93, 'too careful', color=_MUTED, fontsize=8)
            above.text(0.97, 0.04, 'too sure', color=_MUTED, fontsize=8, ha='right')
            for run, bins in lines:
                count = np.array(bins['count'], float)
                share = 100 * count / max(count.sum(), 1)
                there = count > 0
                x, y = (np.array(bins[key], float)[there] for key in ('confidence', 'accuracy'))
                above.plot(x, y, color=color_of(run), marker='o', markersize=3)
                edges = np.linspace(0, 1, len(count) + 1)
                below.stairs(share, edges, color=color_of(run), linewidth=1.4)
            above.set(ylabel='accuracy', xlim=(0, 1), ylim=(0, 1))
            below.set(xlabel='confidence', ylabel='% of pixels')
            for axes in (above, below):
                axes.grid(True)
            return self._svg(figure, 'Reliability diagram')

    def confusion(self, title: str, confusion: np.ndarray, classes: Sequence[str]) -> Markup:
        """Shares of the pixels of each true class (row), by predicted class."""
        total = confusion.sum(1, keepdims=True)
        share = np.divide(confusion, total, out=np.zeros(confusion.shape), where=total > 0)
        side = 1.9 + 0.24 * len(classes)
        # One hue that is transparent at 0 fits light and dark pages.
        ramp = ListedColormap([(0.24, 0.47, 0.85, level) for level in np.linspace(0, 1, 64)])
        with rc_context(_SETTINGS):
            figure, axes = self._figure(title, side, side)
            axes.imshow(share, cmap=ramp, vmin=0, vmax=1, interpolation='nearest')
            places = range(len(classes))
            axes.set_xticks(places, [_short(name) for name in classes], rotation=90)
            axes.set_yticks(places, [_short(name) for name in classes])
            axes.tick_params(length=0, labelsize=8)
            axes.set(xlabel='predicted', ylabel='truth')
            axes.grid(False)
            for row, column in zip(*np.nonzero(share >= 0.095)):
                text = f'{100 * share[row, column]:.0f}'
                axes.text(column, row, text, ha='center', va='center', fontsize=6.5)
            return self._svg(figure, title)

    def label_rounds(
        self, title: str, rounds: Sequence[Dict[str, Any]], keys: Dict[str, str], run: int
    ) -> Markup:
        """A value of pseudo-labels by round; a line for each member.

        Args:
            title: Title.
            rounds: Of :meth:`.StoredLabels.rounds`.
            keys: Key of a value and what it is.
            run: Number of the run.
        """
        members = sorted({entry['member'] for entry in rounds})
        with rc_context(_SETTINGS):
            figure, axes = self._figure(title, 4.2, 2.6)
            for number, (key, name) in enumerate(keys.items()):
                for index, member in enumerate(members):
                    own = [e for e in rounds if e['member'] == member and e[key] is not None]
                    if own:
                        x = [entry['round'] for entry in own]
                        y = [100 * entry[key] for entry in own]
                        label = f'{name}, {member}' if len(members) > 1 else name
                        color = color_of(run + number)
                        dash = DASHES[index % len(DASHES)]
                        axes.plot(x, y, color=color, ls=dash, marker='o', ms=4, label=label)
            axes.set_xticks(sorted({entry['round'] for entry in rounds}))
            axes.set_xlabel('round')
            axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.22), ncol=2, fontsize=8)
            return self._svg(figure, title)

    def class_rounds(
        self,
        rounds: Sequence[Dict[str, Any]],
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
    ) -> Markup:
        """A small picture for each class: its share of the labels and their precision by round.

        Means over members. Shares are relative to the truth where it is known.
        """
        columns = 6
        rows = -(-len(classes) // columns)
        numbers = sorted({entry['round'] for entry in rounds})
        with rc_context({**_SETTINGS, 'axes.titlesize': 8, 'font.size': 7}):
            figure = Figure(figsize=(9.6, 0.5 + 1.25 * rows), layout='constrained')
            panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
            for panel in panels.flat[len(classes) :]:
                panel.set_axis_off()
            for index, (name, panel) in enumerate(zip(classes, panels.flat)):
                for key, color, dash in (('precision', 0, '-'), ('share', 1, DASHES[1])):
                    points = [(n, _round_mean(rounds, n, index, key)) for n in numbers]
                    points = [(n, 100 * value) for n, value in points if value is not None]
                    if points:
                        panel.plot(*zip(*points), color=color_of(color), ls=dash, marker='o', ms=2)
                swatch = np.array(palette[index % len(palette)]) / 255 if palette else _MUTED
                panel.set_title('■ ', color=swatch, loc='left', pad=3)
                panel.text(0.14, 1.04, _short(name, 15), transform=panel.transAxes, fontsize=8)
                panel.set(ylim=(-4, 104), xticks=numbers)
                panel.grid(True)
            return self._svg(figure, 'Share and precision of pseudo-labels by class')

    def chain(self, stages: Sequence[Any], metric: str) -> Markup:
        """Boxes of the stages of a chain, round by round, with arrows for weights and labels."""
        members = sorted({stage.member for stage in stages})
        places = {s.name: (2.6 * s.round, -1.25 * members.index(s.member)) for s in stages}
        rounds = max(stage.round for stage in stages) + 1
        with rc_context(_SETTINGS):
            figure = Figure(figsize=(0.4 + 1.95 * rounds, 0.3 + 0.95 * len(members)))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set(xlim=(-0.2, 2.6 * rounds - 0.6), ylim=(-1.25 * len(members) + 1.15, 1.15))
            axes.set_axis_off()
            for number in range(rounds):
                text = f'round {number}' if number else 'round 0: labels only'
                axes.text(2.6 * number + 0.9, 0.95, text, color=_MUTED, ha='center', fontsize=8.5)
            for stage in stages:
                self._stage(axes, stage, stages, places, metric)
                self._arrows(axes, stage, places, members)
            return self._svg(figure, 'Rounds of the chain')

    def _stage(
        self, axes: Axes, stage: Any, stages: Sequence[Any], places: dict, metric: str
    ) -> None:
        x, y = places[stage.name]
        best = max((s.entry.get('metrics', {}).get(metric, -1) for s in stages), default=-1)
        score = stage.entry.get('metrics', {}).get(metric)
        is_best = score is not None and score == best
        edge, width = (color_of(1), 2.2) if is_best else (_MUTED, 1.1)
        box = FancyBboxPatch(
            (x, y), 1.8, 0.72, boxstyle='round,pad=0,rounding_size=0.1', fc=_CARD, ec=edge, lw=width
        )
        axes.add_patch(box)
        axes.text(x + 0.12, y + 0.48, f'{stage.name}', fontsize=8, color=_MUTED, va='center')
        before = next(
            (s for s in stages if s.member == stage.member and s.round == stage.round - 1), None
        )
        old = before.entry.get('metrics', {}).get(metric) if before else None
        text = stage.entry.get('state', 'pending') if score is None else f'{score:.1f}'
        axes.text(x + 0.12, y + 0.2, text, fontsize=11, weight='bold', va='center')
        if score is not None and old is not None:
            gain = f'{score - old:+.1f}'.replace('-', '−')
            axes.text(x + 1.68, y + 0.2, gain, fontsize=9, va='center', ha='right')

    def _arrows(self, axes: Axes, stage: Any, places: dict, members: List[str]) -> None:
        """Weights come from the stage of the same member before, labels from that of the next."""
        if not stage.round:
            return
        x, y = places[stage.name]
        teacher = members[(members.index(stage.member) + 1) % len(members)]
        for source, style, color, shift in (
            (stage.member, '-', _MUTED, 0.5),
            (teacher, (0, (3, 2)), color_of(1), 0.22),
        ):
            begin = places.get(f'stage_{stage.round - 1}_{source}')
            if begin is None or (style == '-' and _from_scratch(stage)):
                continue
            line = dict(color=color, linestyle=style, linewidth=1.1, shrinkA=0, shrinkB=0)
            axes.annotate(
                '',
                (x - 0.03, y + shift),
                (begin[0] + 1.82, begin[1] + shift),
                arrowprops=dict(line, arrowstyle='-|>', mutation_scale=8),
            )

    def _figure(self, title: str, width: float, height: float) -> Tuple[Figure, Axes]:
        figure = Figure(figsize=(width, height), layout='constrained')
        axes = figure.subplots()
        axes.set_title(title)
        axes.grid(True)
        return figure, axes

    def _svg(self, figure: Figure, title: str) -> Markup:
        """The picture as an element of HTML."""
        self._count += 1
        prefix = f'p{self._count}-'
        figure.patch.set_visible(False)
        stream = io.StringIO()
        canvas = FigureCanvasSVG(figure)
        figure.draw_without_rendering()  # the layout has to know the final labels of the ticks
        canvas.print_svg(stream, metadata=dict(Date=None, Creator=None))
        text = stream.getvalue()
        text = text[text.index('<svg') :]
        # What would count for the whole page.
        text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.DOTALL)
        text = re.sub(r'\b(id="|url\(#|href="#)', rf'\g<1>{prefix}', text)
        text = re.sub(r'#01010[1-4]|#0102\w\w', lambda found: _THEME[found[0]], text)
        width, height = (float(v) for v in re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups())
        head = (
            f'<svg class="plot" role="img" aria-label="{Markup.escape(title)}" '
            f'viewBox="0 0 {width:g} {height:g}" style="max-width: {1.45 * width:.0f}px">'
        )
        return Markup(re.sub(r'<svg[^>]*>', lambda _: head, text, count=1))


def _from_scratch(stage: Any) -> bool:
    return bool((stage.cfg or {}).get('chain', {}).get('from_scratch'))


def _round_mean(
    rounds: Sequence[Dict[str, Any]], number: int, index: int, key: str
) -> Optional[float]:
    """Mean over the members of a round of what is known of a class."""
    own = [entry['classes'][index] for entry in rounds if entry['round'] == number]
    values = [entry[key] for entry in own]
    if key == 'share' and own and own[0]['true']:
        values = [min(1, entry['share'] / entry['true']) for entry in own]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def _short(name: str, limit: int = 18) -> str:
    """A name that does not fill the picture."""
    return name if len(name) <= limit else f'{name[: limit - 1]}…'
