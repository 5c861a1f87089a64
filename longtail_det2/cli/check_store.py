"""Check the values of an annotation store and the headers of its images, and print what it has."""

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell

EPILOG = """\
example:
  %(prog)s datasets/shapes/stores/train
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store."""
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="annotation store")
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (default: 2)")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Print a summary; damaged columns and images that are absent or have another size are errors."""
    from longtail_det2.data.images import read_image_sizes
    from longtail_det2.data.store import AnnotationStore
    from longtail_det2.data.store_writer import COLUMNS
    from longtail_det2.utils.errors import DataError

    store = AnnotationStore(args.store)
    for column in COLUMNS.values():
        getattr(store, column.attribute, None)  # its values are checked when it is taken
    tell(str(store))
    for name, number in store.header["counts"].items():
        tell(f"  {name.replace('_', ' '):32} {number:>12,}")
    if store.image_root is None:
        tell("it names no folder of images: enough for statistics and evaluation, not for training")
        return
    sizes, problems = read_image_sizes(store.image_root, store.file_names, args.workers, not args.quiet)
    unreadable = {index for index, _ in problems}
    stored = store.image_sizes
    problems += [
        (int(index), f"its size is {sizes[index].tolist()}, the store says {stored[index].tolist()}")
        for index in (sizes != stored).any(axis=1).nonzero()[0]
        if index not in unreadable and stored[index].any()
    ]
    if problems:
        index, reason = min(problems)
        path = store.image_root / store.file_names[index].decode()
        raise DataError(
            f"{path}: {reason}; {len(problems):,} of {len(store):,} images are wrong: mend them, or prepare "
            "the store again"
        )
