#!/usr/bin/env python3
"""Publish a checkpoint: weights only, config, metrics, classes and a model card in one folder."""

import argparse
import sys
import warnings
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

from longtail_det2.model_zoo.publishing import publish, result_table  # noqa: E402
from longtail_det2.utils.errors import ConfigError  # noqa: E402

EPILOG = """\
examples:
  python scripts/publish_checkpoint.py output/shapes --output published/shapes
  python scripts/publish_checkpoint.py output/shapes/model_0001499.pth --output published/early
  python scripts/publish_checkpoint.py output/shapes --zoo my_zoo
  LONGTAIL_DET2_ZOO=my_zoo python -c "from longtail_det2 import model_zoo;
      model_zoo.get('shapes/faster_rcnn_tiny_sigmoid_shapes.yaml', trained=True)"

The name of the weights file ends in the first digits of its SHA-256, and MODEL.WEIGHTS takes it. What the
card says is read from the run. Nothing is overwritten.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, metavar="RUN", help="OUTPUT_DIR of a run, or a checkpoint in one")
    add("--output", default="", metavar="DIR", help="folder to make")
    add("--zoo", default="", metavar="DIR", help="instead: a zoo's folder, with a sub-folder per config")
    add("--name", default="", metavar="CONFIG", help="config's name, if run.json does not say")
    add("--config-file", default="", metavar="FILE", help="the run's config (default: config.yaml beside it)")
    add("--classes", default="", metavar="JSON", help="class identifiers, for checkpoints without them")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    try:
        published = publish(
            args.source,
            args.output,
            zoo=args.zoo,
            name=args.name,
            config_file=args.config_file,
            class_file=args.classes,
        )
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sha256 = published.document["weights"]["sha256"]
    print(f"{published.weights}\nSHA-256 {sha256}\n{result_table(published.document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
