#!/usr/bin/env python3
"""Export a trained detector as ONNX and verify that it detects what eager PyTorch does."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

from longtail_det2.export.compare import TOLERANCE  # noqa: E402
from longtail_det2.export.exporting import export_detector  # noqa: E402
from longtail_det2.export.graph import MODEL_FILE  # noqa: E402
from longtail_det2.export.source import load_detector  # noqa: E402
from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402

EPILOG = """\
examples:
  python scripts/export_model.py --config-file shapes/faster_rcnn_tiny_sigmoid_shapes.yaml \\
      --weights output/shapes/model_final.pth --output exported/shapes --sample-image photo.jpg
  python scripts/export_model.py --config-file shapes/faster_rcnn_tiny_sigmoid_shapes.py \\
      --weights output/shapes/model_final.pth --output exported/shapes_lazy \\
      model.roi_heads.box_predictor.test_score_thresh=0.3

In Python: ExportedDetector("exported/shapes")(picture), from longtail_det2.export. For other programs,
metadata.json beside the model tells of the input, the outputs and the classes. Nothing is overwritten.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="CONFIG", help="path or name in the model zoo, .yaml or .py")
    add(
        "--weights", default="", metavar="FILE", help="trained weights (default: the config's published ones)"
    )
    add("--output", required=True, metavar="DIR", help="folder to make")
    add("--sample-image", action="append", default=[], metavar="FILE", help="compare on it; may be repeated")
    add("--tolerance", type=float, default=TOLERANCE, help="largest difference (default: %(default)g)")
    add("opts", nargs=argparse.REMAINDER, metavar="OPTIONS", help="config options, as the train scripts take")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        detector = load_detector(args.config_file, args.weights, args.opts)
        exported = export_detector(
            detector,
            args.output,
            pictures=args.sample_image,
            tolerance=args.tolerance,
        )
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, difference in exported.differences.items():
        print(f"{name}: {difference}")
    worst = max(difference.largest for difference in exported.differences.values())
    path = Path(args.output) / MODEL_FILE
    print(f"largest difference {worst:.1e} (tolerance {args.tolerance:g}); wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
