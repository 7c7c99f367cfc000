r"""Convert the COCO DeepLabV2 weights of AdvSemiSeg, from which DMT's members start.

Usage::

python tools/model_converters/advsemiseg_deeplabv2.py resnet101COCO.pth \
    --out pretrained/deeplabv2_r101_coco.pth
# for datasets with other classes than VOC, such as Cityscapes:
python tools/model_converters/advsemiseg_deeplabv2.py resnet101COCO.pth --without-classifier \
    --out pretrained/deeplabv2_r101_coco_backbone.pth

The result goes into `load_from` of a config with DeepLabV2 R101. Its images must be given as Caffe
gives them, see `coco_member` in configs/dmt/dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py.
"""

import argparse
import sys

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import load_checkpoint_file, save_atomically
from mmdmt.export.advsemiseg import PREPROCESSING, WeightsMismatchError, convert_advsemiseg


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Convert DeepLabV2 weights of AdvSemiSeg')
    parser.add_argument('weights', help='file to convert')
    parser.add_argument('--out', required=True, metavar='FILE', help='file to write')
    parser.add_argument(
        '--without-classifier',
        action='store_true',
        help='leave out the four convolutions of the classifier, for other classes',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let the file run code while it is loaded, because you trust who made it',
    )
    return parser.parse_args()


def main() -> None:
    """Convert."""
    args = parse_args()
    trusted = [args.weights] if args.trust_checkpoint else []
    loaded = load_checkpoint_file(args.weights, trusted=trusted)
    try:
        weights = convert_advsemiseg(loaded, without_classifier=args.without_classifier)
    except WeightsMismatchError as error:
        sys.exit(f'{args.weights}: {error}')
    save_atomically(dict(meta=dict(preprocessing=PREPROCESSING), state_dict=weights), args.out)
    part = 'backbone' if args.without_classifier else 'backbone and classifier'
    print(f'{args.out}: {len(weights)} weights, {part}')
    print(f'Train with data_preprocessor={PREPROCESSING}')


if __name__ == '__main__':
    main()
