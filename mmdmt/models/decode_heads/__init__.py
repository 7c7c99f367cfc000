"""Decode heads that mmseg does not have."""

from .deeplabv2_head import DeepLabV2Head
from .dpt_head import DPTHead

__all__ = ['DPTHead', 'DeepLabV2Head']
