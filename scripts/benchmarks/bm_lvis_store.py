#!/usr/bin/env python
"""Builds an annotation store from a JSON file of the size of LVIS v1, and prints CPU seconds and memory.

Makes annotations in LVIS's form (at --scale 1: 1,270,141 with polygons on 100,170 images, 1,203 classes,
1.1 GB of JSON) and hard links to one image in a temporary folder, and builds the store in a process of its
own. Page cache warm; CPU seconds count the start of the interpreter too.

Example:
    python scripts/benchmarks/bm_lvis_store.py --scale 0.1
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import child, cpu_seconds, peak_gb, row
from PIL import Image

NUM_ANNOTATIONS = 1_270_141
NUM_IMAGES = 100_170
NUM_CLASSES = 1203
WIDTH, HEIGHT = 640, 480
URL = "http://images.cocodataset.org/"


def make_data(folder: Path, scale: float, seed: int = 0) -> int:
    """Writes lvis.json and images/train2017; returns the number of annotations."""
    generator = np.random.default_rng(seed)
    number, num_images = int(NUM_ANNOTATIONS * scale), int(NUM_IMAGES * scale)
    ids = np.sort(generator.choice(600_000, num_images, replace=False)) + 1
    images = folder / "images" / "train2017"
    images.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), (120, 100, 80)).save(folder / "one.jpg")
    for key in ids.tolist():
        os.link(folder / "one.jpg", images / f"{key:012d}.jpg")
    categories = [
        {"id": key, "name": f"class_{key}", "synset": "thing.n.01", "frequency": "fcr"[min(key // 400, 2)]}
        for key in range(1, NUM_CLASSES + 1)
    ]
    with open(folder / "lvis.json", "w", encoding="utf-8") as file:
        file.write('{"images": [')
        _write(file, _images(generator, ids))
        file.write('], "annotations": [')
        _write(file, _annotations(generator, ids, number))
        file.write(f'], "licenses": [], "categories": {json.dumps(categories)}}}')
    return number


def _write(file: Any, entries: Iterator[dict[str, Any]]) -> None:
    for place, entry in enumerate(entries):
        file.write((", " if place else "") + json.dumps(entry))


def _images(generator: np.random.Generator, ids: np.ndarray) -> Iterator[dict[str, Any]]:
    for key in ids.tolist():
        said = generator.choice(NUM_CLASSES, 9, replace=False) + 1
        yield {
            "date_captured": "2013-11-14 16:28:13",
            "id": key,
            "height": HEIGHT,
            "width": WIDTH,
            "license": 4,
            "coco_url": f"{URL}train2017/{key:012d}.jpg",
            "flickr_url": f"http://farm9.staticflickr.com/{key}_z.jpg",
            "neg_category_ids": said[:8].tolist(),
            "not_exhaustive_category_ids": said[8 : 8 + int(generator.integers(0, 2))].tolist(),
        }


def _annotations(generator: np.random.Generator, ids: np.ndarray, number: int) -> Iterator[dict[str, Any]]:
    popularity = 1 / np.arange(1, NUM_CLASSES + 1)
    classes = generator.choice(NUM_CLASSES, number, p=popularity / popularity.sum()) + 1
    images = generator.choice(ids, number)
    for key, (category, image) in enumerate(zip(classes.tolist(), images.tolist(), strict=True), start=1):
        corner = generator.random(2) * (500, 380)
        size = 5 + generator.random(2) * (120, 90)
        # About 35 vertices in the median, which makes the file as long as LVIS's.
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


def build(folder: Path) -> dict[str, Any]:
    """Child: build the store."""
    from longtail_det2.data.datasets.coco import prepare_coco

    imports = cpu_seconds()
    store = prepare_coco(folder / "lvis.json", folder / "images", folder / "store")
    return {"cpu": cpu_seconds(), "imports": imports, "peak": peak_gb(), "objects": store.num_objects}


def run(scale: float, directory: str | None) -> int:
    """Make the data, run the child and print the table; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="bm_lvis_store_", dir=directory) as name:
        folder = Path(name)
        number = make_data(folder, scale)
        size = (folder / "lvis.json").stat().st_size
        built = child(__file__, "--folder", folder)
        disk = sum(file.stat().st_size for file in (folder / "store").iterdir())
    print(f"{number:,} annotations, {size / 1e6:,.0f} MB of JSON; {built['objects']:,} objects\n")
    row("build, all processes", built["cpu"], "CPU-s")
    row("  of it imports", built["imports"], "CPU-s")
    row("build, peak resident memory", built["peak"], "GB")
    row("store on disk", disk / 1e6, "MB")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.1, help="share of LVIS v1's size (default: 0.1)")
    parser.add_argument("--directory", help="where to make the temporary folder (about 2 GB at scale 1)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        print(json.dumps(build(args.folder)))
        return 0
    return run(args.scale, args.directory)


if __name__ == "__main__":
    sys.exit(main())
