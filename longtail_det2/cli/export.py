"""Export a trained detector as ONNX and verify that it detects what eager PyTorch does."""

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell

from .inputs import add_detector_arguments, open_detector

EPILOG = """\
examples:
  %(prog)s --weights output/my_run --output exported --sample-image photo.jpg
  %(prog)s --config-file shapes/faster_rcnn_tiny_sigmoid_shapes.py --weights output/shapes/model_final.pth \\
      --output exported/shapes_lazy model.roi_heads.box_predictor.test_score_thresh=0.3

In Python: ExportedDetector("exported")(image), from longtail_det2.export. For other programs, metadata.json
beside the model tells of the input, the outputs and the classes. Nothing is overwritten.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the detector, where it goes, and what the export is compared on."""
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder to make")
    add("--sample-image", action="append", default=[], metavar="FILE", help="compare on it; may be repeated")
    add(
        "--tolerance", type=float, default=1e-4, metavar="T", help="largest difference (default: %(default)g)"
    )
    add_detector_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Export, and print the differences to eager PyTorch."""
    from longtail_det2.export.exporting import export_detector
    from longtail_det2.export.graph import MODEL_FILE

    detector = open_detector(args)
    differences = export_detector(detector, args.output, pictures=args.sample_image, tolerance=args.tolerance)
    for name, difference in differences.items():
        tell(f"{name}: {difference}")
    worst = max(difference.largest for difference in differences.values())
    path = Path(args.output) / MODEL_FILE
    tell(f"largest difference {worst:.1e} (tolerance {args.tolerance:g}); wrote {path}")
