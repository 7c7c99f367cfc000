"""A temperature within the weights: calibrated logits of a plain network, without extra code."""

import json
import math
from pathlib import Path
from typing import Dict, Union

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn

from mmdmt.checkpoint import checkpoint_identity
from mmdmt.checks import check_range
from mmdmt.models.forward import image_metas

_ADVICE = 'export without a temperature, and divide its logits where they are used'


def temperature_file(checkpoint: Union[str, Path]) -> Path:
    """Where the temperature of a checkpoint is kept, unless it is told otherwise."""
    return Path(checkpoint).with_suffix('.temperature.json')


def read_temperature(checkpoint: Union[str, Path], network: str) -> float:
    """The temperature that was fitted to a network of a checkpoint.

    Raises:
        FileNotFoundError: None was fitted.
        ValueError: It was fitted to another network, or to what the file held before.
    """
    path = temperature_file(checkpoint)
    advice = 'run tools/analysis_tools/calibrate.py CONFIG CHECKPOINT, or give a number'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist: {advice}')
    found = json.loads(path.read_text(encoding='utf-8'))
    if found['network'] != network:
        raise ValueError(
            f'{path} is of the network {found["network"]!r}, not of {network!r}: {advice}, with '
            f'--network {network}'
        )
    if found['checkpoint']['sha256'] != checkpoint_identity(checkpoint)['sha256']:
        raise ValueError(f'{path} is of another {Path(checkpoint).name}: {advice}')
    return float(found['temperature'])


@torch.no_grad()
def scale_logits(
    model: BaseSegmentor, cfg: dict, weights: Dict[str, Tensor], temperature: float
) -> Dict[str, Tensor]:
    """Divide the logits of a segmentor by a temperature, in the weights of its last convolution.

    Logits are linear in the weights and bias of ``conv_seg``, the last layer of most heads of
    mmseg. Whether they are in this one is tried out on an image of noise. Of a head with one
    channel the threshold moves along, so that every pixel keeps its class.

    Args:
        model: Of ``weights``; it is left with the scaled ones.
        cfg: Its config, whose ``decode_head.threshold`` is changed if there is one channel.
        weights: State dict of the model.
        temperature: What logits are divided by.

    Returns:
        The state dict with the scaled weights.

    Raises:
        ValueError: The temperature is out of range, or logits are not linear in the last layer.
    """
    check_range('temperature', temperature, 1e-3, 1e3)
    heads = getattr(model, 'decode_head', None)
    is_cascade = isinstance(heads, nn.ModuleList)
    prefix = f'decode_head.{len(heads) - 1}.conv_seg.' if is_cascade else 'decode_head.conv_seg.'
    head = heads[-1] if is_cascade else heads
    chosen = {key for key in weights if key.startswith(prefix)}
    if not chosen:
        raise ValueError(
            f'{type(head).__name__} has no weights {prefix}* that a temperature could be put '
            f'into: {_ADVICE}'
        )
    scaled = {key: v / temperature if key in chosen else v for key, v in weights.items()}
    before, after = (_logits(model, state) for state in (weights, scaled))
    expected = before / temperature
    if (after - expected).abs().max() > 1e-3 * expected.abs().max():
        raise ValueError(
            f'the logits of {type(head).__name__} are not those of {prefix[:-1]} alone, so that a '
            f'temperature cannot be put into it: {_ADVICE}'
        )
    if head.out_channels == 1:
        part = cfg['decode_head'][-1] if is_cascade else cfg['decode_head']
        odds = math.log(head.threshold / (1 - head.threshold))
        part['threshold'] = head.threshold = 1 / (1 + math.exp(-odds / temperature))
    return scaled


def _logits(model: BaseSegmentor, weights: Dict[str, Tensor]) -> Tensor:
    """Logits of an image of noise, of a size that the network was trained with."""
    model.load_state_dict(weights)
    size = getattr(model.data_preprocessor, 'size', None)
    size = size or model.test_cfg.get('crop_size') or (256, 256)
    bands = next(each.in_channels for each in model.modules() if isinstance(each, nn.Conv2d))
    image = torch.randn(1, bands, *size, generator=torch.Generator().manual_seed(0))
    return model.eval().encode_decode(image, image_metas(image))
