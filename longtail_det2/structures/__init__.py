"""Data structures that travel with Detectron2's `Instances`."""
