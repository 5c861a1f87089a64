"""Configs by name, found in a checkout and after an install, and the weights published for them."""

from .model_zoo import get, get_checkpoint, get_config, get_config_file, list_configs

__all__ = ["get", "get_checkpoint", "get_config", "get_config_file", "list_configs"]
