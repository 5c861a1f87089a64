"""Check a CSV of image labels and its images; print what is in it and what is wrong. Writes nothing."""

import argparse

from longtail_det2.utils.console import tell

from .prepare_image_labels import add_source_arguments

EPILOG = """\
example:
  %(prog)s --csv train.csv --images images/train --classes classes.txt
"""
add_arguments = add_source_arguments


def run(args: argparse.Namespace) -> None:
    """Print the report; what `prepare image-labels` would refuse is an error."""
    from longtail_det2.data.datasets.image_labels import check_image_labels

    report = check_image_labels(**vars(args))
    tell(report.text())
    report.issues.raise_errors()
