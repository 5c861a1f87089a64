"""How often each class occurs, with the class order that the counts hold for, and how long their tail is.

The counts are those of `AnnotationStore.image_counts` and `object_counts`, kept in a file so that training
and evaluation elsewhere need no training store. Group-of boxes count like other objects here, as they are
trained on (`INPUT.GROUP_OF`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from detectron2.data import DatasetCatalog
from typing_extensions import Self

from longtail_det2.data.class_files import (
    check_count,
    read_class_file,
    read_counts,
    read_sources,
    write_class_file,
)
from longtail_det2.data.datasets.builtin import check_registered
from longtail_det2.data.datasets.dataset import check_same_classes
from longtail_det2.data.statistics import FREQUENCY_BINS, frequency_bins
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError

FORMAT = "longtail_det2.category_statistics"
VERSION = 1
COMMAND = "scripts/category_statistics.py"
_COLUMNS = ("images", "objects", "images_expanded", "objects_expanded")


@dataclass(frozen=True, eq=False)
class CategoryStatistics:
    """Counts per class.

    Attributes:
        class_ids: K identifiers in class-index order.
        class_names: K names.
        images: (K,) int64, images with an object that is annotated with the class.
        objects: (K,) int64, objects that are annotated with the class.
        images_expanded, objects_expanded: (K,) int64, the same where an object also bears the ancestors of
            its labels.
        num_images, num_objects: of the whole data, whatever their classes.
        sources: names of the data sets or folders of the stores.
        origin: what error messages call the statistics, such as their file.
    """

    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    images: np.ndarray
    objects: np.ndarray
    images_expanded: np.ndarray
    objects_expanded: np.ndarray
    num_images: int
    num_objects: int
    sources: tuple[str, ...] = ()
    origin: str = "the category statistics"

    @classmethod
    def of_stores(cls, stores: Sequence[AnnotationStore], names: Sequence[str] | None = None) -> Self:
        """Count in annotation stores together; an image in two of them counts twice.

        Args:
            stores: at least one.
            names: what to call them; their folders if None.

        Raises:
            DataError: their classes differ.
        """
        names = check_stores(stores, names)
        return cls(
            stores[0].class_ids,
            stores[0].class_names,
            images=sum_of(store.image_counts() for store in stores),
            objects=sum_of(store.object_counts() for store in stores),
            images_expanded=sum_of(store.image_counts(expanded=True) for store in stores),
            objects_expanded=sum_of(store.object_counts(expanded=True) for store in stores),
            num_images=sum(len(store) for store in stores),
            num_objects=sum(store.num_objects for store in stores),
            sources=tuple(names),
        )

    def counts(self, of: Literal["images", "objects"] = "images", *, expanded: bool = True) -> np.ndarray:
        """(K,) int64; the default is what head, medium and tail of results are made of."""
        return getattr(self, f"{of}_expanded" if expanded else of)

    def check_classes(self, class_ids: Sequence[str], name: str) -> None:
        """The statistics must be those of the classes of `name`, such as a data set.

        Raises:
            DataError: names the first difference.
        """
        check_same_classes(self.class_ids, class_ids, self.origin, name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, atomically.

        Raises:
            DataError: it cannot be written.
        """
        head = {
            "format": FORMAT,
            "version": VERSION,
            "num_images": self.num_images,
            "num_objects": self.num_objects,
            "sources": list(self.sources),
        }
        columns = [getattr(self, name).tolist() for name in _COLUMNS]
        classes = [
            {"id": class_id, "name": name, **dict(zip(_COLUMNS, counts, strict=True))}
            for class_id, name, *counts in zip(self.class_ids, self.class_names, *columns, strict=True)
        ]
        write_class_file(path, head, classes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            DataError: names the file and what is wrong with it.
        """
        head, classes = read_class_file(path, FORMAT, VERSION, COMMAND)
        return cls(
            tuple(one["id"] for one in classes),
            tuple(one["name"] for one in classes),
            **{name: read_counts(path, classes, name) for name in _COLUMNS},
            num_images=check_count(path, "'num_images'", head.get("num_images")),
            num_objects=check_count(path, "'num_objects'", head.get("num_objects")),
            sources=read_sources(path, head),
            origin=str(Path(path)),
        )


@dataclass(frozen=True)
class LongTail:
    """How unequal the frequencies of K classes are.

    Attributes:
        counts: (K,) what was counted, per class.
        groups: (K,) int64, 0 head, 1 medium, 2 tail; see `frequency_bins`.
        num_empty: classes with count 0.
        most, least: largest and smallest count; `least` of the classes that occur. 0 if none does.
        imbalance: most / least; nan if no class occurs.
        gini: Gini coefficient over all K classes, with those that do not occur,
            sum_i sum_j |n_i - n_j| / (2 K sum_i n_i): 0 when all are equally frequent, 1 - 1/K when one
            class has everything; nan if no class occurs.
    """

    counts: np.ndarray
    groups: np.ndarray
    num_empty: int
    most: int
    least: int
    imbalance: float
    gini: float

    def group_facts(self) -> list[tuple[str, int, float]]:
        """(name, number of classes, share of all counts in [0, 1]) of head, medium and tail."""
        sizes = np.bincount(self.groups, minlength=len(FREQUENCY_BINS))
        sums = np.bincount(self.groups, weights=self.counts, minlength=len(FREQUENCY_BINS))
        shares = sums / max(float(self.counts.sum()), 1.0)
        return list(zip(FREQUENCY_BINS, sizes.tolist(), shares.tolist(), strict=True))


def long_tail(counts: np.ndarray, thresholds: Sequence[float] | None = None) -> LongTail:
    """Numbers of the long-tail curve.

    Args:
        counts: (K,) integers >= 0.
        thresholds: (low, high) of head, medium and tail as in `frequency_bins`; None for thirds.

    Raises:
        ConfigError: no counts, negative ones, or bad thresholds.
    """
    counts = np.asarray(counts)
    groups = frequency_bins(counts, thresholds)
    if len(counts) == 0:
        raise ConfigError("there are no classes, so there is no long tail")
    ascending = np.sort(counts)
    occurring = ascending[ascending > 0]
    if len(occurring) == 0:
        return LongTail(counts, groups, len(counts), 0, 0, float("nan"), float("nan"))
    weights = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return LongTail(
        counts,
        groups,
        num_empty=len(counts) - len(occurring),
        most=int(occurring[-1]),
        least=int(occurring[0]),
        imbalance=float(occurring[-1] / occurring[0]),
        gini=float(weights @ ascending / (len(counts) * ascending.sum())),
    )


def stores_of(names: str | Sequence[str]) -> list[AnnotationStore]:
    """The annotation stores of registered data sets.

    Raises:
        DataError: no name, an unknown one, an absent store, or a data set that is no annotation store.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("no data set is named, so there is nothing to count")
    stores = []
    for name in names:
        check_registered(name)
        store = getattr(DatasetCatalog.get(name), "store", None)
        if not isinstance(store, AnnotationStore):
            raise DataError(
                f"data set {name!r} is no annotation store, and counts are taken from these only; make one "
                "with scripts/prepare_coco.py, or name its file: DATASETS.STORES name=FILE.json:IMAGES"
            )
        stores.append(store)
    return stores


def category_statistics_of(names: str | Sequence[str]) -> CategoryStatistics:
    """Counts of registered data sets, together.

    Raises:
        DataError: see `stores_of`; or their classes differ.
    """
    names = [names] if isinstance(names, str) else list(names)
    return CategoryStatistics.of_stores(stores_of(names), names)


def check_stores(stores: Sequence[AnnotationStore], names: Sequence[str] | None = None) -> list[str]:
    """Counts of stores can be added where class c is the same in all of them.

    Args:
        stores: at least one.
        names: what to call them; their folders if None.

    Returns:
        The names.

    Raises:
        DataError: no store, or two with different classes.
    """
    if not stores:
        raise DataError("no annotation store is named, so there is nothing to count")
    names = [str(store.path) for store in stores] if names is None else list(names)
    for store, name in zip(stores[1:], names[1:], strict=True):
        check_same_classes(stores[0].class_ids, store.class_ids, names[0], name)
    return names


def sum_of(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Element by element sum of one or more arrays of one shape."""
    return np.sum(list(arrays), axis=0)
