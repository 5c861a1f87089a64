"""Count the anchors that match objects in one epoch of training, without the network, into a statistics file.

A detector that is trained without sampling starts at the score pi with the least loss, the share of positive
pairs of anchor and class. The file, with the class statistics in it, is what DATASETS.STATISTICS names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import ConfigError, DataError

from .inputs import add_overrides

if TYPE_CHECKING:
    from longtail_det2.data.statistics import AnchorStatistics, ClassStatistics

EPILOG = """\
example:
  %(prog)s --config-file shapes/retinanet_tiny_focal_shapes.yaml --output statistics/retinanet.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config and the file."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="CONFIG", help="YAML config: path, or name in the model zoo")
    add("--output", type=Path, required=True, metavar="FILE", help="statistics.json to write")
    add("--quiet", action="store_true", help="no progress bar")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Count, write the file and print the priors."""
    from longtail_det2.config_files import load_cfg
    from longtail_det2.data.datasets.builtin import register_datasets
    from longtail_det2.data.statistics import write_statistics
    from longtail_det2.engine.anchor_statistics import measure_anchors
    from longtail_det2.engine.setup import available_device, resolve_num_classes

    if args.output.is_dir():
        raise DataError(f"--output {args.output} is a folder; name the file to write")
    cfg = load_cfg(args.config_file, args.opts)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty: name the data set whose anchors are to be counted")
    register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
    resolve_num_classes(cfg.DATASETS.TRAIN, (), cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    statistics = measure_anchors(cfg, progress=not args.quiet)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(args.output, statistics)
    assert statistics.anchors is not None
    tell("\n".join(anchor_lines(statistics, statistics.anchors)))
    tell(f"to use it: DATASETS.STATISTICS {args.output}")


def anchor_lines(statistics: ClassStatistics, anchors: AnchorStatistics) -> list[str]:
    """Say how rare positive anchors are, of all classes and of head, medium and tail."""
    import numpy as np
    import torch

    from longtail_det2.data.statistics import FREQUENCY_BINS, frequency_bins
    from longtail_det2.modeling.anchor_priors import anchor_prior

    lines = [f"{anchors.number:,} anchors (N), {anchors.foreground:,} of them positive (N_f)"]
    for kind, text in (("objectness", "N_f / N"), ("shared", "pi = sum_j n_j / (N K)")):
        prior = torch.as_tensor(anchor_prior(anchors, kind), dtype=torch.float64)
        lines.append(f"{kind}: {text} = {prior:.4g}, bias b = -ln((1 - pi) / pi) = {prior.logit():.4f}")
    bins = frequency_bins(statistics.image_counts)
    for number, name in enumerate(FREQUENCY_BINS):
        shares = anchors.positives[(bins == number) & (anchors.positives > 0)] / anchors.number
        if len(shares):
            lines.append(
                f"  {name:8}{len(shares):>5} classes, n_j / N from {shares.min():.3g} to {shares.max():.3g}"
            )
    absent = [statistics.class_ids[c] for c in np.flatnonzero(anchors.positives == 0).tolist()]
    if absent:
        more = " ..." if len(absent) > 10 else ""
        lines.append(f"  {len(absent)} without a positive anchor: {', '.join(absent[:10])}{more}")
    return lines
