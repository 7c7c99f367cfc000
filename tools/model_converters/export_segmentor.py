"""Export one network of a checkpoint as a plain mmseg config and checkpoint.

Usage::

    python tools/model_converters/export_segmentor.py CHECKPOINT --out DIR
    python tools/model_converters/export_segmentor.py CHECKPOINT --network student --out DIR
    python tools/model_converters/export_segmentor.py WORK_DIR --out DIR --hub --name my-model
    # calibrated: divides the logits by what tools/analysis_tools/calibrate.py found, or by a number
    python tools/model_converters/export_segmentor.py CHECKPOINT --temperature auto --out DIR

The result, DIR/segmentor.py and DIR/segmentor.pth, needs mmseg but not mmdmt. With --hub
a model card (README.md), preprocessing.json and segmentor.safetensors lie beside it.
"""

import argparse
from pathlib import Path

from mmengine.config import Config

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.export.card import write_hub_folder
from mmdmt.export.loading import find_checkpoint
from mmdmt.export.segmentor import export_segmentor


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a network as plain mmseg')
    parser.add_argument('checkpoint', help='checkpoint file, or work dir of a run that has ended')
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
    hub = parser.add_argument_group('model card')
    hub.add_argument('--hub', action='store_true', help='write a model card and its facts, too')
    hub.add_argument('--name', help='of the model (default: name of the folder)')
    hub.add_argument('--license', help='license of the weights, such as apache-2.0')
    hub.add_argument('--data', help='what the network was trained on')
    hub.add_argument('--data-license', help='license of that data')
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    checkpoint, record = find_checkpoint(args.checkpoint)
    trusted = [checkpoint] if args.trust_checkpoint else []
    name = record.get('network') or 'auto' if args.network == 'auto' else args.network
    name = name if isinstance(name, str) else '+'.join(name)
    exported = export_segmentor(checkpoint, args.out, args.config, name, trusted, args.temperature)
    network = f'network {exported.network!r}' if exported.network else 'the network'
    print(f'{network} of {args.checkpoint}: {exported.config}, {exported.checkpoint}')
    if exported.foreign_types:
        print(
            f'mmseg has no {", ".join(exported.foreign_types)}, so the exported config imports '
            'mmdmt, which must be installed where it is used'
        )
    if args.hub:
        fields = dict(license=args.license, data=args.data, data_license=args.data_license)
        title = args.name or Path(args.out).resolve().name
        cfg = Config.fromfile(exported.config)
        written = write_hub_folder(Path(args.out), title, cfg, record, fields)
        print('model card and facts: ' + ', '.join(map(str, written)))


if __name__ == '__main__':
    main()
