r"""One HTML page about runs: curves, tables, reliability, and a browser of labels and predictions.

Usage::

    python tools/analysis_tools/report.py work_dirs/labeled_only work_dirs/dmt --out report.html
    python tools/analysis_tools/report.py base=work_dirs/a ours=work_dirs/b --baseline base
    python tools/analysis_tools/report.py work_dirs/benchmark      # all runs in a folder

A work dir is that of a run, of a chain (DMT), or a folder of several. The page is one file that
opens from disk without a network. What the work dirs do not say, such as scores on the test
images, is predicted with their configs and checkpoints.
"""

import argparse
from collections.abc import Sequence
from typing import Optional

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.evaluation.report import write_report


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Write an HTML page about runs')
    parser.add_argument('work_dirs', nargs='+', metavar='[NAME=]WORK_DIR')
    parser.add_argument('--out', default='report.html', help='file to write (default: report.html)')
    parser.add_argument('--title', default='Training report', help='of the page')
    parser.add_argument(
        '--baseline', metavar='NAME', help='run that others are compared with (default: the first)'
    )
    parser.add_argument(
        '--images', type=int, default=24, help='test and unlabeled images to show (default: 24)'
    )
    parser.add_argument(
        '--label-images',
        type=int,
        default=500,
        metavar='N',
        help='stored pseudo-labels of each round to compare with their truth (default: 500)',
    )
    parser.add_argument(
        '--no-predict', action='store_true', help='show what the work dirs hold, predict nothing'
    )
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Write the page."""
    args = parse_args(argv)
    out = write_report(
        args.work_dirs,
        args.out,
        baseline=args.baseline,
        images=args.images,
        predict=not args.no_predict,
        label_images=args.label_images,
        title=args.title,
    )
    print(f'{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser')


if __name__ == '__main__':
    main()
