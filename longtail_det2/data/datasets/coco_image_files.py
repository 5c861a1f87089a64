"""The image files of a COCO-form file: are they there, and of the annotated sizes?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.coco_json import CocoImages
from longtail_det2.data.images import read_image_sizes
from longtail_det2.utils.errors import DataError

_MOST_FILES = 100_000


def check_image_files(
    images: CocoImages,
    image_root: str | os.PathLike[str] | None,
    findings: CocoFindings,
    workers: int,
) -> np.ndarray:
    """Compares sizes with the image files and fills unknown ones in.

    Args:
        images: n images; their sizes are replaced by those of the files.
        image_root: folder of the files; None compares nothing.
        findings: takes images that are absent, unreadable, or of another size.
        workers: processes that read headers.

    Returns:
        (n,) bool, which images to keep.

    Raises:
        DataError: there is no such folder.
    """
    present = np.array([name != "" for name in images.file_names], dtype=bool)
    unknown = (images.sizes == 0).any(axis=1)
    if image_root is None:
        for index in np.flatnonzero(unknown).tolist():
            findings.add("no_size", f"image {images.ids[index]!r} has no height and width")
        findings.add("no_folder", "neither sizes nor files were compared")
        return present & ~unknown
    root = Path(image_root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    places = np.flatnonzero(present)
    names: Any = np.array([images.file_names[index].encode() for index in places.tolist()], dtype=np.bytes_)
    found, unreadable = read_image_sizes(root, names, workers, lambda count: None)
    sizes = np.zeros_like(images.sizes)
    sizes[places] = found
    missing = [images.file_names[int(places[place])] for place, _ in unreadable]
    missing = [name for name in missing if not os.path.exists(root / name)]
    if missing:
        findings.hint("missing_image", _guess_cause(root, missing, len(missing) == len(places)))
    for place, reason in unreadable:
        index = int(places[place])
        findings.add("missing_image", f"{root / images.file_names[index]}: cannot read the image ({reason})")
        present[index] = False
    differ = present & ~unknown & (sizes != images.sizes).any(axis=1)
    for index in np.flatnonzero(differ).tolist():
        (height, width), (real_height, real_width) = images.sizes[index].tolist(), sizes[index].tolist()
        findings.add(
            "other_size",
            f"image {images.ids[index]!r} is annotated as {width} x {height} pixels (width x height), but "
            f"{root / images.file_names[index]} has {real_width} x {real_height}",
        )
    present &= ~differ
    images.sizes = np.where(present[:, None], sizes, 1).astype(np.int32)
    return present


def _guess_cause(root: Path, missing: Sequence[str], is_all: bool) -> str:
    """What may help with files that were not found; "" where nothing comes to mind.

    Args:
        root: the image folder.
        missing: names of the files, at least one.
        is_all: not a single file was found.
    """
    folder, _, name = missing[0].rpartition("/")
    if folder and (root / name).is_file() and root.name != folder:
        return (
            f"{root / name} is there, but not in a folder {folder}: move the pictures into one, make it a "
            f"link (ln -s . {root / folder}), or give the images a file_name"
        )
    if is_all:
        return _guess_folder(root, missing[0])
    absent = sorted({one.split("/")[0] for one in missing if "/" in one and not (root / one).parent.is_dir()})
    if not absent:
        return ""
    return (
        f"{root} has no folder {' or '.join(absent)}; {len(missing):,} pictures are missing (LVIS takes "
        "those of its validation split from two of COCO's folders)"
    )


def _guess_folder(root: Path, file_name: str) -> str:
    """What may help where not a single file was found."""
    name = Path(file_name).name
    found = next((path for path in islice(root.rglob("*"), _MOST_FILES) if path.name == name), None)
    if found is None:
        return ""
    folder = str(found)[: -len(file_name)] if str(found).endswith(file_name) else str(found.parent)
    return f"{found} is there: did you mean the folder {folder.rstrip('/')}?"
