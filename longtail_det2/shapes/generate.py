"""Generate a data set that is long-tailed, multi-label and hierarchical by construction.

A leaf class is a shape of a colour ("red circle") below its shape and its colour. Frequencies fall
geometrically; annotators wrote a parent only, a similar leaf, or two labels of a two-coloured object; one box
surrounds a group. The validation split has equally many objects per leaf and no missing or confused labels.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import PartialFolder

from .drawing import draw_image
from .plan import SPLITS, PlannedImage, ShapesOptions, plan_split
from .vocabulary import ShapesVocabulary
from .writers import ImageRecord, write_classes, write_coco, write_json, write_lvis, write_open_images

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation.json"
VERSION = 2
"""Version 2 has the images, boxes, labels and masks of 1; polygons begin elsewhere, RLEs are compressed."""
_FORMAT_NAME = "longtail_det2.shapes"


def generate_shapes(
    output: str | Path,
    options: ShapesOptions | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generate the data set, or find that it is there; return the content of its `generation.json`.

    Args:
        output: folder to make, when all is complete: `images/{split}/`, `annotations/` (Open Images form),
            `lvis/`, `coco/` and `generation.json` (options, version, counts).
        options: what to generate.
        workers: processes (default: the available cores); they have no influence on the result.
        force: replace a generated data set with other options.
        progress: show progress bars.

    Raises:
        ConfigError: bad options, or `output` holds a data set with other options and `force` is False.
        DataError: `output` holds something that this generator did not make.
    """
    options = options or ShapesOptions()
    options.validate()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    output = Path(output).absolute()
    if (present := _present(output, options, force)) is not None:
        logger.info("%s: already there, made with the same options", output)
        return present
    vocabulary = ShapesVocabulary.build(options.num_leaves)
    plans = {split: plan_split(options, vocabulary, split) for split in SPLITS}
    output.parent.mkdir(parents=True, exist_ok=True)
    with PartialFolder(output) as unpublished:
        generation = _generate_into(unpublished.folder, options, vocabulary, plans, workers, progress)
        # Another process may have made the same folder meanwhile: what is there stays, or is an error.
        if _present(output, options, force) is None:
            unpublished.publish()
    return generation


def _generate_into(
    folder: Path,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    plans: dict[str, tuple[list[PlannedImage], np.ndarray]],
    workers: int,
    progress: bool,
) -> dict[str, Any]:
    for name in ("annotations", *(form for form in ("coco", "lvis") if form in options.formats)):
        (folder / name).mkdir()
    write_classes(folder / "annotations", vocabulary)
    records: dict[str, list[ImageRecord]] = {}
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True)
        draw: Any = partial(_draw, folder / "images" / split, split, options, vocabulary)
        planned: Any = list(enumerate(plans[split][0]))
        # The loader's processes end with this one, also when it is killed.
        number = workers if workers > 1 else 0
        loader = DataLoader(planned, batch_size=None, collate_fn=draw, num_workers=number)
        records[split] = list(tqdm(loader, f"{split} images", disable=not progress))
        if "openimages" in options.formats:
            write_open_images(folder / "annotations", split, records[split], vocabulary)
        if "coco" in options.formats:
            write_coco(folder / "coco" / f"{split}.json", records[split], vocabulary)
    if "lvis" in options.formats:
        write_lvis(folder / "lvis", records, vocabulary, options)
    generation = {
        "format": _FORMAT_NAME,
        "version": VERSION,
        "options": options.to_json(),
        "counts": {split: _count(records[split], plans[split][1], vocabulary) for split in SPLITS},
    }
    write_json(folder / GENERATION_FILE, generation)
    return generation


def _draw(
    folder: Path,
    split: str,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    image: tuple[int, PlannedImage],
) -> ImageRecord:
    """Draw and save one image."""
    index, planned = image
    pixels, drawn = draw_image(planned, vocabulary, options.image_size, options.seed, split, index)
    file_name = f"{split}_{index:06d}.{options.image_format}"
    lossy: dict[str, Any] = {"quality": 95, "subsampling": 0} if options.image_format == "jpg" else {}
    Image.fromarray(pixels).save(folder / file_name, **lossy)
    return ImageRecord(file_name, options.image_size, planned, drawn)


def _count(
    records: list[ImageRecord], leaf_counts: np.ndarray, vocabulary: ShapesVocabulary
) -> dict[str, Any]:
    objects = [planned for record in records for planned in record.planned.objects]
    drawn = [one for record in records for one in record.drawn]
    rows = Counter(label for planned in objects for label in planned.labels)
    images = Counter(label for record in records for label in record.positives())
    leaf = [planned.labels[0] < vocabulary.num_leaves for planned in objects]
    true = leaf_counts.tolist() + [None] * (vocabulary.num_classes - vocabulary.num_leaves)
    return {
        "images": len(records),
        "objects": len(objects),
        "rows": sum(rows.values()),
        "imbalance": float(leaf_counts.max() / leaf_counts.min()),
        "missing_leaf": leaf.count(False),
        "co_label": sum(len(o.leaves) > 1 for o in objects),
        "confused": sum(known and o.labels != o.leaves for known, o in zip(leaf, objects, strict=True)),
        "group_of": sum(o.group for o in objects),
        "occluded": sum(one.occluded for one in drawn),
        "truncated": sum(one.truncated for one in drawn),
        "classes": {
            class_id: {"objects": true[i], "rows": rows[i], "images": images[i]}
            for i, class_id in enumerate(vocabulary.class_ids)
        },
    }


def _present(output: Path, options: ShapesOptions, force: bool) -> dict[str, Any] | None:
    """Return the generation.json of a data set that is already what is asked for, None if it must be made."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        present = json.loads((output / GENERATION_FILE).read_text(encoding="utf-8"))
        ours = present["format"] == _FORMAT_NAME
    except (OSError, ValueError, KeyError, TypeError):
        present, ours = {}, False
    if not ours:
        raise DataError(f"{output} exists and was not made by this generator: choose another, or remove it")
    if force:
        return None
    old, new = present.get("options", {}), options.to_json()
    if present.get("version") == VERSION and old == new:
        return present
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    changed = ", ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in names)
    raise ConfigError(
        f"{output} holds a data set made with other options ({changed or 'another version'}); use --force "
        "(force=True) to replace it, or choose another output folder"
    )
