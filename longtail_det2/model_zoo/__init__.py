"""Configs by name, found in a checkout and after an install."""
