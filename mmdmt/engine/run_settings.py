"""Refuses settings of a run that would fail only at its first validation or in a later stage."""

from collections.abc import Mapping
from typing import Any, List, Optional, Sequence

from mmengine.config import Config
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

from mmdmt.checks import check_range, listed, meant
from mmdmt.evaluation.reliability_metric import metric_keys
from mmdmt.registry import DATASETS

#: What mmseg's ``IoUMetric`` gives, beside ``aAcc``, for each of its ``iou_metrics``.
IOU_METRICS = dict(
    mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'], mFscore=['mFscore', 'mPrecision', 'mRecall']
)


def check_run(cfg: Config) -> None:
    """Check learning rate, metrics and the rule for the best checkpoint of a run.

    Raises:
        ValueError: With the key, its value and what it may be.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    optimizer = wrapper.get('optimizer') if isinstance(wrapper, Mapping) else None
    if isinstance(optimizer, Mapping) and 'lr' in optimizer:
        check_range('optim_wrapper.optimizer.lr', optimizer['lr'], 0)
    for key in ('val_evaluator', 'test_evaluator'):
        metric_names(cfg.get(key), key)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = checkpoint.get('save_best') or []
    if cfg.get('val_evaluator') and best != 'auto':
        # As `student/mIoU`, where several networks are validated.
        by_network = 'NetworksValLoop' in str((cfg.get('val_cfg') or {}).get('type'))
        for name in [best] if isinstance(best, str) else best:
            name = name.rsplit('/', 1)[-1] if by_network else name
            check_metric('default_hooks.checkpoint.save_best', name, cfg.val_evaluator)


def check_metric(key: str, name: str, evaluator: Any) -> None:
    """Refuse a metric that ``val_evaluator`` does not give, where that is known.

    Raises:
        ValueError: With ``key``, the name and those that are given.
    """
    known = metric_names(evaluator, 'val_evaluator')
    if known is not None and name not in known:
        raise ValueError(
            f'`{key}` is {name!r}, but `val_evaluator` gives {known}{meant(name, known, 0.5)}'
        )


def metric_names(evaluator: Any, key: str) -> Optional[List[str]]:
    """Names of the metrics that evaluators give; None where any of them is not known here.

    Raises:
        ValueError: If mmseg's ``IoUMetric`` is asked for what it does not have.
    """
    parts = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    names: List[str] = []
    known = True
    for part in parts:
        kind = str(part.get('type')).split('.')[-1] if isinstance(part, Mapping) else ''
        if kind in ('IoUMetric', 'IoUOfClasses'):
            found = [*_iou_names(part.get('iou_metrics', ['mIoU']), key), *part.get('also', ())]
        elif kind == 'ReliabilityMetric':
            found = metric_keys(**part)
        elif kind == 'Accuracy' and 'thrs' not in part:  # of mmpretrain
            topk = part.get('topk', 1)
            found = [f'top{k}' for k in ([topk] if isinstance(topk, int) else topk)]
        else:
            known, found = False, []
        prefix = part.get('prefix', 'accuracy' if kind == 'Accuracy' else None) if found else None
        names += [f'{prefix}/{name}' if prefix else name for name in found]
    return names if known else None


def _iou_names(chosen: Any, key: str) -> List[str]:
    chosen = [chosen] if isinstance(chosen, str) else chosen
    for name in chosen:
        if name not in IOU_METRICS:
            raise ValueError(
                f'`{key}.iou_metrics` has {name!r}, but IoUMetric knows {[*IOU_METRICS]}'
                f'{meant(name, IOU_METRICS, 0.5)}'
            )
    return list(dict.fromkeys(['aAcc', *(n for name in chosen for n in IOU_METRICS[name])]))


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Refuse mmseg decode heads for another number of classes than the images have.

    Args:
        model (nn.Module): Any model; heads that are not mmseg's are not looked at.
        dataset (BaseDataset | dict, optional): Built or configured, of which the first source
            counts; nothing is read.

    Raises:
        ValueError: With the heads, their numbers and the classes.
    """
    heads = {
        f'model.{name}': module.num_classes
        for name, module in model.named_modules()
        if isinstance(module, BaseDecodeHead)
    }
    classes = _classes_of(dataset) if heads else None
    wrong = {name: count for name, count in heads.items() if classes and count != len(classes)}
    if wrong:
        found = ', '.join(f'`{name}.num_classes` is {count}' for name, count in wrong.items())
        raise ValueError(
            f'{found}, but the images have {len(classes)} classes ({listed(classes)}): set '
            f'num_classes to {len(classes)}, or correct `metainfo.classes`'
        )


def dataset_of(loader: Any) -> Any:
    """Dataset of a loader, or of its config."""
    return loader.get('dataset') if isinstance(loader, dict) else getattr(loader, 'dataset', None)


def _classes_of(dataset: Any) -> Optional[Sequence[str]]:
    """Names of the classes of a dataset or its config; None where they are not known."""
    if not isinstance(dataset, Mapping):
        return getattr(dataset, 'metainfo', {}).get('classes')
    inner = dataset.get('datasets') or dataset.get('dataset')
    if inner:
        return _classes_of(inner[0] if isinstance(inner, (list, tuple)) else inner)
    default = getattr(DATASETS.get(str(dataset.get('type'))), 'METAINFO', {}).get('classes')
    classes = (dataset.get('metainfo') or {}).get('classes', default)
    return classes if isinstance(classes, (list, tuple)) else None  # mmengine also takes a file
