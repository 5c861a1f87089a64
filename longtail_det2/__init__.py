"""longtail_det2: training object detectors on long-tailed, multi-label, hierarchical data with Detectron2.

Importing the package registers nothing, reads no file and needs no compiled extension.
"""

__version__ = "0.1.0"
