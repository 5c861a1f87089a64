"""Losses, heads and backbones; nothing is registered before the submodules are imported."""
