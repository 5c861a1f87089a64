"""Backbones."""

from .timm_fpn import TimmBackbone, build_timm_fpn_backbone, timm_pixels
from .tiny import TinyBackbone, build_tiny_backbone

__all__ = ["TimmBackbone", "TinyBackbone", "build_timm_fpn_backbone", "build_tiny_backbone", "timm_pixels"]
