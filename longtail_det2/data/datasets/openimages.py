"""Open Images annotations (V4 to V7, challenge 2019, and anything in their form) to an annotation store."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from longtail_det2.data.datasets.openimages_csv import CsvStream, read_class_descriptions
from longtail_det2.data.datasets.openimages_objects import Objects, group_rows, merge_near, specificity_rank
from longtail_det2.data.datasets.openimages_rows import (
    BoxRows,
    ImageLabelRows,
    LabelTable,
    index_images,
    read_box_rows,
    read_image_label_rows,
)
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.images import find_images, read_image_sizes
from longtail_det2.data.store import AnnotationStore, AnnotationStoreWriter
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file, is_same_file

_LOGGER = logging.getLogger(__name__)
_RULES = 1  # raise when the same sources and options would give another store
_SIZE_COLUMNS = {"ImageID": pa.string(), "Width": pa.int32(), "Height": pa.int32()}


class _Options(TypedDict):
    rules: int
    images: str | None
    merge_iou: float
    on_missing_image: str
    on_unknown_label: str
    on_bad_box: str
    machine_label_threshold: float | None


def prepare_openimages(
    boxes: Sequence[Path],
    image_labels: Sequence[Path],
    classes: Path,
    hierarchy: Path | None,
    images: Path | None,
    output: Path,
    *,
    merge_iou: float = 1.0,
    image_sizes: Path | None = None,
    on_missing_image: Literal["error", "skip"] = "error",
    on_unknown_label: Literal["error", "skip"] = "error",
    on_bad_box: Literal["error", "skip", "clip"] = "error",
    machine_label_threshold: float | None = None,
    workers: int = 2,
    force: bool = False,
    progress: bool = True,
) -> AnnotationStore:
    """Make an annotation store, or open the one that is there if it is made of the same sources and options.

    The images of the store are those of the rows that are kept, with boxes or with image labels alone, by id.
    How rows become objects: `longtail_det2.data.datasets.openimages_objects`. What was kept, joined and left
    out is counted in `store.header["summary"]`.

    Args:
        boxes: box CSVs; columns ImageID, LabelName, XMin, XMax, YMin, YMax by name, flags if there are any.
        image_labels: image-label CSVs; columns ImageID, LabelName, Confidence.
        classes: class descriptions, LabelName,DisplayName without header; its order is the class order.
        hierarchy: hierarchy JSON; nodes that are no classes are left out, their children move up. None: flat.
        images: folder with the images at any depth. None: the sizes are from `image_sizes`, else unknown (0),
            which serves statistics and evaluation, but not training; file names are then "<id>.jpg".
        output: directory of the store.
        merge_iou: boxes of different labels that overlap at least so much become one object; 1: equal boxes
            only.
        image_sizes: CSV with columns ImageID, Width, Height (upright images), to spare opening the files.
        on_missing_image: what to do about an image that is not below `images`, cannot be read or has no size.
        on_unknown_label: what to do about labels that are not among the classes.
        on_bad_box: what to do about coordinates outside [0, 1] (beyond 1e-6), inverted or not finite; "clip"
            cuts boxes at the border.
        machine_label_threshold: image labels with fractional confidence count as present from this value on;
            None refuses them.
        workers: processes that read image headers.
        force: build even if the store is up to date.
        progress: show progress bars.

    Raises:
        DataError: anything that is wrong with the files, with file and line.
    """
    if not 0 < merge_iou <= 1:
        raise DataError(f"merge_iou is {merge_iou}; it must lie in (0, 1], 1 for equal boxes only")
    options = _Options(
        rules=_RULES,
        images=None if images is None else os.path.abspath(images),
        merge_iou=merge_iou,
        on_missing_image=on_missing_image,
        on_unknown_label=on_unknown_label,
        on_bad_box=on_bad_box,
        machine_label_threshold=machine_label_threshold,
    )
    files = [("boxes", Path(path)) for path in boxes] + [
        ("image_labels", Path(path)) for path in image_labels
    ]
    files.append(("classes", Path(classes)))
    files += [("hierarchy", Path(hierarchy))] if hierarchy is not None else []
    files += [("image_sizes", Path(image_sizes))] if image_sizes is not None else []
    for role, path in files:
        if not path.is_file():
            raise DataError(f"{path}: no such file ({role})")
    if not force and (store := _up_to_date(Path(output), files, options)) is not None:
        _LOGGER.info("%s is up to date: same sources and options", output)
        return store
    with AnnotationStoreWriter(output) as writer:
        build = _Build(options, Path(images) if images is not None else None, workers, progress)
        build.read_classes(Path(classes), hierarchy)
        box_rows, label_rows = build.read_rows([Path(p) for p in boxes], [Path(p) for p in image_labels])
        build.write(writer, box_rows, label_rows, image_sizes)
    return AnnotationStore.open(output)


class _Build:
    """One run of the preparation; its steps in order."""

    def __init__(self, options: _Options, images: Path | None, workers: int, progress: bool) -> None:
        self.options = options
        self.images = images
        self.workers = workers
        self.progress = progress
        self.sources: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def read_classes(self, classes: Path, hierarchy: Path | None) -> None:
        self.class_ids, self.class_names = read_class_descriptions(classes)
        self._add_source("classes", describe_file(classes))
        self.hierarchy = None
        if hierarchy is not None:
            self.hierarchy = LabelHierarchy.from_json(hierarchy, self.class_ids, unlisted="contract")
            self._add_source("hierarchy", describe_file(Path(hierarchy)))
        indices = {label: index for index, label in enumerate(self.class_ids)}
        policy: Any = self.options["on_unknown_label"]
        self.labels = LabelTable(indices, classes, policy)

    def read_rows(self, boxes: list[Path], image_labels: list[Path]) -> tuple[BoxRows, ImageLabelRows]:
        policy: Any = self.options["on_bad_box"]
        total = sum(os.path.getsize(path) for path in [*boxes, *image_labels])
        with self._bar("annotations", total, "B") as bar:
            box_rows, sources = read_box_rows(boxes, self.labels, policy, bar.update)
            for source in sources:
                self._add_source("boxes", source)
            threshold = self.options["machine_label_threshold"]
            label_rows, sources = read_image_label_rows(image_labels, self.labels, threshold, bar.update)
            for source in sources:
                self._add_source("image_labels", source)
        self.summary["unknown_label_rows"] = sum(self.labels.unknown.values())
        self.summary["unknown_labels"] = len(self.labels.unknown)
        self.summary["bad_boxes"] = box_rows.num_bad
        self.summary["machine_labels_left_out"] = label_rows.num_below
        return box_rows, label_rows

    def write(
        self,
        writer: AnnotationStoreWriter,
        box_rows: BoxRows,
        label_rows: ImageLabelRows,
        image_sizes: Path | None,
    ) -> None:
        ids, (box_image, label_image) = index_images(box_rows.image, label_rows.image)
        box_rows.image.clear()
        label_rows.image.clear()
        names, sizes, keep = self._find_sizes(ids, image_sizes)
        pa.default_memory_pool().release_unused()  # some hundred megabytes after a gigabyte of CSV
        if not keep.all():
            place = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
            ids, names, sizes = ids[keep], names[keep], sizes[keep]
            box_image, label_image = place[box_image], place[label_image]
        writer.add("image_id", ids)
        writer.add("file_name", names)
        writer.add("image_size", sizes)
        self._write_image_labels(writer, label_image, label_rows, len(ids))
        objects = self._group(box_image, box_rows)
        self._write_objects(writer, objects, len(ids))
        self.summary["images"] = len(ids)
        writer.finish(
            self.class_ids,
            self.class_names,
            parents=None if self.hierarchy is None else self.hierarchy.to_parents(),
            image_root=self.images,
            sources=self.sources,
            options=self.options,
            summary=dict(sorted(self.summary.items())),
        )

    def _group(self, image: np.ndarray, rows: BoxRows) -> Objects:
        columns = [image, rows.label, rows.box, rows.flags]
        if len(image) and image.min() < 0:
            keep = image >= 0
            columns = [column[keep] for column in columns]
        num_classes = len(self.class_ids)
        depth = np.zeros(num_classes, np.int64) if self.hierarchy is None else self.hierarchy.depth
        rank = specificity_rank(depth, np.bincount(columns[1], minlength=num_classes))
        self.summary["box_rows"] = len(columns[0])
        image, label, box, flags = columns
        objects = group_rows(image, label, box, flags, rank)
        if self.options["merge_iou"] < 1:
            objects = merge_near(objects, self.options["merge_iou"], rank)
        return objects

    def _write_objects(self, writer: AnnotationStoreWriter, objects: Objects, num_images: int) -> None:
        per_image = np.bincount(objects.image, minlength=num_images)
        per_object = np.diff(objects.label_offsets)
        self.summary["objects"] = len(objects.image)
        self.summary["labels"] = len(objects.label)
        self.summary["objects_with_several_labels"] = int(np.count_nonzero(per_object > 1))
        self.summary["rows_merged_equal_box"] = objects.num_merged
        self.summary["objects_merged_near"] = objects.num_merged_near
        self.summary["duplicate_rows"] = objects.num_duplicates
        self.summary["empty_boxes"] = int(
            np.count_nonzero(
                (objects.box[:, 2] <= objects.box[:, 0]) | (objects.box[:, 3] <= objects.box[:, 1])
            )
        )
        self.summary["images_without_objects"] = int(np.count_nonzero(per_image == 0))
        writer.add("object_offsets", _offsets(per_image))
        writer.add("box", objects.box)
        writer.add("flags", objects.flags)
        writer.add("label_offsets", objects.label_offsets)
        writer.add("label", objects.label)

    def _write_image_labels(
        self, writer: AnnotationStoreWriter, image: np.ndarray, rows: ImageLabelRows, num_images: int
    ) -> None:
        """Each (image, label, verdict) once; the metric knows images that have both verdicts on a label."""
        keep = image >= 0
        keys = (image[keep].astype(np.int64) * len(self.class_ids) + rows.label[keep]) * 2 + rows.positive[
            keep
        ]
        keys.sort()
        keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
        pairs = keys >> 1
        self.summary["image_labels"] = len(keys)
        self.summary["contradictory_image_labels"] = int(np.count_nonzero(pairs[1:] == pairs[:-1]))
        writer.add("image_label", pairs % len(self.class_ids))
        writer.add("image_label_status", keys & 1)
        counts = np.bincount(pairs // len(self.class_ids), minlength=num_images)
        writer.add("image_label_offsets", _offsets(counts))

    def _find_sizes(
        self, ids: np.ndarray, image_sizes: Path | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """File names, (height, width) and which images to keep."""
        sizes = np.zeros((len(ids), 2), dtype=np.int32)
        if image_sizes is not None:
            sizes = self._read_size_file(image_sizes, ids)
        if self.images is None:
            names = np.char.add(ids, b".jpg") if len(ids) else ids
            known = np.ones(len(ids), dtype=bool)
            if image_sizes is not None:
                known &= (sizes > 0).all(axis=1)
            self._settle("images_without_size", ids, ~known, f"have no size in {image_sizes}")
            return names, sizes, known
        names = find_images(self.images, ids)
        missing = names == b""
        self._settle("missing_images", ids, missing, f"are not below {self.images}")
        unknown = np.flatnonzero(~missing & (sizes == 0).any(axis=1))
        with self._bar("image headers", len(unknown), "image") as bar:
            sizes[unknown], problems = read_image_sizes(self.images, names[unknown], self.workers, bar.update)
        unreadable = np.zeros(len(ids), dtype=bool)
        unreadable[unknown[[index for index, _ in problems]]] = True
        reason = f"cannot be read as images ({problems[0][1]})" if problems else ""
        self._settle("unreadable_images", ids, unreadable, reason)
        return names, sizes, ~missing & ~unreadable

    def _settle(self, what: str, ids: np.ndarray, wrong: np.ndarray, problem: str) -> None:
        count = int(np.count_nonzero(wrong))
        self.summary[what] = count
        if count and self.options["on_missing_image"] == "error":
            examples = ", ".join(name.decode() for name in ids[wrong][:3].tolist())
            raise DataError(
                f"{count} of {len(ids)} annotated images {problem}, for example {examples}; "
                "complete them, or leave them out with --on-missing-image skip"
            )

    def _read_size_file(self, path: Path, ids: np.ndarray) -> np.ndarray:
        """(height, width) of each image, 0 where the file has none."""
        stream = CsvStream(path, _SIZE_COLUMNS)
        listed: list[pa.Array] = []
        listed_sizes = [np.zeros((0, 2), dtype=np.int32)]
        first = 0
        for batch in stream:
            values = np.stack(
                [batch[name].fill_null(0).to_numpy(zero_copy_only=False) for name in ("Height", "Width")],
                axis=1,
            )
            if (bad := (values <= 0).any(axis=1)).any():
                stream.fail(first + int(np.argmax(bad)), "Width and Height must be positive")
            listed.append(batch["ImageID"])
            listed_sizes.append(values)
            first += len(batch)
        self._add_source("image_sizes", stream.source)
        sizes = np.zeros((len(ids), 2), dtype=np.int32)
        lookup = pc.SetLookupOptions(pa.array(ids.tolist(), pa.binary()).cast(pa.string()))
        place = pc.call_function("index_in", [pa.chunked_array(listed, pa.string())], lookup)
        known = place.is_valid().to_numpy()
        sizes[place.drop_null().to_numpy()] = np.concatenate(listed_sizes)[known]
        return sizes

    def _add_source(self, role: str, source: Mapping[str, Any]) -> None:
        self.sources.append({"role": role, **source})

    @contextmanager
    def _bar(self, what: str, total: int, unit: str) -> Iterator["tqdm[Any]"]:
        scale = unit == "B"
        with tqdm(total=total, desc=what, unit=unit, unit_scale=scale, disable=not self.progress) as bar:
            yield bar


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _up_to_date(output: Path, files: list[tuple[str, Path]], options: _Options) -> AnnotationStore | None:
    """The store at `output` if it was made of the same sources with the same options, else None.

    A source of the same path, size and modification time is taken for the same; else its content is compared.
    """
    try:
        store = AnnotationStore.open(output)
    except DataError:
        return None
    summary = store.header["summary"]
    if store.header["options"] != options:
        return None
    if any(summary.get(name) for name in ("missing_images", "unreadable_images", "images_without_size")):
        return None  # they may have come in the meantime
    for role in {role for role, _ in files} | {source.get("role") for source in store.header["sources"]}:
        known = [source for source in store.header["sources"] if source.get("role") == role]
        paths = [path for other, path in files if other == role]
        if len(known) != len(paths) or not all(map(is_same_file, known, paths)):
            return None
    return store
