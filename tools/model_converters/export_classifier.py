"""Export the network of a classifier's checkpoint as a plain mmpretrain config and checkpoint.

Usage::

    python tools/model_converters/export_classifier.py CHECKPOINT --out DIR

The result is DIR/classifier.py and DIR/classifier.pth. It needs mmpretrain, and mmdmt only for
parts that mmpretrain does not have, such as WideResNet.
"""

import argparse

import mmdmt.classification  # noqa: F401  (says what to install when something is missing)
from mmdmt.classification.export import export_classifier


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a classifier as plain mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--config', help='config it was trained with (default: the one stored in the checkpoint)'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let CHECKPOINT run code while it is loaded and while the network of '
        'its config is built, because you trust who made it',
    )
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    trusted = [args.checkpoint] if args.trust_checkpoint else []
    exported = export_classifier(args.checkpoint, args.out, args.config, trusted)
    print(f'{args.checkpoint}: {exported.config}, {exported.checkpoint}')
    if exported.foreign_types:
        print(
            f'mmpretrain has no {", ".join(exported.foreign_types)}, so the exported config '
            'imports mmdmt, which must be installed where it is used'
        )


if __name__ == '__main__':
    main()
