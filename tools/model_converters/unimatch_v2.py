r"""Turn a published checkpoint of UniMatch V2 into an mmseg config and checkpoint.

Usage::

python tools/model_converters/unimatch_v2.py best.pth --out DIR [--network ema] [--dataset voc]

``DIR/segmentor.py`` and ``DIR/segmentor.pth`` are an ordinary mmseg segmentor, which mmseg's tools
test and its inferencer predicts with::

    from mmseg.apis import inference_model, init_model
    model = init_model('DIR/segmentor.py', 'DIR/segmentor.pth', device='cpu')
    result = inference_model(model, 'image.png')

A published file holds the student (``model``) and its moving average (``model_ema``), each of them
DINOv2 with a DPT head; scores in the paper are those of the average.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.utils import get_classes, get_palette
from torch import Tensor

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import load_checkpoint_file, save_atomically
from mmdmt.files import write_text_atomically
from mmdmt.finite import refuse_non_finite
from mmdmt.registry import MODELS
from mmdmt.weights import WeightsMismatchError, layout_problems

NETWORKS = dict(ema='model_ema', student='model')
#: By the width of the tokens: name in timm, blocks taken, channels of the head.
ENCODERS = {
    384: ('vit_small_patch14_dinov2', (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    768: ('vit_base_patch14_dinov2', (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    1024: ('vit_large_patch14_dinov2', (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
    1536: ('vit_giant_patch14_dinov2', (9, 19, 29, 39), 384, (1536, 1536, 1536, 1536)),
}
#: Published names, as patterns, and ours.
RENAMED = (
    (r'^backbone\.', 'backbone.timm_model.network.'),
    (r'^head\.projects\.', 'decode_head.projects.'),
    (r'^head\.resize_layers\.', 'decode_head.resize_layers.'),
    (r'^head\.scratch\.output_conv\.0\.', 'decode_head.output.0.'),
    (r'^head\.scratch\.output_conv\.2\.', 'decode_head.conv_seg.'),
    (r'^head\.scratch\.layer(\d)_rn\.', lambda found: f'decode_head.reduce.{_before(found)}.'),
    (r'^head\.scratch\.refinenet(\d)\.', lambda found: f'decode_head.fuse.{_before(found)}.'),
    (r'\.resConfUnit1\.conv1\.', '.skip.1.'),
    (r'\.resConfUnit1\.conv2\.', '.skip.3.'),
    (r'\.resConfUnit2\.conv1\.', '.unit.1.'),
    (r'\.resConfUnit2\.conv2\.', '.unit.3.'),
    (r'\.out_conv\.', '.project.'),
    # The gated layer of ViT-g.
    (r'\.mlp\.w12\.', '.mlp.fc1.'),
    (r'\.mlp\.w3\.', '.mlp.fc2.'),
)
#: Weights that no published network uses: the mask token, and a unit without anything to add.
UNUSED = (r'^backbone\.mask_token$', r'^head\.scratch\.refinenet4\.resConfUnit1\.')


def _before(found: 're.Match') -> int:
    return int(found[1]) - 1


def published_network(checkpoint: Mapping[str, Any], network: str = 'ema') -> Dict[str, Tensor]:
    """State dict of a network of a published checkpoint, without the prefix of its wrapper."""
    key = NETWORKS[network]
    values = checkpoint.get(key)
    if isinstance(values, Mapping) and not all(isinstance(v, Tensor) for v in values.values()):
        raise WeightsMismatchError(f'{key!r} in the file holds other things than weights')
    if not isinstance(values, Mapping):
        raise WeightsMismatchError(
            f'there is no {key!r} in the file, which has the keys {sorted(map(str, checkpoint))}; '
            'a published checkpoint of UniMatch V2 has `model` (the student) and `model_ema`'
        )
    return {re.sub(r'^module\.', '', name): value for name, value in values.items()}


def model_config(weights: Mapping[str, Tensor]) -> dict:
    """Config of the segmentor that the weights of a network are for."""
    width = _shape(weights, 'backbone.cls_token')[-1]
    if width not in ENCODERS:
        raise WeightsMismatchError(
            f'the tokens of the encoder have {width} channels, those of DINOv2 {list(ENCODERS)}'
        )
    name, out_indices, channels, project_channels = ENCODERS[width]
    num_classes = _shape(weights, 'head.scratch.output_conv.2.weight')[0]
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size=(518, 518),
        ),
        backbone=dict(
            type='mmdmt.TIMMVisionTransformer',
            model_name=name,
            out_indices=out_indices,
            pretrained=False,
        ),
        decode_head=dict(
            type='mmdmt.DPTHead',
            in_channels=width,
            channels=channels,
            project_channels=project_channels,
            num_classes=num_classes,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in weights:
        raise WeightsMismatchError(f'{name!r} is missing')
    return weights[name].shape


def convert_unimatch_v2(weights: Mapping[str, Tensor], model: dict) -> Dict[str, Tensor]:
    """Give the weights of a network the names that the segmentor of ``model`` has.

    Every weight is checked by name and shape.

    Raises:
        WeightsMismatchError: If a weight is missing, unknown or of another shape; all are named.
    """
    converted = {
        _our_name(name): value
        for name, value in weights.items()
        if not any(re.match(each, name) for each in UNUSED)
    }
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmseg'):
        plain = {key: value for key, value in model.items() if key != 'data_preprocessor'}
        shapes = {key: each.shape for key, each in MODELS.build(plain).state_dict().items()}
    problems = layout_problems(converted, shapes)
    if problems:
        raise WeightsMismatchError('\n'.join(problems))
    return converted


def _our_name(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def segmentor_config(model: dict) -> Config:
    """Config file of a segmentor: what mmseg needs to test and to predict."""
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mmdmt'], allow_failed_imports=False),
            model=model,
            test_pipeline=[load, dict(type='PackSegInputs')],
        )
    )


def convert_file(
    source: Path, out: Path, network: str, dataset: Optional[str] = None, trusted: bool = False
) -> int:
    """Write ``segmentor.py`` and ``segmentor.pth`` into a folder; returns the number of weights."""
    checkpoint = load_checkpoint_file(source, trusted=[source] if trusted else [])
    weights = published_network(checkpoint, network)
    model = model_config(weights)
    converted = convert_unimatch_v2(weights, model)
    refuse_non_finite(converted, str(source))
    meta = {}
    if dataset:
        classes = get_classes(dataset)
        if len(classes) != model['decode_head']['num_classes']:
            raise WeightsMismatchError(
                f'{dataset!r} has {len(classes)} classes, the network '
                f'{model["decode_head"]["num_classes"]}'
            )
        meta = dict(dataset_meta=dict(classes=classes, palette=get_palette(dataset)))
    out.mkdir(parents=True, exist_ok=True)
    cfg = segmentor_config(model)
    save_atomically(
        dict(meta=dict(meta, cfg=cfg.pretty_text), state_dict=converted), out / 'segmentor.pth'
    )
    write_text_atomically(out / 'segmentor.py', cfg.pretty_text)
    return len(converted)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Convert a checkpoint of UniMatch V2')
    parser.add_argument('checkpoint', type=Path, help='published file, such as best.pth')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write')
    parser.add_argument(
        '--network', choices=list(NETWORKS), default='ema', help='which of the two (default: ema)'
    )
    parser.add_argument(
        '--dataset',
        help='dataset whose class names and colors are stored, as mmseg calls it: voc,'
        ' cityscapes, ade, ...',
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
    try:
        count = convert_file(
            args.checkpoint, args.out, args.network, args.dataset, args.trust_checkpoint
        )
    except WeightsMismatchError as error:
        sys.exit(f'{args.checkpoint} is no checkpoint of UniMatch V2:\n{error}')
    print(f'{args.out}/segmentor.py, {args.out}/segmentor.pth: {count} weights of {args.network}')


if __name__ == '__main__':
    main()
