"""Finds before the first stage what would otherwise end the chain after days of training."""

import os.path as osp
from typing import List

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmdmt.engine.mutual.plan import Stage
from mmdmt.engine.mutual.stage_config import StageConfigBuilder, schedulers_of
from mmdmt.files import is_remote
from mmdmt.registry import MODELS


def check_chain(builder: StageConfigBuilder, work_dir: str) -> List[Config]:
    """Build the config of every stage, and the network of every member, and look at them.

    Args:
        builder (StageConfigBuilder): Of the chain.
        work_dir (str): Folder of the chain. Nothing is written.

    Returns:
        list[Config]: The configs of round 0, in the order of the members.

    Raises:
        ValueError: If a stage cannot be trained, validated or stored as the config says.
        FileNotFoundError: If a member's initial checkpoint is missing.
    """
    configs = [_build(builder, stage, work_dir) for stage in builder.plan.stages]
    for stage, cfg in zip(builder.plan.stages, configs):
        _check_schedule(stage, cfg)
        _check_checkpoints(builder, stage, cfg)
    _check_initial_checkpoints(builder)
    count = len(builder.plan.members)
    for cfg in configs[-count:]:  # with the loss of the rounds
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
            MODELS.build(cfg.model)
    return configs[:count]


def _build(builder: StageConfigBuilder, stage: Stage, work_dir: str) -> Config:
    return builder.build(
        stage,
        osp.join(work_dir, stage.name),
        load_from=None,
        teacher_checkpoint=None,
    )


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


def _check_checkpoints(builder: StageConfigBuilder, stage: Stage, cfg: Config) -> None:
    """The next stage needs this one's last checkpoint, or its best, under its usual name."""
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    for key, needed in (('save_last', True), ('filename_tmpl', 'iter_{}.pth'), ('out_dir', None)):
        if hook.get(key, needed) not in (needed, None):
            raise ValueError(
                f'`default_hooks.checkpoint.{key}`={hook[key]!r} does not work with `mutual`: '
                f'stages hand on {stage.name}/iter_<N>.pth; take the key out'
            )
    rule = builder.select_of(stage)
    if rule != 'last' and not (cfg.get('val_dataloader') and cfg.get('val_cfg')):
        raise ValueError(
            f'`mutual.select={rule!r}` needs a validation set: give `val_dataloader`, '
            '`val_evaluator` and `val_cfg`, or use select="last"'
        )


def _check_initial_checkpoints(builder: StageConfigBuilder) -> None:
    for name in builder.plan.member_names:
        path = builder.initial_checkpoint(Stage(0, name))
        if path and not is_remote(path) and not osp.isfile(path):
            raise FileNotFoundError(
                f'`load_from` of member {name!r} is {path}, which does not exist'
            )
