"""A generated data set that is long-tailed, multi-label and hierarchical by construction."""

from .generate import GENERATION_FILE, VERSION, generate_shapes
from .plan import FORMATS, ShapesOptions

__all__ = ["FORMATS", "GENERATION_FILE", "VERSION", "ShapesOptions", "generate_shapes"]
