#!/usr/bin/env python
"""Build, read and count an annotation store of a data set's size; print figures beside their targets.

openimages: a box CSV (at --scale 1: 14.6 million rows, 1.74 million images, 500 classes; one row in ten
repeats the previous box with another label) and a hierarchy. lvis: a JSON file (at --scale 1: 1,270,141
annotations with polygons, 100,170 images, 1,203 classes, 1.1 GB). Both without image files. Building and
reading run in processes of their own, with a warm page cache; CPU seconds count all threads and, for
building, the start of the interpreter and the hashing of the sources. The targets are for openimages.

Example:
    OMP_NUM_THREADS=1 python scripts/benchmarks/bm_store.py openimages --scale 0.1
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from common import child, cpu_seconds, make_parser, peak_gb, row

GENERATED_PER_BATCH = 500_000
RECORDS = 20_000


def draw_classes(generator: np.random.Generator, classes: int, number: int) -> np.ndarray:
    """Class indices, with frequencies that fall as 1 / rank."""
    popularity = 1 / np.arange(1, classes + 1)
    return generator.choice(classes, number, p=popularity / popularity.sum())


def make_openimages(folder: Path, scale: float, generator: np.random.Generator) -> None:
    """Write boxes.csv, classes.csv and hierarchy.json."""
    num_rows, num_images, num_classes = int(14_600_000 * scale), int(1_743_042 * scale), 500
    identifiers = np.unique(generator.integers(0, 2**64, num_images + 1000, dtype=np.uint64))[:num_images]
    ids = pa.array([f"{value:016x}" for value in identifiers.tolist()])
    share = generator.gamma(1.0, size=num_images)
    image = np.sort(generator.choice(num_images, num_rows, p=share / share.sum()).astype(np.int32))
    image[:num_images] = np.arange(num_images)  # every image has a row
    image.sort()
    label = draw_classes(generator, num_classes, num_rows).astype(np.int32)
    corner = generator.integers(0, 900_000, (num_rows, 2), dtype=np.int32)
    corner[generator.random((num_rows, 2)) < 0.1] = 0
    size = (generator.random((num_rows, 2), dtype=np.float32) * (1_000_000 - corner)).astype(np.int32)
    group_of = generator.choice(np.array([0, 1, -1], np.int8), num_rows, p=(0.8, 0.15, 0.05))
    repeated = 1 + np.flatnonzero((generator.random(num_rows - 1) < 0.1) & (image[1:] == image[:-1]))
    for column in (corner, size, group_of):
        column[repeated] = column[repeated - 1]
    names = [f"/m/{index:05d}" for index in range(num_classes)]
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
    parents = {name: [names[k // 10 * 10]] for k, name in enumerate(names) if k % 10}
    (folder / "hierarchy.json").write_text(json.dumps(parents))


def make_lvis(folder: Path, scale: float, generator: np.random.Generator) -> None:
    """Write lvis.json."""
    number, num_images, num_classes = int(1_270_141 * scale), int(100_170 * scale), 1203
    ids = np.sort(generator.choice(600_000, num_images, replace=False)) + 1
    categories = [
        {"id": key, "name": f"class_{key}", "synset": "thing.n.01", "frequency": "fcr"[min(key // 400, 2)]}
        for key in range(1, num_classes + 1)
    ]
    with open(folder / "lvis.json", "w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.write(", ".join(map(json.dumps, lvis_images(generator, ids, num_classes))))
        file.write('], "annotations": [')
        classes, images = draw_classes(generator, num_classes, number) + 1, generator.choice(ids, number)
        for place, entry in enumerate(lvis_annotations(generator, classes, images)):
            file.write((", " if place else "") + json.dumps(entry))
        file.write(f'], "licenses": [], "categories": {json.dumps(categories)}}}')


def lvis_images(generator: np.random.Generator, ids: np.ndarray, classes: int) -> Iterator[dict[str, Any]]:
    """Entries of the images, as long as LVIS's."""
    for key in ids.tolist():
        said = generator.choice(classes, 9, replace=False) + 1
        yield {
            "date_captured": "2013-11-14 16:28:13",
            "id": key,
            "height": 480,
            "width": 640,
            "license": 4,
            "coco_url": f"http://images.cocodataset.org/train2017/{key:012d}.jpg",
            "flickr_url": f"http://farm9.staticflickr.com/{key}_z.jpg",
            "neg_category_ids": said[:8].tolist(),
            "not_exhaustive_category_ids": said[8 : 8 + int(generator.integers(0, 2))].tolist(),
        }


def lvis_annotations(
    generator: np.random.Generator, classes: np.ndarray, images: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Annotations; polygons of about 35 vertices in the median make the file as long as LVIS's."""
    for key, (category, image) in enumerate(zip(classes.tolist(), images.tolist(), strict=True), start=1):
        corner = generator.random(2) * (500, 380)
        size = 5 + generator.random(2) * (120, 90)
        counts = [max(3, int(generator.lognormal(3.4, 0.7))) for _ in range(1 + (generator.random() < 0.15))]
        polygons = [np.round(corner + size * generator.random((count, 2)), 2) for count in counts]
        vertices = np.concatenate(polygons)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        yield {
            "bbox": np.round([*low, *(high - low)], 2).tolist(),
            "category_id": category,
            "image_id": image,
            "id": key,
            "segmentation": [one.reshape(-1).tolist() for one in polygons],
            "area": round(float(np.prod(high - low)), 2),
        }


def build(data: str, folder: Path) -> dict[str, Any]:
    """Build the store."""
    from longtail_det2.data.datasets import coco, openimages

    imports = cpu_seconds()
    if data == "lvis":
        store = coco.prepare_coco(folder / "lvis.json", None, folder / "store")
    else:
        files = [folder / "boxes.csv"], [], folder / "classes.csv", folder / "hierarchy.json", folder
        without_files = {  # their names and sizes are given
            "find_images": lambda root, ids: np.char.add(ids, b".jpg"),
            "read_image_sizes": lambda root, names, *_: (np.full((len(names), 2), 800, np.int32), []),
        }
        with patch.multiple(openimages, **without_files):
            store = openimages.prepare_openimages(*files, folder / "store", progress=False)
    summary = {"images": len(store), "objects": store.num_objects}
    return {"cpu": cpu_seconds(), "imports": imports, "peak": peak_gb(), **summary}


def read(folder: Path) -> dict[str, Any]:
    """Open the store, read random records, count its classes."""
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


def main() -> int:
    """Make the data, run the steps and print the table; 1 if a target was missed."""
    parser = make_parser(__doc__)
    parser.add_argument("--scale", type=float, default=0.1, help="share of the full size (default: 0.1)")
    parser.add_argument("--directory", help="where to make the temporary folder (about 2 GB at scale 1)")
    args = parser.parse_args()
    if args.step:
        print(json.dumps(build(args.data, args.folder) if args.step == "build" else read(args.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bm_store_", dir=args.directory) as name:
        folder = Path(name)
        make = make_lvis if args.data == "lvis" else make_openimages
        make(folder, args.scale, np.random.default_rng(0))
        size = sum(file.stat().st_size for file in folder.iterdir())
        start = time.perf_counter()
        built = child("build", folder)
        wall = time.perf_counter() - start
        disk = sum(file.stat().st_size for file in (folder / "store").iterdir())
        seen = child("read", folder)
    print(f"{size / 1e6:,.0f} MB of files: {built['images']:,} images, {built['objects']:,} objects\n")
    limit = 20 * args.scale + (built["imports"] if args.scale < 1 else 0)
    rows = [
        ("build, all threads", built["cpu"], "CPU-s", limit),
        ("  of it imports", built["imports"], "CPU-s", None),
        ("build, wall clock", wall, "s", None),
        ("build, peak resident memory", built["peak"], "GB", 2),
        ("store on disk", disk / 1e6, "MB", None),
        ("open", seen["open"] * 1e3, "ms", 10),
        (f"record, best of 3 x {RECORDS:,}", seen["record"] * 1e6, "us", 10),
        ("class statistics, computed", seen["count"], "CPU-s", 6),
        ("  written", seen["write"], "CPU-s", 1),
        ("  read", seen["read"], "CPU-s", 1),
    ]
    targets = args.data == "openimages"
    met = [row(what, value, unit, most if targets else None) for what, value, unit, most in rows]
    if targets:
        print(f"\ntargets {'met' if all(met) else 'MISSED'}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
