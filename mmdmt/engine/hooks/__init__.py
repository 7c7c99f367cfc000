"""Hooks."""

from mmdmt.engine.hooks.coupling_hook import CouplingHook
from mmdmt.engine.hooks.dataset_check_hook import DatasetCheckHook
from mmdmt.engine.hooks.deferred_info_hook import DeferredInfoHook
from mmdmt.engine.hooks.finite_hook import FiniteHook
from mmdmt.engine.hooks.iter_seed_hook import IterSeedHook
from mmdmt.engine.hooks.method_hook import MethodHook
from mmdmt.engine.hooks.progress_bar_hook import ProgressBarHook
from mmdmt.engine.hooks.pseudo_label_hook import PseudoLabelHook
from mmdmt.engine.hooks.safe_checkpoint_hook import SafeCheckpointHook
from mmdmt.engine.hooks.unpredicted_class_hook import UnpredictedClassHook
from mmdmt.engine.hooks.validate_on_resume_hook import ValidateOnResumeHook

__all__ = [
    'CouplingHook',
    'DatasetCheckHook',
    'DeferredInfoHook',
    'FiniteHook',
    'IterSeedHook',
    'MethodHook',
    'ProgressBarHook',
    'PseudoLabelHook',
    'SafeCheckpointHook',
    'UnpredictedClassHook',
    'ValidateOnResumeHook',
]
