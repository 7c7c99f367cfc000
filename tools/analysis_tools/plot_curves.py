r"""Curves of logged values of one or more runs, as a table and as a picture.

Usage::

    python tools/analysis_tools/plot_curves.py work_dirs/a work_dirs/b --keys coupling_distance loss
    python tools/analysis_tools/plot_curves.py one=work_dirs/a two=work_dirs/b \
        --keys coupling_distance coupling_disagreement --every 40 --out coupling.svg

A run is a work dir, optionally with a name before it. The logs of a run that was resumed are put
together. mmseg's ``analyze_logs.py`` draws a single file, and needs seaborn.
"""

import argparse
from pathlib import Path
from typing import Dict

from prettytable import PrettyTable, TableStyle

from mmdmt.evaluation.report.curves import Curve, find_logs, read_curves, thin_out


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Curves of logged values')
    parser.add_argument('runs', nargs='+', metavar='[NAME=]WORK_DIR')
    parser.add_argument('--keys', nargs='+', required=True, help='names as in the log lines')
    parser.add_argument(
        '--every', type=int, default=0, metavar='N', help='mean over N iterations for each row'
    )
    parser.add_argument('--out', help='picture to write: .svg, .png or .pdf')
    return parser.parse_args()


def table(curves: Dict[str, Dict[str, Curve]]) -> str:
    """Markdown table of curves by run and key, a row for each iteration that any of them has."""
    columns = {f'{run}: {key}': curve for run in curves for key, curve in curves[run].items()}
    found = PrettyTable(['iteration', *columns], align='r')
    found.set_style(TableStyle.MARKDOWN)
    for step in sorted({step for curve in columns.values() for step in curve}):
        cells = (f'{curve[step]:.4g}' if step in curve else '' for curve in columns.values())
        found.add_row([step, *cells])
    return found.get_string()


def draw(curves: Dict[str, Dict[str, Curve]], out: str) -> None:
    """Draw one panel for each key, with one line for each run."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    keys = list(next(iter(curves.values())))
    figure, axes = plt.subplots(1, len(keys), figsize=(4.5 * len(keys), 3.2), squeeze=False)
    for axis, key in zip(axes[0], keys):
        for run, of_run in curves.items():
            points = sorted(of_run[key].items())
            axis.plot(*zip(*points), label=run, linewidth=1.2)
        axis.set_title(key)
        axis.set_xlabel('iteration')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    # Without a date, so that the same curves give the same file.
    figure.savefig(out, metadata={'Date': None} if out.endswith('.svg') else None)
    plt.close(figure)


def main() -> None:
    """Print the table; draw the picture if asked to."""
    args = parse_args()
    curves = {}
    for run in args.runs:
        name, _, folder = run.rpartition('=')
        found = read_curves(find_logs(Path(folder)), args.keys)
        curves[name or folder] = {key: thin_out(curve, args.every) for key, curve in found.items()}
    print(table(curves))
    if args.out:
        draw(curves, args.out)


if __name__ == '__main__':
    main()
