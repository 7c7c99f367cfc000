"""Registers what image classification needs; ``custom_imports`` of its configs name this module.

Importing ``mmdmt`` alone does not need mmpretrain, this module does.
"""

import importlib

from mmdmt.utils.dependencies import MMPRETRAIN, check_optional

check_optional(MMPRETRAIN, 'image classification')
for _name in ('mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.evaluation'):
    importlib.import_module(_name)  # the default scope alone registers nothing

from mmdmt.datasets import classification as datasets  # noqa: E402
from mmdmt.engine.hooks.list_check_hook import ListCheckHook  # noqa: E402
from mmdmt.engine.hooks.soft_label_hook import SoftLabelHook  # noqa: E402
from mmdmt.models import classifiers as models  # noqa: E402

__all__ = ['ListCheckHook', 'SoftLabelHook', 'datasets', 'models']
