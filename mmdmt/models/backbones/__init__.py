"""Backbones that mmseg does not have."""

from .timm_vision_transformer import TIMMVisionTransformer

__all__ = ['TIMMVisionTransformer']
