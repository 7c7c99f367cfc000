"""Registries of mmdmt: children of mmengine's root registries, scope ``mmdmt``.

With the root registries as parents, ``type='mmdmt.X'`` resolves from every other OpenMMLab
registry and scope, so that stock mmseg and mmpretrain tools run configs that use this package.
"""

from typing import Any, Optional

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, locations=['mmdmt.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, locations=['mmdmt.datasets']
)
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, locations=['mmdmt.datasets'])
MODELS = Registry('model', parent=MMENGINE_MODELS, locations=['mmdmt.models'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, locations=['mmdmt.evaluation'])
OPTIM_WRAPPERS = Registry(
    'optim wrapper', parent=MMENGINE_OPTIM_WRAPPERS, locations=['mmdmt.engine']
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, locations=['mmdmt.engine.hooks'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, locations=['mmdmt.engine'])
RUNNERS = Registry(
    'runner',
    build_func=MMENGINE_RUNNERS.build_func,
    parent=MMENGINE_RUNNERS,
    locations=['mmdmt.engine.runners'],
)
TASK_UTILS = Registry('task util', parent=MMENGINE_TASK_UTILS, locations=['mmdmt.pseudo'])


def class_of(registry: Registry, kind: Any) -> Optional[type]:
    """The class that a ``type`` of a config means in the default scope; None if there is none."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as current:
        try:
            return current.get(kind)
        except RuntimeError:  # how mmengine says that the name means nothing
            return None
