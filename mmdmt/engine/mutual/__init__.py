"""The stages of mutual training: their plan, their configs and their ledger."""

from mmengine.config import Config

from .classification_stages import ClassificationStageConfigBuilder
from .ledger import Ledger, LedgerMismatchError
from .plan import MutualPlan, Stage
from .stage_config import StageConfigBuilder

BUILDERS = {
    'segmentation': StageConfigBuilder,
    'classification': ClassificationStageConfigBuilder,
}


def build_stage_config_builder(cfg: Config) -> StageConfigBuilder:
    """The builder for ``mutual.task``, segmentation by default.

    Raises:
        ValueError: If there is no such task.
    """
    task = (cfg.get('mutual') or {}).get('task', 'segmentation')
    if task not in BUILDERS:
        raise ValueError(f'`mutual.task` must be one of {sorted(BUILDERS)}, got {task!r}')
    return BUILDERS[task](cfg)


__all__ = [
    'BUILDERS',
    'ClassificationStageConfigBuilder',
    'Ledger',
    'LedgerMismatchError',
    'MutualPlan',
    'Stage',
    'StageConfigBuilder',
    'build_stage_config_builder',
]
