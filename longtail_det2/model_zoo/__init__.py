"""Configs by name, found in a checkout and after an install."""

from .model_zoo import get, get_config, get_config_file, list_configs

__all__ = ["get", "get_config", "get_config_file", "list_configs"]
