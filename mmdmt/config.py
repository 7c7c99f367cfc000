"""Settings that are set once at the top of a config and used in many places of it."""

from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config

from mmdmt.checks import refuse_unknown_keys
from mmdmt.protocols import apply_protocol

# Keys under which a setting of `overridable` is used. Settings not named here are refused.
USED_AS = {
    'data_root': ('data_root',),
    'labeled_list': ('ann_file',),
    'unlabeled_list': ('ann_file',),
    'img_suffix': ('img_suffix',),
    'seg_map_suffix': ('seg_map_suffix',),
    'metainfo': ('metainfo',),
    'image_size': ('scale',),
    'resize_ratio': ('ratio_range',),
    'crop_size': ('crop_size', 'size'),
    'batch_size': ('batch_size',),
    'val_list': ('ann_file',),
    'num_classes': ('num_classes',),
    'max_iters': ('max_iters', 'end'),
}
# Where the settings are used. Batch sizes of validation are not those of training, and lengths of
# the stages of mutual training are settings of their own.
SECTIONS = {
    'batch_size': ('train_dataloader',),
    'val_list': ('val_dataloader',),
    'num_classes': ('model',),
    'max_iters': ('train_cfg', 'param_scheduler'),
}


def normalize_config(cfg: Config) -> Config:
    """Put top-level settings of data sets wherever they are used, and check the batch size.

    A config variable of a ``_base_`` file is a plain copy in every place that uses it: a child
    config or ``--cfg-options`` that sets ``data_root`` changes only the variable. So the data set
    configs note the values they were written with::

        overridable = dict(data_root=data_root, labeled_list=labeled_list, ...)

    and this function replaces the noted value by the present one, under the keys of ``USED_AS``.
    A place that was given a value of its own keeps it. ``evaluation_protocol`` is resolved as well
    (:func:`mmdmt.protocols.apply_protocol`). A config without either is only checked. A
    second call changes nothing.

    Args:
        cfg (Config): Changed in place.

    Returns:
        Config: ``cfg``.

    Raises:
        ValueError: If ``overridable`` has an unknown setting, or the batch sizes of the training
            loader and its sampler differ.
    """
    noted = cfg.get('overridable') or {}
    refuse_unknown_keys('overridable', noted, USED_AS)
    changed = {
        name: (old, cfg[name])
        for name, old in noted.items()
        if name in cfg and _plain(cfg[name]) != _plain(old)
    }
    # All places first, so that no setting meets the new value of another one.
    places = [
        (node, key, new)
        for name, (old, new) in changed.items()
        for node, key in _uses(cfg, name, old)
    ]
    for node, key, new in places:
        # RandomCrop takes tuples only, but the command line may give lists.
        node[key] = tuple(new) if isinstance(node[key], tuple) else new
    for name, (_, new) in changed.items():
        noted[name] = new
    apply_protocol(cfg)  # last: its windows have the final crop size
    _check_batch_size(cfg)
    return cfg


def _uses(cfg: Config, name: str, value: Any) -> list[tuple[dict, str]]:
    """The (dict, key) pairs that use ``value`` of the setting ``name``."""
    sections = SECTIONS.get(name) or [key for key in cfg if key != 'overridable']
    keys = USED_AS[name]
    return [
        (node, key)
        for node in _dicts(cfg[section] for section in sections if section in cfg)
        for key in keys
        if key in node and _plain(node[key]) == _plain(value)
    ]


def _dicts(values: Iterable[Any]) -> Iterator[dict]:
    """All dicts in nested dicts, lists and tuples."""
    for value in values:
        if isinstance(value, dict):
            yield value
            yield from _dicts(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _dicts(value)


def _plain(value: Any) -> Any:
    """Tuples as lists, because the command line may give lists."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _check_batch_size(cfg: Config) -> None:
    loader = cfg.get('train_dataloader') or {}
    sampler = loader.get('sampler') or {}
    sampled = sampler.get('batch_size')
    if sampled is not None and sampled != loader.get('batch_size'):
        raise ValueError(
            f'`train_dataloader.batch_size` is {loader.get("batch_size")}, but '
            f'`train_dataloader.sampler.batch_size` is {sampled}, so that batches would not have '
            'the stated ratio; set the top-level `batch_size` of the data set config, or both'
        )
