"""Check a COCO or LVIS JSON file and its images; print what is in it and what is wrong. Writes nothing."""

import argparse

from longtail_det2.utils.console import tell

from .prepare_coco import add_source_arguments

EPILOG = """\
example:
  %(prog)s --json train.json --images images/train
"""
add_arguments = add_source_arguments


def run(args: argparse.Namespace) -> None:
    """Print the report; what `prepare coco` would refuse is an error."""
    from longtail_det2.data.datasets.coco import check_coco

    report = check_coco(**vars(args))
    tell(report.text())
    report.issues.raise_errors()
