#!/usr/bin/env python
"""Counts frequencies and concurrent rates at the size of Open Images and prints figures beside their targets.

The data are those of bm_openimages_store.py (at --scale 1: 14.6 million box rows, 1.74 million images, 500
classes). Each way of counting runs in a process of its own, with the store in the page cache. CPU seconds
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

CPU_SECONDS = 10.0
STEPS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "statistics": ("images and objects per class, file written", None),
    "labels": ("rates of co-labels and hierarchy, file written", {}),
    "overlaps": ("the same and overlaps with IoU >= 0.5", {"implicit_iou": 0.5}),
    "loose": ("the same with IoU >= 0.2", {"implicit_iou": 0.2}),
}
"""Way of counting -> (what the table says, options of the rates)."""


def count(folder: Path, step: str) -> None:
    """Child: count in one way; reports CPU seconds and peak memory as JSON."""
    from longtail_det2.data.category_statistics import CategoryStatistics
    from longtail_det2.data.concurrent_rates import ConcurrentRates, RateOptions
    from longtail_det2.data.store import AnnotationStore

    store = AnnotationStore.open(folder / "store")
    for name in ("labels", "label_offsets", "object_offsets", "boxes", "flags"):
        np.max(getattr(store, name))
    before = bm_openimages_store._proc_mb("status", "VmHWM:")
    file = folder / f"{step}.json"
    options = STEPS[step][1]
    report: dict[str, Any] = {}
    if options is None:
        report["cpu"], _ = _timed(lambda: CategoryStatistics.of_stores([store]).save(file))
    else:
        report["cpu"], rates = _timed(lambda: ConcurrentRates.of_stores([store], RateOptions(**options)))
        report["save"], _ = _timed(lambda: rates.save(file))
        report["load"], again = _timed(lambda: ConcurrentRates.load(file))
        np.testing.assert_array_equal(again.rates, rates.rates)
        report["pairs"] = int(np.count_nonzero(rates.rates))
        report["cpu"] += report["save"]
    report["file"] = file.stat().st_size / 1e6
    report["peak"] = bm_openimages_store._proc_mb("status", "VmHWM:")
    print(json.dumps({**report, "before": before}))


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
        print(f"  {'':50}{'CPU-s':>8}{'target':>9}{'added MB':>9}{'pairs':>9}{'file MB':>9}{'load s':>8}")
        met = True
        for step, (what, _) in STEPS.items():
            seen = _child(os.path.abspath(__file__), "--step", step, "--folder", str(folder))
            met &= seen["cpu"] <= CPU_SECONDS
            pairs = f"{seen['pairs']:,}" if "pairs" in seen else ""
            load = f"{seen['load']:.2f}" if "load" in seen else ""
            target, added = f"<= {CPU_SECONDS:g}", seen["peak"] - seen["before"]
            print(
                f"  {what:50}{seen['cpu']:8.2f}{target:>9}{added:9.0f}{pairs:>9}{seen['file']:9.2f}{load:>8}"
            )
        print(f"  added to {seen['before']:.0f} MB of the interpreter, its imports and the store's pages")
    print(f"\ntarget {'met' if met else 'MISSED'}")
    return 0 if met else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.1, help="share of Open Images' size (default: 0.1)")
    parser.add_argument("--directory", help="where to make the temporary folder (about 1.7 GB at scale 1)")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is not None:
        count(args.folder, args.step)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
