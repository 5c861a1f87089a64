"""Generate a data set that is long-tailed, multi-label and hierarchical by construction.

A leaf class is a shape of a colour ("red circle") below its shape and its colour. Frequencies fall
geometrically; annotators wrote a parent only, a similar leaf, or two labels of a two-coloured object; one box
surrounds a group. The validation split has equally many objects per leaf and no missing or confused labels.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import PartialFolder, write_json

from .drawing import draw_image
from .plan import SPLITS, PlannedImage, ShapesOptions, plan_split
from .vocabulary import ShapesVocabulary
from .writers import ImageRecord, write_classes, write_coco, write_lvis, write_open_images

GENERATION_FILE = "generation.json"
VERSION = 3
"""Version 3 has the images, boxes, labels and masks of 2, without occluded and truncated."""
_FORMAT = "longtail_det2.shapes"


def generate_shapes(
    output: str | Path,
    options: ShapesOptions | None = None,
    *,
    workers: int = 1,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generate the data set, or find that it is there; return the content of its `generation.json`.

    Args:
        output: folder to make, when all is complete: `images/{split}/`, `annotations/` (Open Images form),
            `lvis/`, `coco/` and `generation.json` (options, version, counts).
        options: what to generate.
        workers: processes; they have no influence on the result.
        force: replace a generated data set with other options.
        progress: show progress bars.

    Raises:
        ValueError: `workers` is negative.
        ConfigError: bad options, or `output` holds a data set with other options and `force` is False.
        DataError: `output` holds something that this generator did not make.
    """
    options = options or ShapesOptions()
    options.validate()
    output = Path(output).absolute()
    if (present := _present(output, options, force)) is not None:
        return present
    vocabulary = ShapesVocabulary.build(options.num_leaves)
    plans = {split: plan_split(options, vocabulary, split)[0] for split in SPLITS}
    output.parent.mkdir(parents=True, exist_ok=True)
    with PartialFolder(output) as unpublished:
        records = _generate_into(unpublished.folder, options, vocabulary, plans, workers, progress)
        about = {"format": _FORMAT, "version": VERSION, "options": options.to_json()}
        generation = {**about, "counts": {split: _count(found) for split, found in records.items()}}
        write_json(unpublished.folder / GENERATION_FILE, generation, indent=1)
        # Another process may have made the same folder meanwhile: what is there stays, or is an error.
        if _present(output, options, force) is None:
            unpublished.publish()
    return generation


def _generate_into(
    folder: Path,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    plans: dict[str, list[PlannedImage]],
    workers: int,
    progress: bool,
) -> dict[str, list[ImageRecord]]:
    for name in ("annotations", *(form for form in ("coco", "lvis") if form in options.formats)):
        (folder / name).mkdir()
    write_classes(folder / "annotations", vocabulary)
    records: dict[str, list[ImageRecord]] = {}
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True)
        draw: Any = partial(_draw, folder / "images" / split, split, options, vocabulary)
        planned: Any = list(enumerate(plans[split]))
        # The loader's processes end with this one, also when it is killed.
        loader = DataLoader(planned, None, collate_fn=draw, num_workers=workers if workers > 1 else 0)
        records[split] = list(tqdm(loader, f"{split} images", disable=not progress))
        if "openimages" in options.formats:
            write_open_images(folder / "annotations", split, records[split], vocabulary)
        if "coco" in options.formats:
            write_coco(folder / "coco" / f"{split}.json", records[split], vocabulary)
    if "lvis" in options.formats:
        write_lvis(folder / "lvis", records, vocabulary)
    return records


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
    file_name = f"{split}_{index:06d}.jpg"
    Image.fromarray(pixels).save(folder / file_name, quality=95, subsampling=0)
    return ImageRecord(file_name, options.image_size, planned, drawn)


def _count(records: list[ImageRecord]) -> dict[str, int]:
    objects = [planned for record in records for planned in record.planned.objects]
    rows, pairs = sum(len(one.labels) for one in objects), sum(len(one.leaves) > 1 for one in objects)
    return {"images": len(records), "objects": len(objects), "rows": rows, "co_label": pairs}


def _present(output: Path, options: ShapesOptions, force: bool) -> dict[str, Any] | None:
    """Return the generation.json of a data set that is already what is asked for, None if it must be made."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    present: Any = None
    with suppress(OSError, ValueError):
        present = json.loads((output / GENERATION_FILE).read_text(encoding="utf-8"))
    if not isinstance(present, dict) or present.get("format") != _FORMAT:
        raise DataError(f"{output} exists and was not made by this generator: choose another, or remove it")
    if force:
        return None
    old, new = present.get("options", {}), options.to_json()
    if present.get("version") == VERSION and old == new:
        return present
    changed = [f"{name}: {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    raise ConfigError(
        f"{output} holds a data set made with other options ({', '.join(changed) or 'another version'}); use "
        "--force (force=True) to replace it, or choose another output folder"
    )
