#!/usr/bin/env python3
"""Counts images, instances and co-occurrence of classes, in annotation stores or registered data sets.

Writes statistics.json (what DATASETS.STATISTICS names), draws the long-tail curve and a heat map of the
co-occurrence rates P(j | i), and prints a summary with the highest rates.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

import numpy as np  # noqa: E402

from longtail_det2.config_files import load_cfg  # noqa: E402
from longtail_det2.data.datasets.builtin import get_metadata, register_datasets  # noqa: E402
from longtail_det2.data.statistics import (  # noqa: E402
    FREQUENCY_BINS,
    ClassStatistics,
    compute_statistics,
    frequency_bins,
    write_statistics,
)
from longtail_det2.data.store import AnnotationStore  # noqa: E402
from longtail_det2.utils.console import tell, tell_error  # noqa: E402
from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.visualization.category_plots import (  # noqa: E402
    draw_heat_map,
    draw_long_tail,
    inequality_text,
    most_cooccurring,
    related_classes,
)

EPILOG = """\
examples:
  python scripts/category_statistics.py --store datasets/shapes/stores/train --output statistics
  python scripts/category_statistics.py --dataset my_train --dataset my_more --output statistics \\
      DATASETS.STORES my_train=stores/train,my_more=stores/more

In Python: read_statistics("statistics/statistics.json"), from longtail_det2.data.statistics.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_argument_group("data; several of a kind are counted together")
    add = source.add_mutually_exclusive_group(required=True).add_argument
    add("--store", action="append", metavar="DIR", help="annotation store")
    add("--dataset", action="append", metavar="NAME", help="registered data set: built-in or DATASETS.STORES")
    add = source.add_argument
    add("--root", default="", metavar="DIR", help="folder of the built-in data sets")
    add("--config-file", default="", metavar="FILE", help="YAML config that names own data sets")
    add("opts", nargs="*", help="config options: KEY VALUE ...")
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    add("--format", choices=("png", "svg"), default="png", help="of the plots (default: %(default)s)")
    bins = "tail has fewer images than LOW, medium fewer than HIGH (default: thirds of the classes)"
    add("--thresholds", type=float, nargs=2, metavar=("LOW", "HIGH"), help=bins)
    add("--strongest", type=int, default=20, metavar="N", help="rates to print (default: %(default)s)")
    rates = "print rates given a class with at least N objects (default: %(default)s)"
    add("--least-objects", type=int, default=10, metavar="N", help=rates)
    return parser


def run(args: argparse.Namespace) -> str:
    """Count, write the file and draw the plots; returns the summary.

    Raises:
        ConfigError: an option is out of range.
        DataError: data that cannot be used, or a file that cannot be written.
    """
    if args.store is not None:
        sources = [AnnotationStore(path) for path in args.store]
        names = sources[0].class_names
    else:
        cfg = load_cfg(args.config_file, args.opts)
        register_datasets(args.root or cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
        sources, names = args.dataset, get_metadata(args.dataset[0]).thing_classes
    statistics = compute_statistics(sources)
    bins = frequency_bins(statistics.image_counts, args.thresholds)
    args.output.mkdir(parents=True, exist_ok=True)
    files = ["statistics.json", f"long_tail.{args.format}", f"cooccurrence.{args.format}"]
    write_statistics(args.output / files[0], statistics)
    draw_long_tail(args.output / files[1], statistics.image_counts, bins)
    classes = most_cooccurring(statistics)
    if len(classes):
        draw_heat_map(args.output / files[2], statistics.rates(), names, classes)
    return "\n".join(
        [
            *frequency_lines(statistics, bins),
            *rate_lines(statistics, names, args.strongest, args.least_objects),
            f"in {args.output}: {', '.join(files if len(classes) else files[:2])}",
        ]
    )


def frequency_lines(statistics: ClassStatistics, bins: np.ndarray) -> list[str]:
    """How much there is, and how unequal it is."""
    counts = statistics.image_counts
    lines = [
        f"{statistics.num_images:,} images, {len(counts)} classes, {np.count_nonzero(counts == 0)} of them "
        f"without images; {inequality_text(counts)}"
    ]
    for number, name in enumerate(FREQUENCY_BINS):
        share = counts[bins == number].sum() / max(int(counts.sum()), 1)
        lines.append(f"  {name:8}{np.count_nonzero(bins == number):>5} classes{share:>8.1%}")
    return lines


def rate_lines(
    statistics: ClassStatistics, names: Sequence[str], number: int, least_objects: int
) -> list[str]:
    """The highest rates of classes that the hierarchy does not relate."""
    rates, pairs = statistics.rates(), statistics.known_cooccurrence
    objects = pairs.diagonal()
    unrelated = np.where(related_classes(statistics), 0.0, rates)
    lines = [
        f"co-occurrence: {np.count_nonzero(rates):,} rates above 0, {np.count_nonzero(unrelated):,} of them "
        f"beyond the hierarchy; the highest, given a class with {least_objects} objects or more:"
    ]
    unrelated[objects < least_objects] = 0
    highest = np.argsort(-unrelated, axis=None, kind="stable")[: min(number, np.count_nonzero(unrelated))]
    for i, j in zip(*np.unravel_index(highest, unrelated.shape), strict=True):
        lines.append(
            f"  P({names[j]} | {names[i]}) = {rates[i, j]:.3f}  ({pairs[i, j]:,} of {objects[i]:,} objects)"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        tell(run(args))
    except (ConfigError, DataError, OSError) as error:
        return tell_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
