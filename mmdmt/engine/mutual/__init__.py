"""The stages of mutual training: their plan, their configs and their ledger."""

from mmengine.config import Config

from .ledger import Ledger, LedgerMismatchError
from .plan import MutualPlan, Stage
from .stage_config import StageConfigBuilder

#: Builders of stage configs by task; ``mmdmt.classification`` adds its own when it is imported.
BUILDERS = {'segmentation': StageConfigBuilder}


def build_stage_config_builder(cfg: Config) -> StageConfigBuilder:
    """The builder for ``mutual.task``, segmentation by default."""
    task = (cfg.get('mutual') or {}).get('task', 'segmentation')
    if task not in BUILDERS:
        raise ValueError(
            f'`mutual.task` must be one of {sorted(BUILDERS)}, got {task!r}; for classification '
            "set custom_imports = dict(imports=['mmdmt.classification'])"
        )
    return BUILDERS[task](cfg)


__all__ = [
    'BUILDERS',
    'Ledger',
    'LedgerMismatchError',
    'MutualPlan',
    'Stage',
    'StageConfigBuilder',
    'build_stage_config_builder',
]
