"""Any trained segmentor by its path, ready to predict: for tools that use what was trained."""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import BaseSegmentor
from torch import nn

from mmdmt.checkpoint import safe_loading
from mmdmt.export.plain import PathLike, forget_pretrained, read_trained
from mmdmt.export.segmentor import plain_config, predicting_networks
from mmdmt.export.stored_types import check_stored_config
from mmdmt.export.temperature import read_temperature, scale_logits, temperature_file
from mmdmt.registry import MODELS, TRANSFORMS

_FINAL = ('final.pth', 'segmentor.pth')  # of a work dir and of an exported folder


class LoadedSegmentor(NamedTuple):
    """A segmentor in eval mode, and how images reach it.

    Attributes:
        model: It predicts as its test would: one network, or the mean of several.
        networks: Their names in the checkpoint; ``['']`` where it holds a single one.
        cfg: Config of the model and its data.
        pipeline: Test pipeline for images without masks; empty if the config has none.
        masks: The step that loads masks in the test pipeline; empty if there is none.
        classes: Names of the classes.
        palette: RGB color of each class.
        checkpoint: The file.
        record: ``final.json`` of the work dir, if one was named.
        temperature: What the logits are divided by, within the weights; 1 if by nothing.
    """

    model: BaseSegmentor
    networks: List[str]
    cfg: Config
    pipeline: List[dict]
    masks: Dict[str, Any]
    classes: List[str]
    palette: List[Sequence[int]]
    checkpoint: Path
    record: Dict[str, Any]
    temperature: float = 1.0

    @property
    def threshold(self) -> Optional[float]:
        """Above which probability a head of one channel predicts class 1; None for other heads."""
        return threshold_of(self.model)


def threshold_of(model: BaseSegmentor) -> Optional[float]:
    """The threshold of a model whose head has one channel, which need not be one half."""
    head = getattr(model, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return getattr(head, 'threshold', None) if model.out_channels == 1 else None


def load_segmentor(
    source: PathLike,
    config: Optional[PathLike] = None,
    network: str = 'auto',
    trusted: Sequence[PathLike] = (),
    device: str = 'cpu',
    temperature: Union[float, str] = 1.0,
) -> LoadedSegmentor:
    """Load a checkpoint, the final one of a work dir, or an exported folder.

    Args:
        source: Checkpoint of this package or of mmseg, a work dir with ``final.json``, or a folder
            with ``segmentor.pth``.
        config: Config file; by default the one stored in the checkpoint.
        network: Of the networks that a checkpoint of an online method holds, the one that predicts,
            several joined by ``+``, 'average' or 'teacher_average'; 'auto': as ``final.json``, else
            the config, says.
        trusted: As of :func:`~mmdmt.export.segmentor.export_segmentor`.
        device: Where to predict.
        temperature: What logits are divided by, which calibrates confidence; or 'auto': what
            ``calibrate.py`` has written beside the checkpoint for this network, else 1.

    Raises:
        FileNotFoundError: Nothing to use is there; the message says what was looked for.
        ValueError: As of :func:`~mmdmt.export.segmentor.export_segmentor`.
        UntrustedCheckpointError: The checkpoint, or the config stored in it, could run code.
    """
    checkpoint, record = find_checkpoint(source)
    chosen = record.get('network') if network == 'auto' else network
    chosen = '+'.join(chosen) if isinstance(chosen, list) else chosen
    trained = read_trained(checkpoint, config, trusted)
    state, cfg = trained.content['state_dict'], trained.cfg
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    networks = predicting_networks(state, cfg.model, chosen or 'auto')
    plain = plain_config(cfg, networks[0])
    if len(networks) > 1:
        plain = Config(dict(plain.to_dict(), model=_as_trained(cfg, networks)))
    elif networks[0]:
        prefix = f'{networks[0]}.'
        state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if not trained.vouched:
        check_stored_config(plain, checkpoint)
    with safe_loading():
        model = MODELS.build(copy.deepcopy(plain.model))
    _fill(model, state, f'{checkpoint}')
    temperature = _calibrated(model, plain.model, checkpoint, networks, temperature)
    model.to(device).eval()
    meta = dict(trained.content.get('meta', {}).get('dataset_meta') or {})
    meta = meta or plain.get('test_dataloader', {}).get('dataset', {}).get('metainfo', {})
    classes, palette = _classes(meta, model)
    model.dataset_meta = dict(classes=classes, palette=palette)
    pipeline, masks = _without_masks(plain.get('test_pipeline') or [])
    return LoadedSegmentor(
        model, networks, plain, pipeline, masks, classes, palette, checkpoint, record, temperature
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Options of tools that use what was trained, for :func:`load_source`."""
    parser.add_argument(
        'source', help='checkpoint, work dir of a run that has ended, or exported folder'
    )
    parser.add_argument('--config', help='config file (default: the one in the checkpoint)')
    parser.add_argument(
        '--network',
        default='auto',
        help='network of an online method, several joined by +, average or teacher_average '
        '(default: as final.json or the config says)',
    )
    parser.add_argument(
        '--temperature',
        metavar='T|auto',
        default='auto',
        type=lambda text: text if text == 'auto' else float(text),
        help='divide logits by T, which changes confidence and no class; auto (default): by '
        'what tools/analysis_tools/calibrate.py has written beside the checkpoint, if it has; '
        '1: by nothing',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let the checkpoint run code, because you trust who made it',
    )


def load_source(args: argparse.Namespace, device: str = 'cpu') -> LoadedSegmentor:
    """:func:`load_segmentor` with the options of a command line."""
    trusted = [find_checkpoint(args.source)[0]] if args.trust_checkpoint else []
    options = (args.config, args.network, trusted, device, args.temperature)
    loaded = load_segmentor(args.source, *options)
    if loaded.temperature != 1:
        text = f'confidence is calibrated: logits are divided by {loaded.temperature:.4g}'
        print(f'{text} (--temperature 1: not)', file=sys.stderr)
    return loaded


def _calibrated(
    model: BaseSegmentor, cfg: dict, path: Path, networks: List[str], wanted: Union[float, str]
) -> float:
    """Put a temperature into the weights of a model and return it; 'auto' is 1 if none fits."""
    if wanted == 'auto' and not temperature_file(path).is_file():
        return 1.0
    state = copy.deepcopy(model.state_dict())
    try:
        if len(networks) > 1 and wanted != 1:
            raise ValueError(f'a temperature is of one network, not of {networks} together')
        found = read_temperature(path, networks[0]) if wanted == 'auto' else float(wanted)
        if found != 1:
            scale_logits(model, cfg, state, found)
        return found
    except ValueError as error:
        if wanted != 'auto':
            raise
        model.load_state_dict(state)
        print_log(f'confidence is not calibrated: {error}', 'current', logging.WARNING)
        return 1.0


def find_checkpoint(source: PathLike) -> Tuple[Path, Dict[str, Any]]:
    """The checkpoint that a path stands for, and ``final.json`` if it is a work dir.

    Raises:
        FileNotFoundError: There is none.
    """
    source = Path(source).expanduser()
    record = source / 'final.json'
    if record.is_file():
        found = json.loads(record.read_text(encoding='utf-8'))
        if found.get('task', 'segmentation') != 'segmentation':
            raise ValueError(f'{source} holds a classifier: use mmpretrain, after exporting it')
        return source / found['checkpoint'], found
    if source.is_file():
        return source, {}
    for name in _FINAL:
        if (source / name).is_file():
            return source / name, {}
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist')
    others = sorted(str(path) for path in source.rglob('*.pth'))
    raise FileNotFoundError(
        f'{source} has neither final.json, which a run writes when it ends, nor segmentor.pth of '
        f'an exported folder. Name a checkpoint{": " + ", ".join(others[-3:]) if others else ""}'
    )


def _as_trained(cfg: Config, networks: List[str]) -> dict:
    """The model of the config, predicting with several networks."""
    model = copy.deepcopy(cfg.to_dict()['model'])
    forget_pretrained(model)
    if 'members' not in model:
        model['predict_on'] = networks
        if 'data_preprocessor' in cfg:
            model.setdefault('data_preprocessor', cfg.to_dict()['data_preprocessor'])
    return model


def _fill(model: BaseSegmentor, state: Dict[str, torch.Tensor], what: str) -> None:
    """Load weights that have to be complete; what only training needs may be left over."""
    expected = model.state_dict()
    given = {key: value for key, value in state.items() if key in expected}
    missing = [key for key in expected if key not in given]
    other = [key for key, value in given.items() if value.shape != expected[key].shape]
    if missing or other:
        raise ValueError(
            f'{what} does not fit the config: {len(missing)} weights are missing {missing[:3]}, '
            f'{len(other)} have another shape {other[:3]}'
        )
    model.load_state_dict(given)


def _classes(meta: dict, model: BaseSegmentor) -> Tuple[List[str], List[Sequence[int]]]:
    """Names and colors; where nothing is known numbers, and colors as mmseg makes them up."""
    count = max(2, model.num_classes)
    classes = list(meta.get('classes') or ())
    if len(classes) != count:
        classes = [str(index) for index in range(count)]
    palette = meta.get('palette')
    if palette is None or len(palette) < len(classes):
        # Colors far apart, the same ones each time; the first class is black.
        palette = [(i * 97 % 256, i * 173 % 256, i * 59 % 256) for i in range(len(classes))]
    return classes, [list(map(int, color)) for color in palette]


def _without_masks(pipeline: Sequence[dict]) -> Tuple[List[dict], Dict[str, Any]]:
    steps = [(step, TRANSFORMS.get(step['type'])) for step in pipeline]
    masks = [s for s, kind in steps if isinstance(kind, type) and issubclass(kind, LoadAnnotations)]
    rest = [copy.deepcopy(dict(step)) for step, _ in steps if step not in masks]
    return rest, dict(masks[0]) if masks else {}
