#!/usr/bin/env python
"""Computes class statistics at the size of Open Images and prints figures beside their targets.

The data are those of bm_openimages_store.py (at --scale 1: 14.6 million box rows, 1.74 million images, 500
classes). Counting runs in another process, with the store in the page cache. CPU seconds
count all threads, without the imports; memory is what the peak adds to the imports and the store's pages.

Example:
    OMP_NUM_THREADS=1 python scripts/benchmarks/bm_category_statistics.py --scale 1
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm_openimages_store
import numpy as np

COUNT_SECONDS, WRITE_SECONDS, READ_SECONDS = 6.0, 1.0, 1.0
"""Targets in CPU seconds."""


def count(folder: Path) -> None:
    """Child: compute, write and read; reports CPU seconds and peak memory as JSON."""
    from longtail_det2.data.statistics import compute_statistics, read_statistics, write_statistics
    from longtail_det2.data.store import AnnotationStore

    store = AnnotationStore(folder / "store")
    for name in ("labels", "label_offsets", "object_offsets", "flags"):
        np.max(getattr(store, name))
    before = bm_openimages_store._proc_mb("status", "VmHWM:")
    file = folder / "statistics.json"
    report: dict[str, Any] = {}
    report["count"], statistics = _timed(lambda: compute_statistics(store))
    report["write"], _ = _timed(lambda: write_statistics(file, statistics))
    report["read"], again = _timed(lambda: read_statistics(file))
    np.testing.assert_array_equal(again.cooccurrence, statistics.cooccurrence)
    report["pairs"] = int(np.count_nonzero(statistics.cooccurrence))
    report["file"] = file.stat().st_size / 1e6
    report["added"] = bm_openimages_store._proc_mb("status", "VmHWM:") - before
    print(json.dumps(report))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _child(*arguments: str) -> dict[str, Any]:
    # PyTorch warns of what Detectron2 uses.
    command = [sys.executable, "-W", "ignore::FutureWarning", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> int:
    """Make the data, run the children and print the table; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="bm_category_statistics_", dir=args.directory) as name:
        folder = Path(name)
        num_rows = bm_openimages_store.make_data(folder, args.scale, shuffle=False)
        built = _child(bm_openimages_store.__file__, "--step", "build", "--folder", str(folder))["summary"]
        (folder / "boxes.csv").unlink()
        print(
            f"{num_rows:,} box rows: {built['images']:,} images, {built['objects']:,} objects, "
            f"{built['labels']:,} labels\n"
        )
        seen = _child(os.path.abspath(__file__), "--folder", str(folder))
        targets = {"count": COUNT_SECONDS, "write": WRITE_SECONDS, "read": READ_SECONDS}
        for step, target in targets.items():
            print(f"  {step:8}{seen[step]:8.2f} CPU-s, target <= {target:g}")
        met = all(seen[step] <= target for step, target in targets.items())
        print(
            f"  {seen['pairs']:,} pairs of classes, file {seen['file']:.2f} MB, {seen['added']:.0f} MB added"
        )
    print(f"\ntarget {'met' if met else 'MISSED'}")
    return 0 if met else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.1, help="share of Open Images' size (default: 0.1)")
    parser.add_argument("--directory", help="where to make the temporary folder (about 1.7 GB at scale 1)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        count(args.folder)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
