"""Evaluates checkpoints of a work dir and keeps what was counted beside them."""

import contextlib
import json
import os.path as osp
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Union
from uuid import uuid4

from mmengine.config import Config

from mmdmt.checks import check_choice
from mmdmt.config import resolve_config
from mmdmt.distributed import unwrap
from mmdmt.engine.runners import SemiRunner

PathLike = Union[str, Path]
#: Name of the network of a model that is a single one.
SINGLE = 'model'
FOLDER = 'evaluation'


def evaluate_checkpoint(
    checkpoint: PathLike,
    config: Optional[PathLike] = None,
    networks: Optional[Sequence[str]] = None,
    dataset: str = 'test',
    out_dir: Optional[PathLike] = None,
    stem: Optional[str] = None,
    facts: Optional[Mapping[str, Any]] = None,
    metrics: Sequence[dict] = (),
) -> Dict[str, Path]:
    """Evaluate networks of a checkpoint, each into ``<out_dir>/<stem>.<network>.json``.

    The files are those of :class:`~mmdmt.evaluation.RecordMetric` with ``checkpoint`` (relative to
    the work dir), ``step``, ``network``, ``default`` (whether it predicts by default), ``dataset``
    and ``facts``, which may also name the network. On the validation images the name ends with
    ``.val.json``.

    Args:
        checkpoint: File in a work dir, or in the folder of a stage of mutual training.
        config: Config it was trained with. Defaults to the one in the folder of the checkpoint.
        networks: Names, or what else ``predict_on`` may be; by default the network that predicts.
            'all' are all networks and that one.
        dataset: 'test' or 'val'.
        out_dir: Defaults to ``evaluation`` beside the checkpoint.
        stem: Defaults to the name of the checkpoint without its suffix.
        facts: Further entries, such as ``dict(selected_by='last')``.
        metrics: Configs of further metrics that see the same predictions, such as
            ``mmdmt.ReliabilityMetric``, which adds what it finds to the file.

    Returns:
        dict[str, Path]: The file of each network, the one that predicts by default first.

    Raises:
        ValueError: There is no such dataset, network or config; it says what there is.
    """
    check_choice('dataset', dataset, ('test', 'val'))
    folder = osp.dirname(osp.abspath(checkpoint))
    out_dir = Path(out_dir or osp.join(folder, FOLDER))
    cfg = _test_config(config or find_config(folder), checkpoint, dataset, out_dir, metrics)
    runner = SemiRunner.from_cfg(cfg)
    model = unwrap(runner.model)
    evaluator = runner.test_loop.evaluator
    record = evaluator.metrics[0]
    by_default = getattr(model, 'predict_on', SINGLE)
    stem = stem or Path(checkpoint).stem
    common = dict(dataset=dataset, step=step_of(checkpoint))
    common['checkpoint'] = osp.relpath(checkpoint, out_dir.parent)
    facts = facts or {}
    written = {}
    for network in _chosen(model, networks, by_default):
        name = network if isinstance(network, str) else '+'.join(network)
        shown = facts.get('network', name)
        path = out_dir / f'{stem}.{shown}{".val" if dataset == "val" else ""}.json'
        for metric in evaluator.metrics:
            if hasattr(metric, 'out_file'):
                metric.out_file = path
        record.facts = {**common, 'network': name, 'default': network == by_default, **facts}
        with model.predicting_on(network) if network != SINGLE else contextlib.nullcontext():
            runner.test()
        written[name] = path
    return written


def read_records(folder: PathLike) -> List[Dict[str, Any]]:
    """What :func:`evaluate_checkpoint` has written into ``<folder>/evaluation``, sorted by name."""
    files = sorted(Path(folder, FOLDER).glob('*.json'))
    return [dict(json.loads(file.read_text()), file=str(file)) for file in files]


def find_config(folder: PathLike) -> Path:
    """The config that a run has left in its work dir.

    Raises:
        ValueError: There is none, or several.
    """
    named = Path(folder, 'config.py')
    found = [named] if named.is_file() else sorted(Path(folder).glob('*.py'))
    if len(found) != 1:
        raise ValueError(
            f'{folder} has {len(found)} configs ({[path.name for path in found]}) where one is '
            'needed: name the config the checkpoint was trained with'
        )
    return found[0]


def step_of(checkpoint: PathLike) -> Optional[int]:
    """Step in the name of a checkpoint, such as 600 of ``best_mIoU_iter_600.pth``."""
    found = re.search(r'iter_(\d+)\.pth$', str(checkpoint))
    return int(found[1]) if found else None


def _test_config(
    config: PathLike, checkpoint: PathLike, dataset: str, out_dir: Path, metrics: Sequence[dict]
) -> Config:
    """A config that tests the checkpoint with what is to be recorded."""
    cfg = resolve_config(Config.fromfile(str(config)))
    if cfg.get(f'{dataset}_dataloader') is None:
        raise ValueError(f'{config} has no `{dataset}_dataloader`: evaluate on another dataset')
    for key in ('mutual', 'stage', 'allow_unmatched', 'custom_hooks'):
        cfg.pop(key, None)
    cfg.update(runner_type='mmdmt.SemiRunner', load_from=str(checkpoint), resume=False)
    cfg.update(work_dir=str(out_dir), experiment_name=f'evaluation_{uuid4().hex[:8]}')
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
    cfg.test_dataloader = cfg[f'{dataset}_dataloader']
    cfg.test_evaluator = [dict(type='mmdmt.RecordMetric'), *metrics]
    cfg.test_cfg = dict(cfg.get('test_cfg') or {}, type='TestLoop')
    cfg.test_cfg.pop('networks', None)
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg.pop(key, None)
    return cfg


def _chosen(model: Any, networks: Optional[Sequence[str]], by_default: Any) -> List[Any]:
    """What to evaluate, the network that predicts by default first."""
    known = getattr(model, 'network_names', [SINGLE])
    if networks is None:
        return [by_default]
    chosen = [by_default, *known] if networks == 'all' else list(networks)
    if known == [SINGLE] and set(chosen) != {SINGLE}:
        raise ValueError(f'the model is a single network, {SINGLE!r}; there is no {chosen}')
    chosen = [name for index, name in enumerate(chosen) if name not in chosen[:index]]
    return sorted(chosen, key=lambda name: name != by_default)
