#!/usr/bin/env python
"""Builds and reads an annotation store of the size of Open Images, and prints figures beside their targets.

Makes a synthetic box CSV (13 columns; at --scale 1: 14.6 million rows, 1.74 million images, 500 classes; one
row in ten repeats the previous box with another label) in a temporary folder, builds the
store in a process of its own, opens it in another, and reads random records in four forked workers. Page
cache warm; CPU seconds count all threads, the start of the interpreter and the hashing of the sources.

Example:
    python scripts/benchmarks/bm_openimages_store.py --scale 0.1
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

NUM_ROWS = 14_600_000
NUM_IMAGES = 1_743_042
NUM_CLASSES = 500
GENERATED_PER_BATCH = 500_000
FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
WORKERS = 4
RECORDS = 20_000


def make_data(folder: Path, scale: float, shuffle: bool, seed: int = 0) -> int:
    """Write boxes.csv, classes.csv, and hierarchy.json; returns the number of box rows."""
    generator = np.random.default_rng(seed)
    num_rows, num_images = int(NUM_ROWS * scale), int(NUM_IMAGES * scale)
    identifiers = np.unique(generator.integers(0, 2**64, num_images + 1000, dtype=np.uint64))[:num_images]
    ids = pa.array([f"{value:016x}" for value in identifiers.tolist()])
    share = generator.gamma(1.0, size=num_images)
    image = np.sort(generator.choice(num_images, num_rows, p=share / share.sum()).astype(np.int32))
    image[:num_images] = np.arange(num_images)  # every image has a row
    image.sort()
    popularity = 1 / np.arange(1, NUM_CLASSES + 1)
    label = generator.choice(NUM_CLASSES, num_rows, p=popularity / popularity.sum()).astype(np.int32)
    corner = generator.integers(0, 900_000, (num_rows, 2), dtype=np.int32)
    corner[generator.random((num_rows, 2)) < 0.1] = 0
    size = (generator.random((num_rows, 2), dtype=np.float32) * (1_000_000 - corner)).astype(np.int32)
    repeated = 1 + np.flatnonzero((generator.random(num_rows - 1) < 0.1) & (image[1:] == image[:-1]))
    flags = generator.choice(np.array([0, 1, -1], np.int8), (num_rows, len(FLAGS)), p=(0.8, 0.15, 0.05))
    for column in (corner, size, flags):
        column[repeated] = column[repeated - 1]
    box = np.concatenate([corner, corner + size], axis=1)
    order = generator.permutation(num_rows) if shuffle else np.arange(num_rows)
    _write_boxes(folder / "boxes.csv", ids, image, label, box, flags, order)
    names = [f"/m/{index:05d}" for index in range(NUM_CLASSES)]
    lines = [f"{name},Class {index}\n" for index, name in enumerate(names)]
    (folder / "classes.csv").write_text("".join(lines), encoding="utf-8")
    parents = [
        {"LabelName": parent, "Subcategory": _children(names, i)} for i, parent in enumerate(names[::10])
    ]
    tree = {"LabelName": "/m/root", "Subcategory": parents}
    (folder / "hierarchy.json").write_text(json.dumps(tree), encoding="utf-8")
    return num_rows


def _children(names: list[str], tenth: int) -> list[dict[str, str]]:
    return [{"LabelName": name} for name in names[10 * tenth + 1 : 10 * tenth + 10]]


def _write_boxes(
    path: Path,
    ids: pa.Array,
    image: np.ndarray,
    label: np.ndarray,
    box: np.ndarray,
    flags: np.ndarray,
    order: np.ndarray,
) -> None:
    decimals = pa.array([f"{value / 1e6:.6f}" for value in range(1_000_001)])
    names = pa.array([f"/m/{index:05d}" for index in range(NUM_CLASSES)])
    writer: Any = None
    with open(path, "wb") as file:
        for start in range(0, len(order), GENERATED_PER_BATCH):
            rows = order[start : start + GENERATED_PER_BATCH]
            x0, y0, x1, y1 = (decimals.take(pa.array(column)) for column in box[rows].T)
            columns: dict[str, Any] = {
                "ImageID": ids.take(pa.array(image[rows])),
                "Source": pa.array(["xclick"]).take(pa.array(np.zeros(len(rows), np.int8))),
                "LabelName": names.take(pa.array(label[rows])),
                "Confidence": np.ones(len(rows), np.int8),
                "XMin": x0,
                "XMax": x1,
                "YMin": y0,
                "YMax": y1,
            }
            table = pa.table({**columns, **dict(zip(FLAGS, flags[rows].T, strict=True))})
            if writer is None:
                options = pa_csv.WriteOptions(quoting_style="none")
                writer = pa_csv.CSVWriter(file, table.schema, write_options=options)
            writer.write_table(table)
        writer.close()


def build(folder: Path) -> None:
    """Child: build the store and report CPU seconds and peak memory as JSON."""
    from longtail_det2.data.datasets import openimages

    imports = _cpu_seconds()
    files = folder / "classes.csv", folder / "hierarchy.json", folder
    without_files = {  # there are no image files: their names and sizes are given
        "find_images": lambda root, ids: np.char.add(ids, b".jpg"),
        "read_image_sizes": lambda root, names, *_: (np.full((len(names), 2), 800, np.int32), []),
    }
    with patch.multiple(openimages, **without_files):
        store = openimages.prepare_openimages(
            [folder / "boxes.csv"], [], *files, folder / "store", progress=False
        )
    # Not ru_maxrss: that keeps the parent's size at the fork, and the parent has made the data.
    peak = _proc_mb("status", "VmHWM:") / 1e3
    report = {"cpu": _cpu_seconds(), "imports": imports, "peak": peak, "summary": store.header["summary"]}
    print(json.dumps(report))


def read(folder: Path) -> None:
    """Child: open the store, then read records in forked workers; report as JSON."""
    from longtail_det2.data.datasets.dataset import MultiLabelDataset
    from longtail_det2.data.store import AnnotationStore

    start = time.perf_counter()
    store = AnnotationStore(folder / "store")
    opening = time.perf_counter() - start
    dataset = MultiLabelDataset(store, image_root=folder)
    alone = min(_record_seconds(dataset, seed) for seed in range(WORKERS, WORKERS + 3))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(WORKERS)
    results: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_read_records, args=(dataset, seed, barrier, results))
        for seed in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    rows = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    start = time.process_time()
    store.image_counts(expanded=True)
    counting = time.process_time() - start
    report = {"open": opening, "alone": alone, "records": [row[0] for row in rows], "counting": counting}
    print(json.dumps({**report, "private": [row[1] for row in rows], "growth": [row[2] for row in rows]}))


def _read_records(dataset: Any, seed: int, barrier: Any, results: Any) -> None:
    barrier.wait()  # with all workers alive, a page that only one of them has written counts as its own
    before = _proc_mb("smaps_rollup", "Private_Dirty:")
    seconds = _record_seconds(dataset, seed)
    after = _proc_mb("smaps_rollup", "Private_Dirty:")
    barrier.wait()
    results.put((seconds, after, after - before))


def _record_seconds(dataset: Any, seed: int) -> float:
    """CPU seconds per random record."""
    indices = np.random.default_rng(seed).integers(0, len(dataset), RECORDS).tolist()
    start = time.process_time()
    for index in indices:
        dataset[index]
    return (time.process_time() - start) / RECORDS


def _proc_mb(file: str, name: str) -> float:
    """A figure of this process in megabytes, from /proc/self."""
    for line in Path("/proc/self", file).read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/{file} has no {name}")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _child(step: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, os.path.abspath(__file__), "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _row(what: str, value: float, unit: str, target: float | None = None) -> bool:
    met = target is None or value <= target
    judged = "" if target is None else f"<= {target:g} {unit}"
    print(f"  {what:<44}{value:>10.3g} {unit:<5}{judged:>14}{'' if met else '  MISSED'}")
    return met


def run(args: argparse.Namespace) -> int:
    """Make the data, run the children and print the table; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="bm_openimages_store_", dir=args.directory) as name:
        folder = Path(name)
        start = time.process_time()
        num_rows = make_data(folder, args.scale, args.shuffle)
        size = (folder / "boxes.csv").stat().st_size
        print(
            f"{num_rows:,} rows, {size / 1e6:,.0f} MB of CSV, made in {time.process_time() - start:.0f} CPU-s"
        )
        start = time.perf_counter()
        built = _child("build", folder)
        wall = time.perf_counter() - start
        disk = sum(file.stat().st_size for file in (folder / "store").iterdir())
        seen = _child("read", folder)
    summary = built["summary"]
    print(f"{summary['images']:,} images, {summary['objects']:,} objects, {summary['labels']:,} labels\n")
    full = args.scale == 1
    met = _row(
        "build, all threads", built["cpu"], "CPU-s", 20 if full else 20 * args.scale + built["imports"]
    )
    _row("  of it imports", built["imports"], "CPU-s")
    _row("build, wall clock", wall, "s")
    met &= _row("build, peak resident memory", built["peak"], "GB", 2)
    _row("store on disk", disk / 1e6, "MB")
    met &= _row("open", seen["open"] * 1e3, "ms", 10)
    met &= _row("record, one process, best of 3 x 20,000", seen["alone"] * 1e6, "us", 10)
    _row(f"record, mean of {WORKERS} workers at once", sum(seen["records"]) / WORKERS * 1e6, "us")
    met &= _row(f"private dirty after {RECORDS:,} records, worst", max(seen["private"]), "MB", 10)
    _row("  of it by reading", max(seen["growth"]), "MB")
    _row("images per class, with ancestors", seen["counting"], "CPU-s")
    print(f"\ntargets {'met' if met else 'MISSED'}")
    return 0 if met else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.1, help="share of Open Images' size (default: 0.1)")
    parser.add_argument("--shuffle", action="store_true", help="rows in random order instead of by image")
    parser.add_argument("--directory", help="where to make the temporary folder (about 1.7 GB at scale 1)")
    parser.add_argument("--step", choices=("build", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "build":
        build(args.folder)
        return 0
    if args.step == "read":
        read(args.folder)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
