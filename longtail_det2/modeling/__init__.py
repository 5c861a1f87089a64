"""Losses, heads, detectors and backbones; importing this package puts all of them into the registries."""

from . import backbone, losses, meta_arch, proposal_generator, roi_heads

__all__ = ["backbone", "losses", "meta_arch", "proposal_generator", "roi_heads"]
