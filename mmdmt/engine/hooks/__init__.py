"""Hooks."""

from .coupling_hook import CouplingHook
from .dataset_check_hook import DatasetCheckHook
from .iter_seed_hook import IterSeedHook
from .progress_bar_hook import ProgressBarHook
from .pseudo_label_hook import PseudoLabelHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .switch_teacher_hook import SwitchTeacherHook
from .teacher_update_hook import TeacherUpdateHook
from .validate_on_resume_hook import ValidateOnResumeHook

__all__ = [
    'CouplingHook',
    'DatasetCheckHook',
    'IterSeedHook',
    'ProgressBarHook',
    'PseudoLabelHook',
    'SafeCheckpointHook',
    'SwitchTeacherHook',
    'TeacherUpdateHook',
    'ValidateOnResumeHook',
]
