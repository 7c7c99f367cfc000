"""Turn a classifier's checkpoint into a plain mmpretrain config and checkpoint."""

import copy
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdmt.export.plain import (
    PathLike,
    foreign_types,
    forget_pretrained,
    keep_local_backends,
    read_trained,
    with_imports,
    write_plain,
)

_RUNTIME_KEYS = ('default_scope', 'env_cfg', 'visualizer', 'log_processor', 'log_level')
_TRAINING_ONLY = ('gamma1', 'gamma2', 'ramp', 'mixup_alpha', 'update_bn_twice')


class ExportedClassifier(NamedTuple):
    """What :func:`export_classifier` wrote."""

    config: Path
    checkpoint: Path
    foreign_types: List[str]  # of mmdmt, for which the config imports it


def export_classifier(
    checkpoint: PathLike,
    out_dir: PathLike,
    config: Optional[PathLike] = None,
    trusted: Sequence[PathLike] = (),
) -> ExportedClassifier:
    """Write the averaged network as ``classifier.py`` and ``classifier.pth`` for mmpretrain.

    The checkpoint is of a stage of mutual training, or of labeled-only training; the arguments are
    those of :func:`mmdmt.export.segmentor.export_segmentor`.

    Raises:
        ValueError: No config, one of another model, or weights that do not fit it.
        UntrustedCheckpointError: The checkpoint, or the config stored in it, could run code.
    """
    trained = read_trained(checkpoint, config, trusted)
    loaded = trained.content
    init_default_scope(trained.cfg.get('default_scope', 'mmpretrain'))
    plain = plain_classifier_config(trained.cfg)
    meta = dict(loaded.get('meta', {}).get('dataset_meta') or {})
    stem = Path(out_dir) / 'classifier'
    files = write_plain(stem, plain, trained, loaded['state_dict'], meta, f'{checkpoint}')
    return ExportedClassifier(*files, foreign_types(plain))


def plain_classifier_config(cfg: Config) -> Config:
    """Flat config with mmpretrain's own types for testing the classifier of a training config.

    It imports mmdmt only if ``foreign_types`` are left.

    Raises:
        ValueError: If the model is not a classifier.
    """
    cfg = copy.deepcopy(cfg.to_dict())
    plain = {key: cfg[key] for key in _RUNTIME_KEYS if key in cfg}
    keep_local_backends(plain)
    plain['model'] = _plain_model(cfg['model'])
    plain['default_hooks'] = dict(visualization=dict(type='VisualizationHook', enable=False))
    if cfg.get('test_dataloader'):
        loader = cfg['test_dataloader']
        loader['dataset'] = _plain_dataset(loader['dataset'])
        plain.update(
            test_dataloader=loader,
            test_pipeline=loader['dataset'].get('pipeline', []),
            test_evaluator=cfg.get('test_evaluator', dict(type='Accuracy', topk=(1,))),
            test_cfg=dict(type='TestLoop'),
        )
    # The import registers datasets and transforms, too.
    return with_imports(plain, cfg, 'mmdmt.classification')


def _plain_model(model: Dict[str, Any]) -> Dict[str, Any]:
    """The classifier without what only training needs."""
    if str(model.get('type')).split('.')[-1] not in ('MutualClassifier', 'ImageClassifier'):
        raise ValueError(
            f'the model is a {model.get("type")}, not a classifier: '
            'tools/model_converters/export_segmentor.py exports segmentors'
        )
    for key in _TRAINING_ONLY:
        model.pop(key, None)
    model['type'] = 'ImageClassifier'
    forget_pretrained(model)
    return model


def _plain_dataset(dataset: Dict[str, Any]) -> Dict[str, Any]:
    """A whole dataset stays; of a list of images only its dataset is mmpretrain's."""
    if dataset.get('type') != 'mmdmt.ListedDataset' or dataset.get('ann_file'):
        return dataset
    return dict(dataset['dataset'], pipeline=dataset.get('pipeline', []))
