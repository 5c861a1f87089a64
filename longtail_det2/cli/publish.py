"""Publish a checkpoint: weights only, config, metrics, classes and a model card in one folder."""

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell

EPILOG = """\
examples:
  %(prog)s output/shapes --output published/shapes
  %(prog)s output/shapes/model_0001499.pth --output published/early
  %(prog)s output/shapes --zoo my_zoo
  LONGTAIL_DET2_ZOO=my_zoo python -c "from longtail_det2 import model_zoo;
      model_zoo.get('shapes/faster_rcnn_tiny_sigmoid_shapes.yaml', trained=True)"

The name of the weights file ends in the first digits of its SHA-256, and MODEL.WEIGHTS takes it. What the
card says is read from the run. Nothing is overwritten.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, where it goes, and what it does not say itself."""
    add = parser.add_argument
    add("source", type=Path, metavar="RUN", help="OUTPUT_DIR of a run, or a checkpoint in one")
    add("--output", default="", metavar="DIR", help="folder to make")
    add("--zoo", default="", metavar="DIR", help="instead: a zoo's folder, with a sub-folder per config")
    add("--name", default="", metavar="CONFIG", help="config's name, if run.json does not say")


def run(args: argparse.Namespace) -> None:
    """Publish, and print the file, its hash and the results."""
    from longtail_det2.model_zoo.publishing import publish, result_table

    published = publish(args.source, args.output, zoo=args.zoo, name=args.name)
    sha256 = published.document["weights"]["sha256"]
    tell(f"{published.weights}\nSHA-256 {sha256}\n{result_table(published.document)}")
