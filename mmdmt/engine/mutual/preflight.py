"""Finds before the first stage what would otherwise end the chain after days of training."""

import copy
import os.path as osp
from typing import List

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.registry import DefaultScope
from torch import nn

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.config import schedulers_of
from mmdmt.datasets.samplers.multi_source_sampler import split_batch
from mmdmt.engine.batch_size import loader_of_process
from mmdmt.engine.mutual.plan import Stage
from mmdmt.engine.mutual.stage_config import StageConfigBuilder
from mmdmt.engine.run_settings import check_classes, check_metric, check_run
from mmdmt.files import is_remote
from mmdmt.registry import DATASETS, HOOKS, MODELS
from mmdmt.weights import load_weights, widened_input


def check_chain(builder: StageConfigBuilder, work_dir: str) -> List[Config]:
    """Build the config of every stage, and the network of every member; nothing is written.

    Returns:
        list[Config]: The configs of round 0, in the order of the members.

    Raises:
        ValueError: If a stage cannot be trained, validated or stored with this config.
        FileNotFoundError: If a member's initial checkpoint is missing.
        CheckpointMismatchError: If it does not fit the member's network.
    """
    stages = builder.plan.stages
    configs = [builder.build(stage, osp.join(work_dir, stage.name)) for stage in stages]
    for stage, cfg in zip(stages, configs):
        _check_schedule(stage, cfg)
        _check_checkpoints(builder.select_of(stage), stage, cfg)
        check_run(cfg)
        loader = cfg.train_dataloader
        split_batch(loader.batch_size, loader.sampler.source_ratio)
        if cfg.get('batch_size_is_total'):
            loader_of_process(loader, get_world_size())
    if builder.cfg.get('val_evaluator'):
        check_metric('mutual.metric', builder.metric, builder.cfg.val_evaluator)
    count = len(builder.plan.members)
    for first, cfg in zip(configs, configs[-count:]):  # the last ones have the loss of the rounds
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
            model = MODELS.build(cfg.model)
            check_classes(model, cfg.train_dataloader.dataset)
            _check_initial_weights(model, first)
    return configs[:count]


def check_data(cfg: Config, first_configs: List[Config], work_dir: str) -> None:
    """Check all sources with ``default_hooks.dataset_check`` of the whole config.

    A fault in the unlabeled images must not wait for round 1, and in round 0 members may have
    labeled images of their own (``first_configs``). A chain without rounds reads no unlabeled ones.
    """
    check = cfg.get('default_hooks', {}).get('dataset_check')
    if not check:
        return
    val = (cfg.get('val_dataloader') or {}).get('dataset')
    seen = []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        hook = HOOKS.build(check)
        configs = [cfg, *first_configs] if cfg.mutual.ratios else first_configs
        for dataset in [each.train_dataloader.dataset for each in configs]:
            if dataset.datasets[0] not in seen:
                hook.check(dataset, val, work_dir)
                seen.append(dataset.datasets[0])


def _check_initial_weights(model: nn.Module, cfg: Config) -> None:
    """The first member must not train for days before those of the second turn out wrong."""
    path = cfg.load_from
    if path and not is_remote(path):
        loaded = load_checkpoint_file(path, trusted=cfg.get('trusted_checkpoints', ()))
        with widened_input(model, cfg.get('widen_input')):
            load_weights(model, loaded, path, cfg.get('allow_unmatched', ()))


def check_names(builder: StageConfigBuilder) -> None:
    """Check that labels can be stored under the name of each unlabeled image.

    A chain without rounds labels nothing and reads no list of them.

    Raises:
        ValueError: With the name and its list.
    """
    if not builder.plan.ratios:
        return
    cfg = builder.cfg
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        source = copy.deepcopy(cfg.train_dataloader.dataset.datasets[1])
        dataset = DATASETS.build(source)
    try:
        for index in range(len(dataset)):
            builder.check_name(dataset.get_data_info(index)['name'])
    except ValueError as error:
        raise ValueError(f'{source.get("ann_file") or "unlabeled images"}: {error}') from error


def _check_schedule(stage: Stage, cfg: Config) -> None:
    length = cfg.train_cfg.max_iters
    if not isinstance(length, int) or length < 1:
        raise ValueError(f'{stage.name} has `max_iters`={length!r}: it must be at least 1')
    for scheduler in schedulers_of(cfg):
        begin = scheduler.get('begin', 0)
        if begin >= length:
            raise ValueError(
                f'{stage.name} has {length} iterations, but `param_scheduler` holds a '
                f'{scheduler.get("type")} that begins at {begin}: shorten the warm-up or make the '
                'stage longer (`mutual.supervised.max_iters`, `mutual.round.max_iters`)'
            )


def _check_checkpoints(rule: str, stage: Stage, cfg: Config) -> None:
    """A stage needs its first checkpoint, and the next one its last or best by the usual name."""
    first = None if stage.round else cfg.load_from
    if first and not is_remote(first) and not osp.isfile(first):
        raise FileNotFoundError(
            f'`load_from` of member {stage.member!r} is {first}, which does not exist'
        )
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    for key, needed in (('save_last', True), ('filename_tmpl', 'iter_{}.pth'), ('out_dir', None)):
        if hook.get(key, needed) not in (needed, None):
            raise ValueError(
                f'`default_hooks.checkpoint.{key}`={hook[key]!r} does not work with `mutual`: '
                f'stages hand on {stage.name}/iter_<N>.pth; take the key out'
            )
    if rule != 'last' and not (cfg.get('val_dataloader') and cfg.get('val_cfg')):
        raise ValueError(
            f'`mutual.select={rule!r}` needs a validation set: give `val_dataloader`, '
            '`val_evaluator` and `val_cfg`, or use select="last"'
        )
