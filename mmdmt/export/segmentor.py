"""Turn a network of any checkpoint into a plain mmseg config and checkpoint."""

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.models import SegDataPreProcessor
from torch import Tensor

from mmdmt.export.plain import (
    PathLike,
    dicts_in,
    foreign_types,
    forget_pretrained,
    keep_local_backends,
    read_trained,
    with_imports,
    write_plain,
)
from mmdmt.export.stored_types import find_registered
from mmdmt.export.temperature import read_temperature

# What a config needs to be tested and to predict, beside model and data.
_RUNTIME_KEYS = ('default_scope', 'env_cfg', 'vis_backends', 'visualizer', 'log_processor',
                 'log_level', 'tta_model', 'temperature')  # fmt: skip
_HOOKS = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
_PLAIN_TYPES = {
    'mmdmt.PseudoLabelSegmentor': 'EncoderDecoder',
    'mmdmt.PackSemiInputs': 'PackSegInputs',
    'mmdmt.MeanTTAModel': 'SegTTAModel',
}
# By which a segmentor's keys in a checkpoint are known.
_PARTS = ('backbone', 'decode_head')


class ExportedSegmentor(NamedTuple):
    """What :func:`export_segmentor` wrote."""

    config: Path
    checkpoint: Path
    network: str  # empty if the checkpoint holds a single one
    foreign_types: List[str]  # of mmdmt, for which the config imports it


def export_segmentor(
    checkpoint: PathLike,
    out_dir: PathLike,
    config: Optional[PathLike] = None,
    network: str = 'auto',
    trusted: Sequence[PathLike] = (),
    temperature: Union[float, str, None] = None,
) -> ExportedSegmentor:
    """Write one network as ``segmentor.py`` and ``segmentor.pth``, which need mmseg only.

    The config holds what testing and predicting need: model, test pipeline, test dataset. The
    logits are those of the network in ``checkpoint``.

    Args:
        checkpoint: Checkpoint of an online method, of a stage of an offline one, or of
            supervised training.
        out_dir: Folder to write to.
        config: Config file it was trained with. Defaults to the text stored in it.
        network: Name of the network (``student``, ``teacher``, ..., of an ensemble ``members.0``),
            or ``auto``: the one that predicts (``predict_on``, else the first teacher).
        trusted: Checkpoints that may be unpickled, and build what they name, without restrictions.
        temperature: What the logits are divided by, within the weights (:func:`.scale_logits`), or
            ``auto``: what was fitted to this network (:func:`.read_temperature`). The config
            records it as ``temperature``.

    Raises:
        ValueError: No such network, several that predict together, no config, weights that do not
            fit the config, or a head that a temperature cannot be put into.
        FileNotFoundError: ``auto``, and no temperature was fitted.
        UntrustedCheckpointError: The checkpoint, or the config stored in it, could run code.
    """
    trained = read_trained(checkpoint, config, trusted)
    loaded, cfg = trained.content, trained.cfg
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    network = select_network(loaded['state_dict'], cfg.model, network)
    plain = plain_config(cfg, network)
    prefix = f'{network}.' if network else ''
    found = loaded['state_dict'].items()
    weights = {key[len(prefix) :]: value for key, value in found if key.startswith(prefix)}
    meta = loaded.get('meta', {}).get('dataset_meta')
    meta = meta or plain.get('test_dataloader', {}).get('dataset', {}).get('metainfo', {})
    what = f'network {network!r} of {checkpoint}'
    if temperature == 'auto':
        temperature = read_temperature(checkpoint, network)
    files = write_plain(
        Path(out_dir) / 'segmentor', plain, trained, weights, dict(meta), what, temperature
    )
    return ExportedSegmentor(*files, network, foreign_types(plain))


def predicting_networks(
    state_dict: Dict[str, Tensor], model: dict, network: str = 'auto'
) -> List[str]:
    """Names of the networks that predict, together if there are several; ``['']`` for a single one.

    Args:
        state_dict: Weights of the checkpoint.
        model: Config of its model.
        network: A name, several joined by ``+``, 'average', 'teacher_average', or 'auto'
            (``predict_on``, else the first teacher). Of an ensemble its members: ``members.0``.

    Raises:
        ValueError: The checkpoint holds no such network.
    """
    pairs = (key.split('.')[:2] for key in state_dict)
    names = list(dict.fromkeys(pair[0] for pair in pairs if pair[-1] in _PARTS and len(pair) == 2))
    members = (key.split('.')[:2] for key in state_dict if key.startswith('members.'))
    members = list(dict.fromkeys('.'.join(pair) for pair in members))
    if not names and not members:
        if network not in ('auto', ''):
            raise ValueError(
                f'there is no network {network!r}: the checkpoint holds a single one; leave it out'
            )
        return ['']
    teachers = [name for name in names if name.startswith('teacher')]
    students = [name for name in names if name not in teachers]
    chosen = (_predict_on(model) or 'teacher_first') if network in ('auto', '') else network
    known = dict(
        average=students or members,
        teacher_average=teachers,
        teacher_first=members or (teachers or names)[:1],
    )
    wanted = chosen.split('+') if isinstance(chosen, str) else list(chosen)
    wanted = known.get(wanted[0], wanted) if len(wanted) == 1 else wanted
    unknown = [name for name in wanted if name not in [*names, *members]]
    if unknown or not wanted:
        raise ValueError(
            f'there is no network {network!r}: the checkpoint holds {names or members}'
        )
    return wanted


def select_network(state_dict: Dict[str, Tensor], model: dict, network: str = 'auto') -> str:
    """The one network that ``network`` stands for; empty where a checkpoint holds only one.

    Raises:
        ValueError: There is no such network, or several predict together, which no single mmseg
            model does.
    """
    names = predicting_networks(state_dict, model, network)
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f'{len(names)} networks predict together here, {names}, by the mean of their '
        'probabilities, which no single mmseg model does. Export one of them, with scores of its '
        f'own (--network {names[0]}), or all of them as one ONNX graph '
        '(tools/model_converters/export_onnx.py); '
        'tools/predict.py uses the checkpoint as it is'
    )


def _predict_on(model: dict) -> Any:
    """What the config of a model predicts with; None if it does not say so."""
    # Not `MODELS.get`, which would import what a checkpoint names.
    method = find_registered(str(model.get('type')), [MODELS], {'mmdmt'})
    return model.get('predict_on') or getattr(method, 'default_predict_on', None)


# --- Config --------------------------------------------------------------------------------------


def plain_config(cfg: Config, network: str = '') -> Config:
    """Flat config with mmseg's own types for testing one ``network`` of a training config.

    It imports mmdmt only if types of it are left.
    """
    cfg = copy.deepcopy(cfg.to_dict())
    plain = {key: cfg[key] for key in _RUNTIME_KEYS if key in cfg}
    plain.update(model=_plain_model(cfg, network), default_hooks=_HOOKS, **_plain_data(cfg))
    keep_local_backends(plain)
    for part in dicts_in(plain):
        if isinstance(part.get('type'), str):
            part['type'] = _PLAIN_TYPES.get(part['type'], part['type'])
        if part.get('type') == 'mmdmt.LoadMasks' and not part.get('mask_values'):
            part.pop('mask_values', None)
            part['type'] = 'LoadAnnotations'
    return with_imports(plain, cfg, 'mmdmt')


def _plain_model(cfg: dict, network: str) -> dict:
    """The segmentor without what only training needs."""
    outer = cfg['model']
    if 'members' in outer:  # an ensemble
        index = int(network.rpartition('.')[-1]) if network else 0
        outer = dict(outer['members'][index])
        network = ''
    model = first = copy.deepcopy(outer.get('segmentor', {} if network else outer))
    if 'type' not in model:  # one config for each side: dict(l=..., r=...)
        side = network.rsplit('_', 1)[-1]
        if side not in model:
            raise ValueError(
                f'no config of the network {network!r} in {outer.get("type")}: an exported method '
                'has one for all in `model.segmentor`, or one for each side, dict(l=..., r=...), '
                'of networks like student_l'
            )
        first, model = next(iter(model.values())), model[side]
    if model['type'] == 'mmdmt.PseudoLabelSegmentor':
        for key in ('pseudo_loss', 'ignore_index', 'batch_statistics'):
            model.pop(key, None)
    given = next(filter(None, (part.get('data_preprocessor') for part in (first, outer, cfg))))
    known = inspect.signature(SegDataPreProcessor.__init__).parameters
    kept = {key: value for key, value in given.items() if key in known}
    if given.get('padding') == 'black' and given.get('test_cfg'):  # mmseg cannot pad like this
        kept.update(type='mmdmt.PaddingPreprocessor', padding='black')
    if len(given.get('mean') or ()) not in (0, 1, 3):  # which mmseg refuses
        kept.update(type='mmdmt.PaddingPreprocessor')
    model['data_preprocessor'] = dict(dict(type='SegDataPreProcessor'), **kept)
    forget_pretrained(model)
    for part in dicts_in(model):
        loss = part.get('loss_decode')
        losses = loss if isinstance(loss, (list, tuple)) else [loss or {}]
        if any(str(each.get('type')).startswith('mmdmt.') for each in losses):
            sigmoid = part.get('out_channels') == 1
            part['loss_decode'] = dict(
                type='CrossEntropyLoss', avg_non_ignore=True, use_sigmoid=sigmoid
            )
    return model


def _plain_data(cfg: dict) -> dict:
    """Test pipeline, loader, evaluator and loop, as far as the config has them."""
    loader = copy.deepcopy(cfg.get('test_dataloader') or cfg.get('val_dataloader'))
    data = {key: cfg[key] for key in ('test_pipeline', 'tta_pipeline') if key in cfg}
    if loader is None:
        return data
    data.setdefault('test_pipeline', loader['dataset'].get('pipeline', []))
    evaluator = cfg.get('test_evaluator') or cfg.get('val_evaluator')
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    stock = [metric for metric in metrics if not str(metric['type']).startswith('mmdmt.')]
    stock = stock or [dict(type='IoUMetric', iou_metrics=['mIoU'])]
    return dict(
        data,
        test_dataloader=loader,
        test_evaluator=stock[0] if len(stock) == 1 else stock,
        test_cfg=dict(type='TestLoop'),
    )
