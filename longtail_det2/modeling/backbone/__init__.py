"""Backbones."""

from .fcos_fpn import build_fcos_resnet_fpn_backbone
from .tiny import TinyBackbone, build_tiny_backbone

__all__ = ["TinyBackbone", "build_fcos_resnet_fpn_backbone", "build_tiny_backbone"]
