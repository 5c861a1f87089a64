r"""Class statistics of training data: images, instances, co-occurrence, positive anchors, frequency bins.

An object has its annotated labels and all their ancestors. With n_i objects of class i and n_ij objects of
both classes, the co-occurrence rate of concurrent softmax (Peng et al., CVPR 2020) is

    r_ij = P(j | i) = n_ij / n_i,   r_ii = 0,   r(class, ancestor) = 1 also where n_i = 0.

Group-of boxes count as images and instances of their classes, for they are trained on, but not in n_i and
n_ij: two labels of a group say that members of both classes are in it, not that one object has both.

Statistics are computed once, before the model is built, and written to one JSON file:

    {"format": "longtail_det2.class_statistics", "version": 1, "num_images": 3, "parents": {"dog": ["pet"]},
     "anchors": {"number": 40000, "foreground": 52, "settings": {"MODEL.RPN.IN_FEATURES": ["p3"], ...}},
     "classes": [{"id": "dog", "images": 2, "instances": 4, "cooccurrence": {"dog": 4, "pet": 4},
                  "positive_anchors": 31}, ...]}

`parents` and `cooccurrence` may be absent, and `anchors` together with `positive_anchors`: a detector matches
them. The co-occurrence of a class with itself is n_i.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from detectron2.data import DatasetCatalog

from longtail_det2.data.datasets.builtin import check_registered, class_ids_of, hierarchy_of
from longtail_det2.data.datasets.dataset import annotation_labels, check_same_classes
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore, ObjectFlag, rows_per_class
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import atomic_writer, read_json
from longtail_det2.utils.ragged import gather_rows, offsets_of

logger = logging.getLogger(__name__)

FORMAT = "longtail_det2.class_statistics"
VERSION = 1
FREQUENCY_BINS = ("head", "medium", "tail")
"""Names of the bins that :func:`frequency_bins` numbers."""

_ADVICE = "make it with longtail-det2 statistics, or leave DATASETS.STATISTICS empty"
_LARGEST_COUNT = 2**53
"""Larger counts are not exact as float64."""
_SETS_AT_ONCE = 1 << 15
"""Label sets whose class pairs are in memory at once."""


@dataclass(frozen=True, eq=False)
class AnchorStatistics:
    """Anchors that match objects in training, counted over some images.

    Attributes:
        positives: (K,) int64, n_j: positive anchors whose object has class j or a descendant of it.
        foreground: N_f, positive anchors; one whose object has several labels counts once.
        number: N, positive and background anchors; ignored ones are left out.
        settings: config keys and their values (as JSON has them) that the counts hold for.
    """

    positives: np.ndarray
    foreground: int
    number: int
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raises DataError unless 0 <= n_j <= N_f <= N, and every positive anchor has a class."""
        positives = np.asarray(self.positives, np.int64)
        object.__setattr__(self, "positives", positives)
        if positives.ndim != 1 or not ((positives >= 0) & (positives <= self.foreground)).all():
            raise DataError(f"positive anchors per class: not 1-D with values in [0, {self.foreground}]")
        if not 0 <= self.foreground <= self.number <= _LARGEST_COUNT:
            raise DataError(f"{self.foreground} of {self.number} anchors are positive, which cannot be")
        if positives.sum() < self.foreground:
            raise DataError(
                f"{self.foreground} anchors are positive, but classes have {positives.sum()} only"
            )


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Counts per class of a training set.

    Attributes:
        class_ids: K identifiers in class-index order.
        num_images: images of the data, with or without objects.
        image_counts: (K,) int64, images with an object of the class or of a descendant.
        instance_counts: (K,) int64, objects of the class or of a descendant.
        cooccurrence: (K, K) int64, symmetric: objects of both classes; objects of the class on the diagonal.
            Group-of boxes are left out. None if unknown.
        anchors: those that match objects of the classes; None if not measured.
        hierarchy: of the classes; None for flat classes.
    """

    class_ids: tuple[str, ...]
    num_images: int
    image_counts: np.ndarray
    instance_counts: np.ndarray
    cooccurrence: np.ndarray | None = None
    anchors: AnchorStatistics | None = None
    hierarchy: LabelHierarchy | None = None

    def __post_init__(self) -> None:
        """Raises DataError for arrays of other shapes, negative counts, or impossible co-occurrences."""
        object.__setattr__(self, "class_ids", tuple(self.class_ids))
        size = len(self.class_ids)
        for name in ("image_counts", "instance_counts", "cooccurrence"):
            if getattr(self, name) is None:
                continue
            values = np.asarray(getattr(self, name), np.int64)
            if values.shape != ((size, size) if name == "cooccurrence" else (size,)):
                raise DataError(f"{name} has shape {values.shape}, but there are {size} classes")
            if not ((values >= 0) & (values <= _LARGEST_COUNT)).all():
                raise DataError(f"{name} has values outside [0, {_LARGEST_COUNT}]")
            object.__setattr__(self, name, values)
        if self.anchors is not None and len(self.anchors.positives) != size:
            raise DataError(f"anchors of {len(self.anchors.positives)} classes, but there are {size} classes")
        pairs = self.cooccurrence
        wrong = [] if pairs is None else np.argwhere((pairs > pairs.diagonal()[:, None]) | (pairs != pairs.T))
        if len(wrong):
            one, other = (self.class_ids[c] for c in wrong[0])
            raise DataError(f"cooccurrence of {one!r} and {other!r}: not symmetric, or above its diagonal")

    @property
    def known_cooccurrence(self) -> np.ndarray:
        """`cooccurrence`; raises DataError where it is unknown."""
        if self.cooccurrence is None:
            raise DataError("the class statistics have no co-occurrence counts; compute them again")
        return self.cooccurrence

    def rates(self) -> np.ndarray:
        """Co-occurrence rates: (K, K) float64 in [0, 1], [i, j] = P(j | i), with a diagonal of 0.

        Raises DataError where the statistics have no co-occurrence counts.
        """
        pairs = self.known_cooccurrence
        rates = pairs / np.maximum(pairs.diagonal(), 1)[:, None]
        np.fill_diagonal(rates, 0.0)
        if self.hierarchy is not None:
            rates[self.hierarchy.ancestors] = 1.0
        return rates

    @property
    def seesaw_labels(self) -> str:
        """SEESAW.LABELS that fit: "most_specific" where no object has several labels, else "all"."""
        pairs = self.cooccurrence
        single = self.hierarchy is None and pairs is not None and pairs.sum() == pairs.trace()
        return "most_specific" if single else "all"


def frequency_bins(counts: np.ndarray, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Head, medium and tail: classes binned by their number of training images.

    Args:
        counts: (n,) numbers >= 0.
        thresholds: (low, high): below `low` is tail, below `high` medium, the others head. None or empty:
            thirds of the classes by count, the larger thirds first; equal counts are ordered by index.
            Classes with count 0 are tail in any case.

    Returns:
        (n,) int64: 0 head, 1 medium, 2 tail.

    Raises:
        ConfigError: counts that are not a 1-D array of numbers >= 0, or thresholds that are not ordered.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not (counts >= 0).all():
        raise ConfigError(f"counts must be a 1-D array of numbers >= 0, got shape {counts.shape}")
    if thresholds is None or len(thresholds) == 0:
        bins = np.empty(len(counts), dtype=np.int64)
        for number, members in enumerate(np.array_split(np.argsort(-counts, kind="stable"), 3)):
            bins[members] = number
    elif len(thresholds) != 2 or not thresholds[0] <= thresholds[1]:
        raise ConfigError(f"thresholds must be (low, high) with low <= high, got {tuple(thresholds)}")
    else:
        bins = 2 - np.searchsorted(np.asarray(thresholds), counts, side="right")
    bins[counts == 0] = 2
    return bins


def compute_statistics(
    sources: str | AnnotationStore | Sequence[str | AnnotationStore],
    image_level: bool = False,
) -> ClassStatistics:
    """Count in data sets together; an image in two of them counts twice.

    Args:
        sources: registered names, of annotation stores or of plain Detectron2 dicts, or open stores, with
            equal class lists. The hierarchy is that of the first, as in training.
        image_level: for classifiers of images: the labels of an image are counted as those of one object.

    Raises:
        ConfigError: no data set.
        DataError: an unknown name, an absent store, different classes, or labels that are not classes.
    """
    sources = [sources] if isinstance(sources, (str, AnnotationStore)) else list(sources)
    if not sources:
        raise ConfigError("no data set is named (DATASETS.TRAIN), so there is nothing to count")
    names = [one if isinstance(one, str) else str(one.path) for one in sources]
    contents = [_contents(one, image_level) for one in sources]
    class_ids, hierarchy, _ = contents[0]
    size, num_images = len(class_ids), 0
    images, groups, objects = (np.zeros(shape, np.int64) for shape in (size, size, (size, size)))
    for name, (ids, _, columns) in zip(names, contents, strict=True):
        image_offsets, label_offsets, labels, is_group = columns
        check_same_classes(class_ids, ids, names[0], name)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < size:
            raise DataError(f"data set {name!r} has labels that are not among its {size} classes")
        num_images += len(image_offsets) - 1
        images += rows_per_class(label_offsets[image_offsets], labels, hierarchy)
        _add_cooccurrence(objects, columns, hierarchy)
        positions, offsets = gather_rows(label_offsets, np.flatnonzero(is_group))
        groups += rows_per_class(offsets, labels[positions], hierarchy)
    known = None if hierarchy.is_flat else hierarchy
    return ClassStatistics(class_ids, num_images, images, objects.diagonal() + groups, objects, None, known)


def cooccurrence_rates_of(names: str | Sequence[str], image_level: bool = False) -> np.ndarray | None:
    """P(j | i) (K, K) of registered data sets; None, logged, where one is absent."""
    statistics = _statistics_if_there(names, image_level)
    return statistics and statistics.rates()


def image_counts_of(names: str | Sequence[str], image_level: bool = False) -> np.ndarray | None:
    """Images per class (K,) of registered data sets; None, logged, where one is absent."""
    statistics = _statistics_if_there(names, image_level)
    return statistics and statistics.image_counts


def num_images_of(names: str | Sequence[str]) -> int | None:
    """Images of registered data sets; None, logged, where one is absent."""
    statistics = _statistics_if_there(names)
    return statistics and statistics.num_images


def _statistics_if_there(names: str | Sequence[str], image_level: bool = False) -> ClassStatistics | None:
    # Lazy configs build models also where there are no data: for published weights, for export.
    try:
        return compute_statistics(names, image_level)
    except (DataError, OSError) as error:
        logger.warning("no class statistics: %s", error)
        return None


_Columns: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Object offsets of images, label offsets of objects, labels, and whether objects are group-of."""


def _contents(
    source: str | AnnotationStore, image_level: bool
) -> tuple[tuple[str, ...], LabelHierarchy, _Columns]:
    """Class ids, hierarchy and columns of a data set."""
    if isinstance(source, AnnotationStore) and image_level:
        offsets, labels = source.present_labels
        filled = np.flatnonzero(np.diff(offsets))
        objects = np.searchsorted(filled, np.arange(len(source) + 1))  # an image with labels is one object
        columns = objects, np.append(offsets[filled], offsets[-1]), labels, np.zeros(len(filled), dtype=bool)
        return source.class_ids, source.hierarchy, columns
    if isinstance(source, AnnotationStore):
        is_group = (source.flags & np.uint8(ObjectFlag.GROUP_OF)) != 0
        columns = source.object_offsets, source.label_offsets, source.labels, is_group
        return source.class_ids, source.hierarchy, columns
    check_registered(source)
    dataset: Any = DatasetCatalog.get(source)
    if isinstance(getattr(dataset, "store", None), AnnotationStore):
        return _contents(dataset.store, image_level)
    annotations = [record.get("annotations", ()) for record in dataset]
    if image_level:
        present = ({label for one in some for label in annotation_labels(one)} for some in annotations)
        annotations = [[{"category_ids": sorted(some)}] if some else [] for some in present]
    objects = list(itertools.chain(*annotations))
    labels = [annotation_labels(one) for one in objects]
    columns = (
        offsets_of(np.array([len(one) for one in annotations], dtype=np.int64)),
        offsets_of(np.array([len(one) for one in labels], dtype=np.int64)),
        np.array(list(itertools.chain(*labels)), dtype=np.int64),
        np.array([bool(one.get("iscrowd") or one.get("is_group_of")) for one in objects], dtype=bool),
    )
    return class_ids_of(source), hierarchy_of(source), columns


def _add_cooccurrence(counts: np.ndarray, columns: _Columns, hierarchy: LabelHierarchy) -> None:
    """Add the objects of each pair of classes to `counts` (K, K)."""
    # Millions of objects have few distinct label sets: pairs are formed per set and weighted by its objects.
    _, offsets, labels, is_group = columns
    num_classes = len(counts)
    sizes = np.where(is_group, 0, np.diff(offsets))
    for size in (np.flatnonzero(np.bincount(sizes)[1:]) + 1).tolist():
        first = offsets[:-1][sizes == size]
        if size == 1:
            sets, weights = np.arange(num_classes)[:, None], np.bincount(labels[first], minlength=num_classes)
        else:
            sets = np.sort(labels[first[:, None] + np.arange(size)], axis=1).astype(np.int64)
            if num_classes**size < 2**62:  # one number per set sorts much faster
                places = num_classes ** np.arange(size)
                codes, weights = np.unique(sets @ places, return_counts=True)
                sets = codes[:, None] // places % num_classes
            else:
                sets, weights = np.unique(sets, axis=0, return_counts=True)
        for begin in range(0, len(sets), _SETS_AT_ONCE):
            block = sets[begin : begin + _SETS_AT_ONCE]
            rows, classes = hierarchy.expand(np.repeat(np.arange(len(block)), size), block.ravel())
            rows, classes = np.divmod(np.unique(rows * num_classes + classes), num_classes)
            position, pairs_of = gather_rows(offsets_of(np.bincount(rows)), rows)
            keys = np.repeat(classes, np.diff(pairs_of)) * num_classes + classes[position]
            weight = np.repeat(weights[begin + rows], np.diff(pairs_of))
            counts += np.bincount(keys, weight, num_classes**2).astype(np.int64).reshape(counts.shape)


def write_statistics(path: str | os.PathLike[str], statistics: ClassStatistics) -> None:
    """Write the JSON file, atomically.

    Raises:
        DataError: it cannot be written.
    """
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "num_images": statistics.num_images}
    if statistics.hierarchy is not None:
        head["parents"] = statistics.hierarchy.to_parents()
    anchors = statistics.anchors
    if anchors is not None:
        counts = {"number": int(anchors.number), "foreground": int(anchors.foreground)}
        head["anchors"] = {**counts, "settings": dict(anchors.settings)}
    ids = statistics.class_ids
    classes = []
    for c, class_id in enumerate(ids):
        entry: dict[str, Any] = {
            "id": class_id,
            "images": int(statistics.image_counts[c]),
            "instances": int(statistics.instance_counts[c]),
        }
        if statistics.cooccurrence is not None:
            row = statistics.cooccurrence[c]
            entry["cooccurrence"] = {ids[j]: int(row[j]) for j in np.flatnonzero(row).tolist()}
        if anchors is not None:
            entry["positive_anchors"] = int(anchors.positives[c])
        classes.append(json.dumps(entry, ensure_ascii=False))
    try:
        with atomic_writer(path) as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1])
            file.write(',\n"classes": [\n' + ",\n".join(classes) + "\n]}\n")
    except (OSError, UnicodeEncodeError) as error:
        raise DataError(f"{path}: cannot be written ({error})") from None


def read_statistics(path: str | os.PathLike[str], class_ids: Sequence[str] | None = None) -> ClassStatistics:
    """Read a file that :func:`write_statistics` wrote.

    Args:
        path: of the file.
        class_ids: the K classes of the model in index order, which the file must hold; None checks nothing.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    content = read_json(Path(path), _ADVICE)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DataError(f"{path}: not a file of class statistics of version {VERSION}; {_ADVICE}")
    try:
        statistics = _parse(content)
    except DataError as error:
        raise DataError(f"{path}: {error}; {_ADVICE}") from None
    if class_ids is not None:
        check_same_classes(statistics.class_ids, class_ids, str(path), "the training data")
    return statistics


def _parse(content: Mapping[str, Any]) -> ClassStatistics:
    classes = content.get("classes")
    if not isinstance(classes, list) or not all(isinstance(one, dict) for one in classes) or not classes:
        raise DataError("'classes' is not a list of at least one class")
    ids = [one.get("id") for one in classes]
    if not all(isinstance(one, str) for one in ids) or len(set(ids)) < len(ids):
        raise DataError("'classes' has ids that are not text or that repeat")
    parents = content.get("parents")
    if parents is not None and not isinstance(parents, dict):
        raise DataError("'parents' is not an object")

    def column(key: str) -> np.ndarray:
        return np.array([_count(one.get(key), f"class {one['id']!r}: {key!r}") for one in classes])

    index = {class_id: c for c, class_id in enumerate(ids)}
    pairs = np.zeros((len(ids), len(ids)), dtype=np.int64)
    with_pairs = any("cooccurrence" in one for one in classes)
    for c, row in enumerate(one.get("cooccurrence") for one in classes if with_pairs):
        what = f"class {ids[c]!r}: 'cooccurrence'"
        if not isinstance(row, dict) or not row.keys() <= index.keys():
            raise DataError(f"{what} is not an object of class ids and counts")
        for other, count in row.items():
            pairs[c, index[other]] = _count(count, f"{what} with {other!r}")
    anchors = content.get("anchors")
    if anchors is not None or any("positive_anchors" in one for one in classes):
        if not isinstance(anchors, dict) or not isinstance(anchors.get("settings"), dict):
            raise DataError("'anchors' is not an object with 'settings', or is missing")
        foreground, number = (_count(anchors.get(k), f"'anchors': {k!r}") for k in ("foreground", "number"))
        anchors = AnchorStatistics(column("positive_anchors"), foreground, number, anchors["settings"])
    return ClassStatistics(
        tuple(ids),
        _count(content.get("num_images"), "'num_images'"),
        column("images"),
        column("instances"),
        pairs if with_pairs else None,
        anchors,
        None if parents is None else LabelHierarchy.from_json(parents, ids),
    )


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT:
        raise DataError(f"{what} is {repr(value)[:60]}, not a count >= 0")
    return value
