"""Check Open Images files and their images; print what a store of them has. Writes nothing that stays."""

import argparse
import tempfile
from pathlib import Path

from longtail_det2.utils.console import tell

from .prepare_openimages import add_source_arguments, summary

EPILOG = """\
example:
  %(prog)s --boxes train-annotations-bbox.csv --classes class-descriptions.csv --images images/
"""
add_arguments = add_source_arguments


def run(args: argparse.Namespace) -> None:
    """Make the store in a temporary folder and print its summary."""
    from longtail_det2.data.datasets.openimages import prepare_openimages

    options = {name: value for name, value in vars(args).items() if name != "quiet"}
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_openimages(**options, output=Path(folder) / "store", progress=not args.quiet)
        tell(summary(store).partition("\n")[2])
