"""Registers what image classification needs; ``custom_imports`` of its configs name this module.

Importing ``mmdmt`` alone does not need mmpretrain, this module does.
"""

import importlib

from mmdmt.dependencies import MMPRETRAIN, check_optional

check_optional(MMPRETRAIN, 'image classification')
for _name in ('mmpretrain.models', 'mmpretrain.datasets', 'mmpretrain.evaluation'):
    importlib.import_module(_name)  # the default scope alone registers nothing

from .ema_model import EMAModel  # noqa: E402
from .identity import Identity  # noqa: E402
from .listed_dataset import ListedDataset  # noqa: E402
from .mutual_classifier import MutualClassifier  # noqa: E402
from .rand_augment import RandAugment  # noqa: E402
from .soft_labeler import SoftLabeler  # noqa: E402
from .stages import ClassificationStageConfigBuilder  # noqa: E402
from .wide_resnet import WideResNet  # noqa: E402

__all__ = [
    'ClassificationStageConfigBuilder',
    'EMAModel',
    'Identity',
    'ListedDataset',
    'MutualClassifier',
    'RandAugment',
    'SoftLabeler',
    'WideResNet',
]
