"""Turn a network of any checkpoint into a plain mmseg config and checkpoint."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models import SegDataPreProcessor
from torch import Tensor

from mmdmt.checkpoint import load_checkpoint_file, read_stored_config, save_atomically
from mmdmt.config import resolve_config
from mmdmt.registry import MODELS

PathLike = Union[str, Path]

# What a config needs to be tested and to predict, beside model and data.
_RUNTIME_KEYS = (
    'default_scope',
    'env_cfg',
    'vis_backends',
    'visualizer',
    'log_processor',
    'log_level',
    'tta_model',
)
_PLAIN_TYPES = {
    'mmdmt.PseudoLabelSegmentor': 'EncoderDecoder',
    'mmdmt.SemiDataPreprocessor': 'SegDataPreProcessor',
    'mmdmt.PackSemiInputs': 'PackSegInputs',
}
# Parts of a segmentor, by which its keys in a checkpoint are known.
_PARTS = ('backbone', 'decode_head')


class ExportedSegmentor(NamedTuple):
    """What :func:`export_segmentor` wrote."""

    config: Path
    checkpoint: Path
    network: str
    """Name of the exported network, empty if the checkpoint holds a single one."""
    foreign_types: List[str]
    """Types of mmdmt that have no counterpart in mmseg; the config imports mmdmt for them."""


def export_segmentor(
    checkpoint: PathLike,
    out_dir: PathLike,
    config: Optional[PathLike] = None,
    network: str = 'auto',
    trusted: Sequence[PathLike] = (),
) -> ExportedSegmentor:
    """Write one network as ``segmentor.py`` and ``segmentor.pth``, which need mmseg only.

    The config holds what testing and predicting need: model, test pipeline, test dataset. The
    logits are those of the network in ``checkpoint``.

    Args:
        checkpoint: Checkpoint of an online method, of a stage of an offline one, or of
            supervised training.
        out_dir: Folder to write to.
        config: Config file the checkpoint was trained with. Defaults to the text stored in it.
        network: Name of the network (``student``, ``teacher``, ...), or ``auto``: the one that
            predicts (``semi_test_cfg.predict_on``, of several the first; else the first teacher).
        trusted: Checkpoints that may be unpickled without restrictions.

    Returns:
        The files, the network and what in the config is not mmseg's.

    Raises:
        ValueError: No such network, no config, or weights that do not fit the config.
    """
    loaded = load_checkpoint_file(checkpoint, trusted=trusted)
    cfg = _read_config(checkpoint, loaded, config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    network = select_network(loaded['state_dict'], cfg.model, network)
    plain = plain_config(cfg, network)
    weights = _weights_of(loaded['state_dict'], network)
    weights = _check_fit(plain, weights, f'network {network!r} of {checkpoint}')

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    config_file, checkpoint_file = out_dir / 'segmentor.py', out_dir / 'segmentor.pth'
    meta = {'dataset_meta': _dataset_meta(loaded, plain), 'cfg': plain.pretty_text}
    save_atomically({'meta': meta, 'state_dict': weights}, checkpoint_file)
    plain.dump(config_file)
    return ExportedSegmentor(config_file, checkpoint_file, network, foreign_types(plain))


def _read_config(checkpoint: PathLike, loaded: dict, config: Optional[PathLike]) -> Config:
    """The config file, or the text stored in the checkpoint, which is not executed."""
    if 'state_dict' not in loaded:
        raise ValueError(f'{checkpoint} has no state_dict: it was not written by a runner')
    if config is not None:
        return resolve_config(Config.fromfile(config))
    text = loaded.get('meta', {}).get('cfg')
    if not text:
        raise ValueError(f'{checkpoint} stores no config: name the config file')
    return read_stored_config(text)


def select_network(state_dict: Dict[str, Tensor], model: dict, network: str = 'auto') -> str:
    """Name of the network to export.

    Args:
        state_dict: Weights of the checkpoint.
        model: Model config of the checkpoint.
        network: Name or ``auto``.

    Returns:
        The name; empty for a checkpoint of a single network.

    Raises:
        ValueError: The checkpoint holds no such network.
    """
    pairs = (key.split('.')[:2] for key in state_dict)
    names = list(dict.fromkeys(pair[0] for pair in pairs if pair[-1] in _PARTS and len(pair) == 2))
    if not names:
        if network not in ('auto', ''):
            raise ValueError(
                f'there is no network {network!r}: the checkpoint holds a single one; leave it out'
            )
        return ''
    if network == 'auto':
        network = _predicting_network(names, model)
    if network not in names:
        raise ValueError(f'there is no network {network!r}: the checkpoint holds {names}')
    return network


def _predicting_network(names: List[str], model: dict) -> str:
    """The network that ``semi_test_cfg.predict_on`` names; the first of an average."""
    teacher = next((name for name in names if name.startswith('teacher')), names[0])
    averages = dict(average=names[0], teacher_average=teacher)
    default = getattr(MODELS.get(str(model.get('type'))), 'default_predict_on', None) or teacher
    predict_on = (model.get('semi_test_cfg') or {}).get('predict_on', default)
    if not isinstance(predict_on, str):
        predict_on = predict_on[0]
    return averages.get(predict_on, predict_on)


def _weights_of(state_dict: Dict[str, Tensor], network: str) -> Dict[str, Tensor]:
    """Weights of one network under plain names, in storages of their own."""
    prefix = f'{network}.' if network else ''
    return {
        key[len(prefix) :]: value.detach().clone()
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def _check_fit(plain: Config, weights: Dict[str, Tensor], what: str) -> Dict[str, Tensor]:
    """Build the plain model; return the weights it has, refuse if it misses one."""
    model = MODELS.build(copy.deepcopy(plain.model))
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    differing = [
        key for key in expected if key in weights and weights[key].shape != expected[key].shape
    ]
    if missing or differing:
        raise ValueError(
            f'{what} does not fit the config: {len(missing)} weights are missing '
            f'{missing[:3]}, {len(differing)} have another shape {differing[:3]}'
        )
    return {key: weights[key] for key in expected}


def _dataset_meta(loaded: dict, plain: Config) -> dict:
    """Classes and palette, which inferencers read from the checkpoint."""
    stored = loaded.get('meta', {}).get('dataset_meta')
    return dict(stored or plain.get('test_dataloader', {}).get('dataset', {}).get('metainfo', {}))


# --- Config --------------------------------------------------------------------------------------


def plain_config(cfg: Config, network: str = '') -> Config:
    """Config with mmseg's own types for testing a single network.

    Args:
        cfg: Training config.
        network: Name of the network, for a method whose networks have configs of their own.

    Returns:
        A flat config. It imports mmdmt only if :func:`foreign_types` are left.
    """
    cfg = copy.deepcopy(cfg.to_dict())
    plain = {key: cfg[key] for key in _RUNTIME_KEYS if key in cfg}
    plain.update(
        model=_plain_model(cfg, network),
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=dict(type='CheckpointHook', by_epoch=False),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            visualization=dict(type='SegVisualizationHook'),
        ),
        **_plain_data(cfg),
    )
    plain = Config(_replace_types(plain))
    imports = [name for name in _imports(cfg) if name != 'mmdmt']
    if foreign_types(plain):
        imports.append('mmdmt')
    if imports:
        plain.custom_imports = dict(imports=imports, allow_failed_imports=False)
    return plain


def foreign_types(cfg: Union[Config, dict]) -> List[str]:
    """Types of mmdmt in a config."""
    cfg = cfg.to_dict() if isinstance(cfg, Config) else cfg
    kinds = (str(part.get('type', '')) for part in _dicts(cfg))
    return sorted({kind for kind in kinds if kind.startswith('mmdmt.')})


def _imports(cfg: dict) -> List[str]:
    imports = (cfg.get('custom_imports') or {}).get('imports', [])
    return [imports] if isinstance(imports, str) else list(imports)


def _plain_model(cfg: dict, network: str) -> dict:
    """The segmentor without what only training needs."""
    outer = cfg['model']
    model = copy.deepcopy(outer.get('segmentor', outer))
    if 'type' not in model:  # one config for each side: dict(l=..., r=...)
        model = model[network.rsplit('_', 1)[-1]]
    preprocessor = outer.get('data_preprocessor') or cfg.get('data_preprocessor')
    preprocessor = preprocessor or model.get('data_preprocessor')
    for key in ('pseudo_loss', 'ignore_index'):
        if model.get('type') == 'mmdmt.PseudoLabelSegmentor':
            model.pop(key, None)
    model['data_preprocessor'] = _plain_preprocessor(preprocessor)
    for part in _dicts(model):
        _forget_pretrained(part)
        loss = part.get('loss_decode')
        if isinstance(loss, dict) and str(loss.get('type')).startswith('mmdmt.'):
            part['loss_decode'] = dict(type='CrossEntropyLoss', avg_non_ignore=True)
    return model


def _plain_preprocessor(preprocessor: dict) -> dict:
    """The arguments that mmseg's data preprocessor has too."""
    known = inspect.signature(SegDataPreProcessor.__init__).parameters
    kept = {key: value for key, value in preprocessor.items() if key in known}
    return dict(kept, type='SegDataPreProcessor')


def _forget_pretrained(part: dict) -> None:
    """Do not load initial weights that the checkpoint replaces."""
    if 'pretrained' in part:
        part['pretrained'] = False if isinstance(part['pretrained'], bool) else None
    init_cfg = part.get('init_cfg')
    steps = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    if any(isinstance(step, dict) and step.get('type') == 'Pretrained' for step in steps):
        part['init_cfg'] = None


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


def _replace_types(value: Any) -> Any:
    """Replace types of mmdmt that have a counterpart in mmseg."""
    for part in _dicts(value):
        if isinstance(part.get('type'), str):
            part['type'] = _PLAIN_TYPES.get(part['type'], part['type'])
    return value


def _dicts(value: Any) -> Iterator[dict]:
    """All dicts in nested dicts, lists and tuples, the outermost first."""
    if isinstance(value, dict):
        yield value
        children = list(value.values())
    else:
        children = list(value) if isinstance(value, (list, tuple)) else []
    for child in children:
        yield from _dicts(child)
