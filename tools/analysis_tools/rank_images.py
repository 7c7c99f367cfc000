"""Print the reliability of the unlabeled images of an ST++ chain: what to label next.

Usage::

python tools/analysis_tools/rank_images.py work_dirs/st-plus-plus --next 20 > label_these.txt
python tools/analysis_tools/rank_images.py work_dirs/st-plus-plus/stage_1_a --scores

On the images at the bottom of the ranking the network changed its mind most while it was trained.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional, Tuple

# As in mmdmt.pseudo.reliability, whose import would print notes of its libraries into the list.
RANKING = 'reliability.json'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Print which images to label next')
    parser.add_argument('folder', type=Path, help='work dir of the chain, or one of its stages')
    parser.add_argument('--next', type=int, help='only so many, the least reliable (default: all)')
    parser.add_argument('--scores', action='store_true', help='print the reliability, too')
    return parser.parse_args(argv)


def read_ranking(folder: Path) -> List[Tuple[str, float]]:
    """Name and reliability of each image, the least reliable first.

    Raises:
        SystemExit: If there is no ranking, or there are several.
    """
    found = sorted([*folder.glob(RANKING), *folder.glob(f'stage_*/{RANKING}')])
    if len(found) != 1:
        raise SystemExit(
            f'{folder} holds {len(found)} files {RANKING}, in it or in its stages: name the folder '
            "of a stage that has one, which is made where `mutual.round.images` is 'reliable'"
        )
    rows = json.loads(found[0].read_text(encoding='utf-8'))['images']
    return [tuple(row) for row in reversed(rows)]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print one image a line."""
    args = parse_args(argv)
    for name, score in read_ranking(args.folder)[: args.next]:
        print(f'{score:.4f} {name}' if args.scores else name)


if __name__ == '__main__':
    main()
