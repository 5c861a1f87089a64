"""Helpers that belong to no stage of the pipeline: errors, environment report."""
