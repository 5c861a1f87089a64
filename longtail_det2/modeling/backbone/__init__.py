"""Small backbones for CPU runs."""
