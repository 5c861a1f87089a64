"""A generated data set that is long-tailed, multi-labelled and hierarchical by construction.

Leaf classes are shapes of a colour ("red circle") with two parents each ("circle" and "red"). Every
difficulty of large real data sets is an option of its own, so that a method can be tried against one at a
time:

- `imbalance`: frequencies fall geometrically; which leaf is frequent is a seeded permutation, independent of
  shape and colour.
- `missing_leaf_rate`: the annotators wrote only one of the parents, shape or colour at random.
- `co_label_rate`: the object is two-coloured, half and half, and truly is both "red circle" and "yellow
  circle": two rows with one box. A colour mostly goes with its two partners in a fixed ring of contrasting
  colours, so that co-labels are systematic. Frequencies are kept as planned, so a rare leaf is a co-label
  relatively more often than a frequent one.
- `confusion_rate`: the annotators wrote a similar leaf instead (same shape and neighbouring colour, or the
  reverse).
- `group_of_rate`: six to nine touching instances under one box.
- `nested_rate` (0 by default): the object frames another one, of the same shape and of the colour opposite in
  the ring, and nearly as large: boxes of different classes overlap with an IoU of about 0.6 to 0.7, which is
  what concurrent rates count as implicit co-existence. Frequencies are kept as planned here, too. An image
  has 1 to `max_objects` objects, those within others not counted.

Each rate is a fraction of the objects of a split, met to the nearest object, and the phenomena exclude each
other. The validation split has equally many objects of each leaf and no missing or confused labels.
LVIS form knows the leaves only, and by default without missing or confused labels: see `shapes_lvis`.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from longtail_det2.data.datasets.shapes_drawing import draw_image
from longtail_det2.data.datasets.shapes_lvis import (
    CoLabelRule,
    annotate_lvis,
    count_lvis,
    warn_of_unseen,
    write_lvis,
)
from longtail_det2.data.datasets.shapes_options import FORMATS, IMAGE_FORMATS, ShapesOptions
from longtail_det2.data.datasets.shapes_plan import SPLITS, PlannedImage, plan_split
from longtail_det2.data.datasets.shapes_vocabulary import ShapesVocabulary
from longtail_det2.data.datasets.shapes_writers import (
    ImageRecord,
    write_classes,
    write_coco,
    write_open_images,
    write_readme,
)
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.partial_folders import make_partial_folder, put_in_place, remove_stale_folders

__all__ = ["FORMATS", "GENERATION_FILE", "IMAGE_FORMATS", "ShapesOptions", "generate_shapes"]

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation.json"
_FORMAT_NAME = "longtail_det2.shapes"
_VERSION = 1
_CHUNK = 16


def generate_shapes(
    output: str | Path,
    options: ShapesOptions | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generates the data set, or finds that it is there.

    Layout below `output`: `images/{train,validation}/`, `annotations/` (Open Images CSVs,
    `class-descriptions.csv`, `hierarchy.json`), `lvis/{split}.json`, `coco/{split}.json`, `README.md` and
    `generation.json` (options, version, counts). Everything is made in a folder beside `output` and renamed
    when it is complete. An image of 128 px takes about 7 ms of processor time, all formats included.

    Args:
        output: folder to make. One that holds the same data set is left alone.
        options: what to generate.
        workers: processes (default: the available cores); has no influence on the result.
        force: replace a generated data set with other options.
        progress: show progress bars.

    Returns:
        The content of `generation.json`.

    Raises:
        ConfigError: bad options, or `output` holds a data set with other options and `force` is False.
        DataError: `output` holds something that this generator did not make.
    """
    options = options or ShapesOptions()
    options.validate()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    output = Path(output).absolute()
    present = _check_output(output, options, force)
    if present is not None:
        logger.info("%s: already there, made with the same options", output)
        return present
    vocabulary = ShapesVocabulary.build(options.num_leaves)
    plans = {split: plan_split(options, vocabulary, split) for split in SPLITS}
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_folders(output)
    partial = make_partial_folder(output)
    try:
        generation = _generate_into(partial, options, vocabulary, plans, workers, progress)
        # Another process may have made the same folder meanwhile: what is there stays, or is an error.
        present = _check_output(output, options, force)
        if present is None:
            put_in_place(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: generated in %.1f s", output, time.perf_counter() - started)
    return generation


def _generate_into(
    folder: Path,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    plans: dict[str, tuple[list[PlannedImage], np.ndarray]],
    workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Writes everything below `folder`, generation.json last, and returns what it says."""
    (folder / "annotations").mkdir()
    write_classes(folder / "annotations", vocabulary)
    counts: dict[str, Any] = {}
    train_counts = None
    for split in SPLITS:
        images = folder / "images" / split
        images.mkdir(parents=True)
        planned, leaf_counts = plans[split]
        records = list(_draw_all(images, split, planned, options, vocabulary, workers, progress))
        counts[split] = _count(records, leaf_counts, vocabulary)
        if "openimages" in options.formats:
            write_open_images(folder / "annotations", split, records, vocabulary)
        if "coco" in options.formats:
            (folder / "coco").mkdir(exist_ok=True)
            write_coco(folder / "coco" / f"{split}.json", records, vocabulary)
        if "lvis" in options.formats:
            (folder / "lvis").mkdir(exist_ok=True)
            rule = CoLabelRule(plans["train"][0], vocabulary.num_leaves)
            annotated = annotate_lvis(records, split, rule, vocabulary, options)
            if train_counts is None:
                train_counts = count_lvis(annotated, vocabulary.num_leaves)
                warn_of_unseen(train_counts, vocabulary)
            path = folder / "lvis" / f"{split}.json"
            write_lvis(path, split, annotated, vocabulary, train_counts, options)
    generation = {
        "format": _FORMAT_NAME,
        "version": _VERSION,
        "seed": options.seed,
        "options": options.to_json(),
        "counts": counts,
    }
    write_readme(folder / "README.md")
    (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    return generation


def _draw_all(
    folder: Path,
    split: str,
    planned: list[PlannedImage],
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    workers: int | None,
    progress: bool,
) -> Iterator[ImageRecord]:
    """Draws and saves the images of a split in parallel; records come in the order of the images."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, max(len(planned) // _CHUNK, 1))
    draw = functools.partial(_draw_one, folder, split, options, vocabulary)
    bar = functools.partial(tqdm, total=len(planned), desc=f"{split} images", disable=not progress)
    if workers == 1:
        yield from bar(map(draw, enumerate(planned)))
        return
    # Forking is quickest, and safe here: the children use neither threads nor the parent's locks.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(workers, initializer=_die_with_parent) as pool:
        yield from bar(pool.imap(draw, enumerate(planned), chunksize=_CHUNK))


def _draw_one(
    folder: Path,
    split: str,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    task: tuple[int, PlannedImage],
) -> ImageRecord:
    """Draws, saves and describes one image."""
    index, planned = task
    pixels, drawn = draw_image(planned, vocabulary, options.image_size, options.seed, split, index)
    image_id = f"{split}_{index:06d}"
    file_name = f"{image_id}.{options.image_format}"
    image = Image.fromarray(pixels)
    if options.image_format == "jpg":
        image.save(folder / file_name, quality=95, subsampling=0)
    else:
        image.save(folder / file_name)
    return ImageRecord(image_id, file_name, options.image_size, planned, drawn)


def _die_with_parent() -> None:
    """Ends this worker when the main process is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _count(
    records: list[ImageRecord], leaf_counts: np.ndarray, vocabulary: ShapesVocabulary
) -> dict[str, Any]:
    """Counts of a split: totals, realised rates and, for each class, true objects, rows and images."""
    objects = [planned for record in records for planned in record.planned.objects]
    drawn = [one for record in records for one in record.drawn]
    rows = np.zeros(vocabulary.num_classes, dtype=np.int64)
    images = np.zeros(vocabulary.num_classes, dtype=np.int64)
    for record in records:
        np.add.at(rows, [label for planned in record.planned.objects for label in planned.labels], 1)
        images[record.positives()] += 1
    true = leaf_counts.tolist() + [None] * (vocabulary.num_classes - vocabulary.num_leaves)
    kinds = {
        "missing_leaf": sum(o.labels[0] >= vocabulary.num_leaves for o in objects),
        "co_label": sum(len(o.leaves) > 1 for o in objects),
        "confused": sum(o.labels[0] < vocabulary.num_leaves and o.labels != o.leaves for o in objects),
        "group_of": sum(o.group for o in objects),
        "occluded": sum(one.occluded for one in drawn),
        "truncated": sum(one.truncated for one in drawn),
    }
    nested = sum(o.within for o in objects)
    if nested:
        kinds["nested"] = nested
    return {
        "images": len(records),
        "objects": len(objects),
        "rows": int(rows.sum()),
        "imbalance": float(leaf_counts.max() / leaf_counts.min()),
        **kinds,
        "classes": {
            class_id: {"objects": true[i], "rows": int(rows[i]), "images": int(images[i])}
            for i, class_id in enumerate(vocabulary.class_ids)
        },
    }


def _check_output(output: Path, options: ShapesOptions, force: bool) -> dict[str, Any] | None:
    """The generation.json of a data set that is already what is asked for; None where it must be made."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        present = json.loads((output / GENERATION_FILE).read_text(encoding="utf-8"))
        ours = present["format"] == _FORMAT_NAME
    except (OSError, ValueError, KeyError, TypeError):
        present, ours = {}, False
    if not ours:
        raise DataError(
            f"{output} exists and is not a data set made by this generator (no {GENERATION_FILE} of it); "
            f"choose another output folder, or remove this one yourself"
        )
    if present.get("version") == _VERSION and present.get("options") == options.to_json():
        return None if force else present
    if force:
        return None
    old, new = present.get("options", {}), options.to_json()
    names = [*new, *(name for name in old if name not in new)]
    changed = [
        f"{name}: {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
    raise ConfigError(
        f"{output} holds a data set made with other options ({', '.join(changed) or 'another version'}); "
        f"use --force (force=True) to replace it, or choose another output folder"
    )
