"""Export one network of a checkpoint as a plain mmseg config and checkpoint.

Usage::

    python tools/model_converters/export_segmentor.py CHECKPOINT --out DIR
    python tools/model_converters/export_segmentor.py CHECKPOINT --network student --out DIR
    # calibrated: divides the logits by what tools/analysis_tools/calibrate.py found, or by a number
    python tools/model_converters/export_segmentor.py CHECKPOINT --temperature auto --out DIR

The result, DIR/segmentor.py and DIR/segmentor.pth, needs mmseg but not mmdmt.
"""

import argparse

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.export.segmentor import export_segmentor


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a network as plain mmseg')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--config', help='config it was trained with (default: the one stored in the checkpoint)'
    )
    parser.add_argument(
        '--network',
        default='auto',
        help='student, teacher or another network of an online method (default: the one that '
        'predicts)',
    )
    parser.add_argument(
        '--temperature',
        metavar='T|auto',
        type=lambda text: text if text == 'auto' else float(text),
        help='divide the logits by T, within the weights; auto: by what calibrate.py has fitted',
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
    exported = export_segmentor(
        args.checkpoint, args.out, args.config, args.network, trusted, args.temperature
    )
    network = f'network {exported.network!r}' if exported.network else 'the network'
    print(f'{network} of {args.checkpoint}: {exported.config}, {exported.checkpoint}')
    if exported.foreign_types:
        print(
            f'mmseg has no {", ".join(exported.foreign_types)}, so the exported config imports '
            'mmdmt, which must be installed where it is used'
        )


if __name__ == '__main__':
    main()
