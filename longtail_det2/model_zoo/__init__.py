"""Configs by name, found in a checkout and after an install, and the weights published for them."""

from longtail_det2.config_names import get_config_file, list_configs

from .model_zoo import get, get_checkpoint, get_config

__all__ = ["get", "get_checkpoint", "get_config", "get_config_file", "list_configs"]
