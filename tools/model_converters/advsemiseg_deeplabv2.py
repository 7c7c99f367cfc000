r"""Convert the COCO DeepLabV2 weights of AdvSemiSeg, from which DMT's members start.

Usage::

python tools/model_converters/advsemiseg_deeplabv2.py resnet101COCO.pth \
    --out pretrained/deeplabv2_r101_coco.pth
# for datasets with other classes than VOC, such as Cityscapes:
python tools/model_converters/advsemiseg_deeplabv2.py resnet101COCO.pth --without-classifier \
    --out pretrained/deeplabv2_r101_coco_backbone.pth

The result goes into `load_from` of a config with DeepLabV2 R101. Its images must be given as Caffe
gives them, see `coco_member` in configs/dmt/dmt_deeplabv2_r101_1_20_pascal_voc12-321x321.py.

The file that is converted (ResNet-101 of Caffe, trained on COCO with the 21 classes of VOC) holds
torchvision's names of the backbone, without ``num_batches_tracked``, and the four convolutions of
the classifier as ``layer5.conv2d_list.<i>.{weight,bias}``.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any, Dict, Optional

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import load_checkpoint_file, save_atomically
from mmdmt.files import shipped_dir
from mmdmt.finite import refuse_non_finite
from mmdmt.registry import MODELS
from mmdmt.weights import WeightsMismatchError, layout_problems

CLASSIFIER = 'layer5.conv2d_list.'
#: What training with data parallelism or over several scales put before every name.
WRAPPERS = ('module.', 'Scale.')
#: How the COCO weights want their images: Caffe's.
PREPROCESSING = dict(mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


def deeplabv2_config() -> dict:
    """Model config that the weights are for, ``configs/_base_/models/deeplabv2_r101-d8.py``."""
    return Config.fromfile(shipped_dir('configs') / '_base_/models/deeplabv2_r101-d8.py').model


def convert_advsemiseg(
    weights: Mapping[str, Any], model: Optional[dict] = None, without_classifier: bool = False
) -> Dict[str, Tensor]:
    """Give the weights the names that mmseg's ResNet and ``mmdmt.DeepLabV2Head`` have.

    Every weight of the model is checked, by name and shape. The number of classes is that of the
    file.

    Args:
        weights: Content of the file, or of its ``state_dict``.
        model: Model config; defaults to :func:`deeplabv2_config`.
        without_classifier: Leave out the classifier, for a network with other classes: all its
            weights stay as they were initialized.

    Returns:
        State dict of an ``EncoderDecoder``; complete, unless ``without_classifier``.

    Raises:
        WeightsMismatchError: If a weight is missing, unknown or of another shape; all of them are
            named.
    """
    weights = _unwrap(weights)
    expected = _expected_shapes(model or deeplabv2_config(), _num_classes(weights))
    problems = layout_problems(weights, {_source_name(name): expected[name] for name in expected})
    if problems:
        raise WeightsMismatchError(
            'these are not DeepLabV2 weights in the layout of AdvSemiSeg:\n' + '\n'.join(problems)
        )
    return {
        name: weights.get(_source_name(name), torch.zeros((), dtype=torch.long))
        for name in expected
        if not (without_classifier and name.startswith('decode_head.'))
    }


def _unwrap(weights: Mapping[str, Any]) -> Dict[str, Any]:
    """The plain state dict, without what was put before all names."""
    weights = dict(weights.get('state_dict', weights))
    for prefix in WRAPPERS:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return weights


def _num_classes(weights: Mapping[str, Any]) -> int:
    """Classes of the file's classifier; any number if it has none, which is refused later."""
    bias = weights.get(f'{CLASSIFIER}0.bias')
    return len(bias) if isinstance(bias, Tensor) and bias.ndim == 1 else 1


def _expected_shapes(model: dict, num_classes: int) -> Dict[str, torch.Size]:
    """Shape of every weight of the model, which is built without memory for them."""
    model = Config(dict(model=model)).model
    model.backbone.init_cfg = None
    model.decode_head.num_classes = num_classes
    model.pop('data_preprocessor', None)
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmseg'):
        return {name: value.shape for name, value in MODELS.build(model).state_dict().items()}


def _source_name(name: str) -> str:
    """Name of a weight of our model in the file."""
    if name.startswith('decode_head.conv_seg.'):
        return CLASSIFIER + name[len('decode_head.conv_seg.') :]
    return name[len('backbone.') :]


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
    refuse_non_finite(weights, args.weights)
    save_atomically(dict(meta=dict(preprocessing=PREPROCESSING), state_dict=weights), args.out)
    part = 'backbone' if args.without_classifier else 'backbone and classifier'
    print(f'{args.out}: {len(weights)} weights, {part}')
    print(f'Train with data_preprocessor={PREPROCESSING}')


if __name__ == '__main__':
    main()
