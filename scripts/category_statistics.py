#!/usr/bin/env python3
"""Counts how often classes occur and which ones concur, in annotation stores or registered data sets.

Writes class frequencies and concurrent rates (for the concurrent softmax loss) as readable JSON files, draws
the long-tail curve and a heat map of the rates, and prints a summary with the strongest pairs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

import numpy as np  # noqa: E402

from longtail_det2.config_files import load_cfg  # noqa: E402
from longtail_det2.data.category_statistics import (  # noqa: E402
    CategoryStatistics,
    LongTail,
    long_tail,
    stores_of,
)
from longtail_det2.data.concurrent_rates import ConcurrentRates, RateOptions  # noqa: E402
from longtail_det2.data.datasets.builtin import register_datasets  # noqa: E402
from longtail_det2.data.store import AnnotationStore  # noqa: E402
from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.visualization.category_plots import (  # noqa: E402
    draw_heat_map,
    draw_long_tail,
    most_concurrent,
    ratio_text,
    related_classes,
)

EPILOG = """\
examples:
  python scripts/category_statistics.py --store datasets/shapes/stores/train --output statistics
  python scripts/category_statistics.py --dataset openimages_v6_train --implicit-iou 0.5 --output statistics
  python scripts/category_statistics.py --dataset my_train --dataset my_more --output statistics \\
      DATASETS.STORES my_train=stores/train,my_more=stores/more

Files in the output folder: concurrent_rates.json (r[i][j] = P(j | i), the share of the objects of class i
that are also of class j), category_statistics.json, and the pictures. In Python:
ConcurrentRates.load("statistics/concurrent_rates.json"), from longtail_det2.data.concurrent_rates.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_argument_group("data; several of a kind are counted together")
    add = source.add_argument
    add("--store", action="append", metavar="DIR", help="annotation store")
    add("--dataset", action="append", metavar="NAME", help="registered data set: built-in or DATASETS.STORES")
    add("--root", default="", metavar="DIR", help="folder of the built-in data sets")
    add("--config-file", default="", metavar="FILE", help="YAML config that names own data sets")
    add("opts", nargs="*", help="config options: KEY VALUE ...")
    add = parser.add_argument_group("what counts as concurring").add_argument
    add("--no-explicit", action="store_true", help="not: several labels of one object")
    add("--no-hierarchy", action="store_true", help="not: the ancestors of a label")
    add(
        "--implicit-iou",
        type=float,
        metavar="T",
        help="objects of one image with at least this IoU lend each other their classes (default: never)",
    )
    add("--group-of", choices=("drop", "keep"), default="drop", help="group-of boxes (default: %(default)s)")
    add = parser.add_argument_group("what is shown").add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    add("--format", choices=("png", "svg"), default="png", help="of the pictures (default: %(default)s)")
    add(
        "--count", choices=("images", "objects"), default="images", help="of the curve (default: %(default)s)"
    )
    add(
        "--thresholds",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="tail has at most LOW, head more than HIGH (default: thirds of the classes)",
    )
    add("--strongest", type=int, default=20, metavar="N", help="pairs to print (default: %(default)s)")
    add(
        "--least-objects",
        type=int,
        default=10,
        metavar="N",
        help="print pairs given a class with at least so many objects (default: %(default)s)",
    )
    add("--classes", type=int, default=40, metavar="N", help="most in the heat map (default: %(default)s)")
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses contradictory options before any file is read."""
    if (args.store is None) == (args.dataset is None):
        parser.error("give either --store or --dataset (each may be repeated)")
    for name in ("strongest", "least_objects", "classes"):
        if getattr(args, name) < (name == "classes"):
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is too small")


def open_stores(args: argparse.Namespace) -> tuple[list[AnnotationStore], list[str]]:
    """The stores to count in and what to call them.

    Raises:
        ConfigError: the config or an option of it is wrong.
        DataError: there is no such data set or store.
    """
    if args.store is not None:
        return [AnnotationStore.open(path) for path in args.store], args.store
    cfg = load_cfg(args.config_file, args.opts)
    register_datasets(args.root or cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
    return stores_of(args.dataset), args.dataset


def run(args: argparse.Namespace) -> str:
    """Counts, writes the files and draws the pictures; returns the summary.

    Raises:
        ConfigError: an option is out of range.
        DataError: data that cannot be used, or a file that cannot be written.
    """
    options = RateOptions(not args.no_explicit, not args.no_hierarchy, args.implicit_iou, args.group_of)
    stores, names = open_stores(args)
    statistics = CategoryStatistics.of_stores(stores, names)
    tail = long_tail(statistics.counts(args.count), args.thresholds)
    rates = ConcurrentRates.of_stores(stores, options, names)
    related = related_classes(stores[0].hierarchy)
    args.output.mkdir(parents=True, exist_ok=True)
    files = ["category_statistics.json", "concurrent_rates.json", f"long_tail.{args.format}"]
    statistics.save(args.output / files[0])
    rates.save(args.output / files[1])
    draw_long_tail(args.output / files[2], tail, args.count, statistics.counts(args.count, expanded=False))
    classes = most_concurrent(rates, related, args.classes)
    if len(classes):
        files.append(f"concurrent_rates.{args.format}")
        draw_heat_map(args.output / files[3], rates, classes)
    return "\n".join(
        [
            *frequency_lines(statistics, tail, args.count),
            *rate_lines(rates, related, args.strongest, args.least_objects),
            f"in {args.output}: {', '.join(files)}",
        ]
    )


def frequency_lines(statistics: CategoryStatistics, tail: LongTail, unit: str) -> list[str]:
    """How much there is, and how unequal it is."""
    lines = [
        f"{', '.join(statistics.sources)}: {statistics.num_images:,} images, {statistics.num_objects:,} "
        f"objects, {len(tail.counts)} classes, {tail.num_empty} of them without {unit}"
    ]
    if tail.most == 0:
        return lines
    most, least = (
        statistics.class_names[np.flatnonzero(tail.counts == count)[0]] for count in (tail.most, tail.least)
    )
    lines.append(
        f"{unit} with a class or its descendants: {tail.most:,} of {most!r} to {tail.least:,} of {least!r} "
        f"({ratio_text(tail.imbalance)}), Gini {tail.gini:.3f}"
    )
    lines += [f"  {name:8}{size:>5} classes{share:>8.1%}" for name, size, share in tail.group_facts()]
    return lines


def rate_lines(rates: ConcurrentRates, related: np.ndarray, number: int, least_objects: int) -> list[str]:
    """What was counted, and the strongest pairs of unrelated classes."""
    options = rates.options
    overlaps = options["implicit_iou"]
    parts = [
        *(["co-labels"] if options["explicit"] else []),
        *(["hierarchy"] if options["hierarchy"] else []),
        *([f"overlaps with IoU >= {overlaps:g}"] if overlaps is not None else []),
    ]
    groups = "without" if options["group_of"] == "drop" else "with"
    unrelated = np.where(related, 0.0, rates.rates)
    lines = [
        f"concurrent rates of {', '.join(parts)}, {groups} group-of boxes: {np.count_nonzero(rates.rates):,} "
        f"pairs above 0, {np.count_nonzero(unrelated):,} of them beyond the hierarchy"
    ]
    unrelated[rates.objects < least_objects] = 0
    strongest = np.argsort(-unrelated, axis=None, kind="stable")[: min(number, np.count_nonzero(unrelated))]
    if len(strongest):
        lines.append(
            f"the strongest beyond the hierarchy, given a class with {least_objects} objects or more:"
        )
    for i, j in zip(*np.unravel_index(strongest, unrelated.shape), strict=True):
        rate, objects = float(rates.rates[i, j]), int(rates.objects[i])
        lines.append(
            f"  P({rates.class_names[j]} | {rates.class_names[i]}) = {rate:.3f}  "
            f"({round(rate * objects):,} of {objects:,} objects)"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    check_arguments(parser, args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        summary = run(args)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(summary, flush=True)
    except BrokenPipeError:  # the reader has seen enough (`| head -1`); the files are complete
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
