"""What LVIS has beyond COCO: frequency groups of classes, file names in URLs, and very many polygons."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.store import AnnotationStore
from longtail_det2.data.store_writer import FREQUENCIES
from longtail_det2.utils.errors import DataError

LVIS_THRESHOLDS = (10, 100)
"""Most training images of a rare and of a common class (Gupta et al., LVIS, CVPR 2019)."""
FREQUENCY_RULES = ("file", "images", "none")
"""Values of the option `frequency`, beside the folder of a store."""


def is_lvis_form(images: Iterable[Any]) -> bool:
    """Whether the entries of images list verified classes as LVIS's do."""
    found = False
    for image in images:
        if isinstance(image, dict):
            if "pos_category_ids" in image:  # which LVIS does not have
                return False
            found = found or "neg_category_ids" in image or "not_exhaustive_category_ids" in image
    return found


def file_name_in_url(url: object) -> str:
    """The last two parts of LVIS's `coco_url`: "train2017/000000391895.jpg"; "" if there is no file in it."""
    try:
        parts = urlsplit(url).path.split("/") if isinstance(url, str) else []
    except ValueError:  # such as "//[": half an address in brackets
        parts = []
    return "/".join(part for part in parts[-2:] if part) if parts and parts[-1] else ""


def compact_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Polygons of numbers as arrays of doubles: for `json.loads`, which then needs half the memory.

    A polygon that is no list of numbers stays as it is, to be complained of later.
    """
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):
            entry["segmentation"] = [
                array("d", one) if one and isinstance(one, list) else one for one in polygons
            ]
    return entry


def read_frequencies(categories: Mapping[Any, Mapping[str, Any]], findings: CocoFindings) -> list[str] | None:
    """The `frequency` of each category, in the order of the mapping; None if none has one, or some are wrong.

    Args:
        categories: entries by id.
        findings: takes those that are wrong or missing among others.
    """
    letters = [entry.get("frequency") for entry in categories.values()]
    if all(one is None for one in letters):
        return None
    problems = 0
    for (key, entry), letter in zip(categories.items(), letters, strict=True):
        if letter not in FREQUENCIES:
            problems += 1
            what = "no frequency, but others have" if letter is None else f"the frequency {letter!r}"
            findings.add("frequency", f"category {key!r} ({entry.get('name', '')!r}) has {what}")
    return None if problems else [str(one) for one in letters]


def frequency_groups(
    image_counts: Sequence[int] | np.ndarray, thresholds: tuple[int, int] = LVIS_THRESHOLDS
) -> list[str]:
    """The group of each class: "r" up to thresholds[0] images, "c" up to thresholds[1], "f" above.

    Args:
        image_counts: (K,) images with the class in the training split.
        thresholds: most images of a rare and of a common class.
    """
    places = np.searchsorted(thresholds, np.asarray(image_counts), side="left")
    return [FREQUENCIES[place] for place in places.tolist()]


def frequencies_of_store(path: str, class_ids: Sequence[str]) -> list[str]:
    """The groups that another store, usually that of the training split, has for the same classes.

    Raises:
        DataError: no store there, it has no groups, or none for one of the classes.
    """
    if not Path(path).is_dir():
        words = ", ".join(map(repr, FREQUENCY_RULES))
        raise DataError(f"frequency is {path!r}; it must be {words} or the folder of a store")
    store = AnnotationStore.open(path)
    if store.class_frequencies is None:
        raise DataError(f"{path}: the store has no frequencies; make it with --frequency images")
    known = dict(zip(store.class_ids, store.class_frequencies, strict=True))
    absent = next((one for one in class_ids if one not in known), None)
    if absent is not None:
        raise DataError(
            f"{path}: the store has no class {absent!r}, so no frequency of it; is it of these data?"
        )
    return [known[one] for one in class_ids]


def describe_frequencies(frequency: Sequence[str] | None, rule: str) -> str:
    """How many classes are in each group, and who says so, for the summary."""
    if frequency is None:
        return "none"
    counts = [sum(one == letter for one in frequency) for letter in FREQUENCIES]
    words = ", ".join(
        f"{count:,} {name}" for count, name in zip(counts, ("rare", "common", "frequent"), strict=True)
    )
    rare, common = LVIS_THRESHOLDS
    sources = {
        "file": "as the file says",
        "images": f"counted here (rare: up to {rare} images, common: up to {common})",
    }
    return f"{words}, {sources.get(rule, f'as {rule} says')}"


def describe_gaps(class_ids: Sequence[str]) -> str:
    """Says that category ids which are integers do not follow each other; "" where they do, or are texts."""
    if not class_ids or not all(one.lstrip("-").isdecimal() for one in class_ids):
        return ""
    first, last = int(class_ids[0]), int(class_ids[-1])
    missing = last - first + 1 - len(class_ids)
    if missing <= 0:
        return ""
    return f"{first} to {last} with {missing:,} gaps; class index = place in their order"
