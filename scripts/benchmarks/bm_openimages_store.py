#!/usr/bin/env python
"""Build, read and count an annotation store of the size of Open Images; print figures beside their targets.

Makes a synthetic box CSV (at --scale 1: 14.6 million rows, 1.74 million images, 500 classes; one row in ten
repeats the previous box with another label) in a temporary folder. Building, reading random records and class
statistics run in processes of their own, with a warm page cache; CPU seconds count all threads and, for
building, the start of the interpreter and the hashing of the sources.

Example:
    OMP_NUM_THREADS=1 python scripts/benchmarks/bm_openimages_store.py --scale 0.1
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from common import child, cpu_seconds, peak_gb, row

NUM_ROWS = 14_600_000
NUM_IMAGES = 1_743_042
NUM_CLASSES = 500
GENERATED_PER_BATCH = 500_000
RECORDS = 20_000


def make_data(folder: Path, scale: float, seed: int = 0) -> int:
    """Write boxes.csv, classes.csv and hierarchy.json; returns the number of box rows."""
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
    group_of = generator.choice(np.array([0, 1, -1], np.int8), num_rows, p=(0.8, 0.15, 0.05))
    repeated = 1 + np.flatnonzero((generator.random(num_rows - 1) < 0.1) & (image[1:] == image[:-1]))
    for column in (corner, size, group_of):
        column[repeated] = column[repeated - 1]
    names = [f"/m/{index:05d}" for index in range(NUM_CLASSES)]
    decimals = pa.array([f"{value / 1e6:.6f}" for value in range(1_000_001)])
    with open(folder / "boxes.csv", "wb") as file:
        for start in range(0, num_rows, GENERATED_PER_BATCH):
            rows = slice(start, start + GENERATED_PER_BATCH)
            edges = np.concatenate([corner[rows], corner[rows] + size[rows]], axis=1)
            x0, y0, x1, y1 = (decimals.take(pa.array(column)) for column in edges.T)
            columns: dict[str, Any] = {
                "ImageID": ids.take(pa.array(image[rows])),
                "LabelName": pa.array(names).take(pa.array(label[rows])),
                **{"XMin": x0, "XMax": x1, "YMin": y0, "YMax": y1, "IsGroupOf": group_of[rows]},
            }
            options = pa_csv.WriteOptions(quoting_style="none", include_header=start == 0)
            pa_csv.write_csv(pa.table(columns), file, options)
    (folder / "classes.csv").write_text("".join(f"{name},Class {name}\n" for name in names))
    tree = [
        {"LabelName": names[k], "Subcategory": [{"LabelName": name} for name in names[k + 1 : k + 10]]}
        for k in range(0, NUM_CLASSES, 10)
    ]
    (folder / "hierarchy.json").write_text(json.dumps({"LabelName": "/m/root", "Subcategory": tree}))
    return num_rows


def build(folder: Path) -> dict[str, Any]:
    """Child: build the store."""
    from longtail_det2.data.datasets import openimages

    imports = cpu_seconds()
    files = folder / "classes.csv", folder / "hierarchy.json", folder
    without_files = {  # there are no image files: their names and sizes are given
        "find_images": lambda root, ids: np.char.add(ids, b".jpg"),
        "read_image_sizes": lambda root, names, *_: (np.full((len(names), 2), 800, np.int32), []),
    }
    with patch.multiple(openimages, **without_files):
        store = openimages.prepare_openimages(
            [folder / "boxes.csv"], [], *files, folder / "store", progress=False
        )
    summary = store.header["summary"]
    return {"cpu": cpu_seconds(), "imports": imports, "peak": peak_gb(), "summary": summary}


def read(folder: Path) -> dict[str, Any]:
    """Child: open the store, read random records, count its classes."""
    from longtail_det2.data.datasets.dataset import MultiLabelDataset
    from longtail_det2.data.statistics import compute_statistics, read_statistics, write_statistics
    from longtail_det2.data.store import AnnotationStore

    start = time.perf_counter()
    store = AnnotationStore(folder / "store")
    opening = time.perf_counter() - start
    dataset = MultiLabelDataset(store, image_root=folder)
    indices = np.random.default_rng(0).integers(0, len(dataset), RECORDS).tolist()

    def read_records() -> None:
        for index in indices:
            dataset[index]

    records = [_timed(read_records)[0] / RECORDS for _ in range(3)]
    file = folder / "statistics.json"
    counting, statistics = _timed(lambda: compute_statistics(store))
    writing, _ = _timed(lambda: write_statistics(file, statistics))
    reading, again = _timed(lambda: read_statistics(file))
    np.testing.assert_array_equal(again.cooccurrence, statistics.cooccurrence)
    return {"open": opening, "record": min(records), "count": counting, "write": writing, "read": reading}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def run(scale: float, directory: str | None) -> int:
    """Make the data, run the children and print the table; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="bm_openimages_store_", dir=directory) as name:
        folder = Path(name)
        num_rows = make_data(folder, scale)
        start = time.perf_counter()
        built = child(__file__, "--step", "build", "--folder", folder)
        wall = time.perf_counter() - start
        disk = sum(file.stat().st_size for file in (folder / "store").iterdir())
        seen = child(__file__, "--step", "read", "--folder", folder)
    found = built["summary"]
    print(f"{num_rows:,} box rows: {found['images']:,} images, {found['objects']:,} objects\n")
    limit = 20 if scale == 1 else 20 * scale + built["imports"]
    met = row("build, all threads", built["cpu"], "CPU-s", limit)
    row("  of it imports", built["imports"], "CPU-s")
    row("build, wall clock", wall, "s")
    met &= row("build, peak resident memory", built["peak"], "GB", 2)
    row("store on disk", disk / 1e6, "MB")
    met &= row("open", seen["open"] * 1e3, "ms", 10)
    met &= row(f"record, best of 3 x {RECORDS:,}", seen["record"] * 1e6, "us", 10)
    met &= row("class statistics, computed", seen["count"], "CPU-s", 6)
    met &= row("  written", seen["write"], "CPU-s", 1)
    met &= row("  read", seen["read"], "CPU-s", 1)
    print(f"\ntargets {'met' if met else 'MISSED'}")
    return 0 if met else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.1, help="share of Open Images' size (default: 0.1)")
    parser.add_argument("--directory", help="where to make the temporary folder (about 1.7 GB at scale 1)")
    parser.add_argument("--step", choices=("build", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps((build if args.step == "build" else read)(args.folder)))
        return 0
    return run(args.scale, args.directory)


if __name__ == "__main__":
    sys.exit(main())
