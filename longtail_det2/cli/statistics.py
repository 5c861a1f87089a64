"""Count images, instances and co-occurrence of classes, in annotation stores or registered data sets.

Writes statistics.json (what DATASETS.STATISTICS names), draws the long-tail curve and a heat map of the
co-occurrence rates P(j | i), and prints a summary with the highest rates. The labels of an image are counted
as those of one object where the data have no others, or INPUT.IMAGE_LEVEL is True.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longtail_det2.utils.console import tell

from .inputs import add_data_arguments

if TYPE_CHECKING:
    import numpy as np

    from longtail_det2.data.statistics import ClassStatistics

EPILOG = """\
examples:
  %(prog)s --store datasets/shapes/stores/train --output statistics
  %(prog)s --dataset my_train --dataset my_more --output statistics \\
      DATASETS.STORES my_train=stores/train,my_more=stores/more
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data and what is drawn and printed."""
    add_data_arguments(parser, several=True)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    add("--format", choices=("png", "svg"), default="png", help="of the plots (default: %(default)s)")
    bins = "tail has fewer images than LOW, medium fewer than HIGH (default: thirds of the classes)"
    add("--thresholds", type=float, nargs=2, metavar=("LOW", "HIGH"), help=bins)
    add("--strongest", type=int, default=20, metavar="N", help="rates to print (default: %(default)s)")
    rates = "print rates given a class with at least N objects (default: %(default)s)"
    add("--least-objects", type=int, default=10, metavar="N", help=rates)


def run(args: argparse.Namespace) -> None:
    """Count, write the file, draw the plots and print the summary."""
    from longtail_det2.config_files import load_cfg
    from longtail_det2.data.datasets.builtin import get_metadata, register_datasets
    from longtail_det2.data.statistics import compute_statistics, frequency_bins, write_statistics
    from longtail_det2.data.store import AnnotationStore
    from longtail_det2.visualization.plots import draw_heat_map, draw_long_tail, most_cooccurring

    cfg = load_cfg(args.config_file, args.opts)
    if args.store is not None:
        sources = [AnnotationStore(path) for path in args.store]
        names, form = sources[0].class_names, sources[0].form
    else:
        register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
        metadata = get_metadata(args.dataset[0])
        sources, names, form = args.dataset, metadata.thing_classes, metadata.get("evaluator_type")
    statistics = compute_statistics(sources, cfg.INPUT.IMAGE_LEVEL or form == "image_labels")
    bins = frequency_bins(statistics.image_counts, args.thresholds)
    args.output.mkdir(parents=True, exist_ok=True)
    files = ["statistics.json", f"long_tail.{args.format}", f"cooccurrence.{args.format}"]
    write_statistics(args.output / files[0], statistics)
    draw_long_tail(args.output / files[1], statistics.image_counts, bins)
    classes = most_cooccurring(statistics)
    if len(classes):
        draw_heat_map(args.output / files[2], statistics.rates(), names, classes)
    lines = frequency_lines(statistics, bins)
    lines += rate_lines(statistics, names, args.strongest, args.least_objects)
    lines.append(f"in {args.output}: {', '.join(files if len(classes) else files[:2])}")
    tell("\n".join(lines))


def frequency_lines(statistics: ClassStatistics, bins: np.ndarray) -> list[str]:
    """Say how much there is, and how unequal it is."""
    import numpy as np

    from longtail_det2.data.statistics import FREQUENCY_BINS
    from longtail_det2.visualization.plots import inequality_text

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
    """Name the highest rates of classes that the hierarchy does not relate."""
    import numpy as np

    from longtail_det2.visualization.plots import related_classes

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
