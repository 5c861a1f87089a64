r"""Concurrent rates: how often an object of one class bears another class, too (Peng et al., CVPR 2020).

The direction is always r_ij = P(j | i), row given: the share of the objects of class i that also bear j,

    r_ij = n_ij / n_i   (0 where n_i = 0),   r_ii = 0,

with n_i and n_ij of `longtail_det2.data.concurrent_counts`. Three kinds of evidence count, each optional:

- explicit co-labels: what is annotated on one object ("merged boxes" of the paper);
- the hierarchy: an object bears the ancestors of its labels, so r(child, ancestor) = 1 by definition, also
  for classes without objects, and r(parent, child) is the share of the parent's objects that are the child;
- implicit co-existence: an object of class i that overlaps an object which bears j, with at least a given
  IoU, counts as bearing j. The paper's threshold is not known; 0.5 is what makes a region match a box.

No source settles which direction the method's formula wants; `ConcurrentRates.read` offers the transposed
reading and the maximum of both.

Group-of boxes are left out unless asked for: two labels on a group say that members of both kinds are in it,
not that one object is both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import Self

from longtail_det2.data.category_statistics import COMMAND, check_stores, stores_of, sum_of
from longtail_det2.data.class_files import (
    read_class_file,
    read_counts,
    read_sources,
    shorten,
    write_class_file,
)
from longtail_det2.data.concurrent_counts import count_concurrent
from longtail_det2.data.datasets.dataset import check_same_classes
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError

FORMAT = "longtail_det2.concurrent_rates"
VERSION = 1
DIRECTION = "given_row"
"""The only direction of files: `rates` of class i holds P(j | i)."""
DIRECTIONS = ("given_row", "given_column", "maximum")
_MEANING = "classes[i].rates[j] = P(j | i): the share of the objects of class i that also bear class j"

Direction = Literal["given_row", "given_column", "maximum"]


@dataclass(frozen=True)
class RateOptions:
    """What counts as evidence that an object of class i is also of class j.

    Attributes:
        explicit: several labels of one object.
        hierarchy: ancestors of a label.
        implicit_iou: least IoU, in (0, 1], of two objects that lend each other their classes; None for never.
        group_of: "drop" leaves group-of boxes out, "keep" counts them like single objects (a group and a
            single object never overlap in the sense of `implicit_iou`).
    """

    explicit: bool = True
    hierarchy: bool = True
    implicit_iou: float | None = None
    group_of: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
        if self.implicit_iou is not None and not 0 < self.implicit_iou <= 1:
            raise ConfigError(
                f"implicit_iou must be in (0, 1], got {self.implicit_iou}; None counts no overlaps"
            )
        if self.group_of not in ("drop", "keep"):
            raise ConfigError(f"group_of must be 'drop' or 'keep', not {self.group_of!r}")
        if not self.explicit and not self.hierarchy and self.implicit_iou is None:
            raise ConfigError(
                "concurrent rates without explicit co-labels, hierarchy and overlaps would all be 0: count "
                "one of them, or use a loss without rates"
            )


@dataclass(frozen=True, eq=False)
class ConcurrentRates:
    """Rates of K classes.

    Attributes:
        rates: (K, K) float64, r[i, j] = P(j | i) in [0, 1]; the diagonal is 0.
        class_ids: K identifiers in class-index order.
        class_names: K names; the identifiers if none are given.
        objects: (K,) int64 objects that the rates of a row were counted in; zeros if unknown.
        options: what was counted, see `RateOptions`; empty if unknown.
        sources: names of the data sets or folders of the stores.
        origin: what error messages call the rates, such as their file.
    """

    rates: np.ndarray
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    objects: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    origin: str = "the concurrent rates"

    def __post_init__(self) -> None:
        """Fills in what was not given.

        Raises:
            DataError: rates that are not (K, K), not finite, outside [0, 1] or not 0 on the diagonal; or
                names or counts of another number of classes.
        """
        ids = tuple(self.class_ids)
        rates = np.array(self.rates, dtype=np.float64)
        if rates.shape != (len(ids), len(ids)):
            raise DataError(
                f"{self.origin}: rates have shape {rates.shape}, but {len(ids)} classes need a square of "
                f"({len(ids)}, {len(ids)})"
            )
        wrong = np.argwhere(~((rates >= 0) & (rates <= 1)))  # NaN is neither
        if len(wrong):
            i, j = wrong[0]
            raise DataError(
                f"{self.origin}: the rate of {ids[j]!r} given {ids[i]!r} is {rates[i, j]}, not in [0, 1]"
            )
        if rates.diagonal().any():
            own = ids[int(np.flatnonzero(rates.diagonal())[0])]
            raise DataError(
                f"{self.origin}: {own!r} has a rate with itself; the diagonal must be 0, as no class stands "
                "in its own way"
            )
        names = tuple(self.class_names) or ids
        objects = np.array(self.objects if len(self.objects) else np.zeros(len(ids)), dtype=np.int64)
        if len(names) != len(ids) or objects.shape != (len(ids),):
            raise DataError(
                f"{self.origin}: {len(ids)} classes, but {len(names)} names, {len(objects)} counts"
            )
        rates.setflags(write=False)
        for name, value in (
            ("class_ids", ids),
            ("class_names", names),
            ("rates", rates),
            ("objects", objects),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of_stores(
        cls,
        stores: Sequence[AnnotationStore],
        options: RateOptions | None = None,
        names: Sequence[str] | None = None,
    ) -> Self:
        """Count in annotation stores together.

        Args:
            stores: at least one.
            options: what counts; the defaults of `RateOptions` if None.
            names: what to call the stores; their folders if None.

        Raises:
            DataError: classes, or hierarchies that are to be used, differ.
        """
        options = options or RateOptions()
        names = check_stores(stores, names)
        hierarchy = stores[0].hierarchy if options.hierarchy else LabelHierarchy.flat(stores[0].class_ids)
        for store, name in zip(stores, names, strict=True):
            if options.hierarchy and store.hierarchy != hierarchy:
                raise DataError(
                    f"{names[0]} and {name} have different hierarchies: prepare them with the same one, or "
                    "count without it"
                )
        counts = [
            count_concurrent(
                store,
                explicit=options.explicit,
                hierarchy=hierarchy,
                implicit_iou=options.implicit_iou,
                with_groups=options.group_of == "keep",
            )
            for store in stores
        ]
        objects, pairs = sum_of(one for one, _ in counts), sum_of(one for _, one in counts)
        rates = pairs / np.maximum(objects, 1)[:, None]
        if options.hierarchy:
            rates[hierarchy.ancestors] = 1.0
        return cls(
            rates, stores[0].class_ids, stores[0].class_names, objects, asdict(options), sources=tuple(names)
        )

    def read(self, direction: Direction = "given_row") -> np.ndarray:
        """The rates as one reading of the method wants them.

        Args:
            direction: "given_row": [i, j] = P(j | i); "given_column": [i, j] = P(i | j), transposed;
                "maximum": the greater of both, symmetric.

        Returns:
            (K, K) float32.

        Raises:
            ConfigError: another direction.
        """
        if direction not in DIRECTIONS:
            raise ConfigError(f"direction {direction!r} is none of {', '.join(DIRECTIONS)}")
        rates = self.rates.astype(np.float32)
        if direction == "given_row":
            return rates
        return rates.T.copy() if direction == "given_column" else np.maximum(rates, rates.T)

    def check_classes(self, class_ids: Sequence[str], name: str) -> None:
        """The rates must be those of the classes of `name`, such as a data set.

        Raises:
            DataError: names the first difference.
        """
        check_same_classes(self.class_ids, class_ids, self.origin, name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, atomically: rates above 0 by class id, the highest first.

        Raises:
            DataError: it cannot be written.
        """
        head = {
            "format": FORMAT,
            "version": VERSION,
            "direction": DIRECTION,
            "meaning": _MEANING,
            "options": dict(self.options),
            "sources": list(self.sources),
        }
        classes = []
        for place, row in enumerate(self.rates):
            others = np.argsort(-row, kind="stable")[: np.count_nonzero(row)].tolist()
            classes.append(
                {
                    "id": self.class_ids[place],
                    "name": self.class_names[place],
                    "objects": int(self.objects[place]),
                    "rates": {self.class_ids[j]: float(row[j]) for j in others},
                }
            )
        write_class_file(path, head, classes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            DataError: names the file and what is wrong with it.
        """
        head, classes = read_class_file(path, FORMAT, VERSION, COMMAND)
        if head.get("direction") != DIRECTION:
            raise DataError(
                f"{path}: direction {shorten(head.get('direction'))} is not {DIRECTION!r} ({_MEANING}): turn "
                "the rates round, and choose the reading where they are used"
            )
        options = head.get("options", {})
        if not isinstance(options, dict):
            raise DataError(f"{path}: 'options' is not an object")
        ids = tuple(one["id"] for one in classes)
        index = {class_id: place for place, class_id in enumerate(ids)}
        rates = np.zeros((len(ids), len(ids)))
        for place, one in enumerate(classes):
            others, values = _row(path, one, index)
            rates[place, others] = values
        return cls(
            rates,
            ids,
            tuple(one["name"] for one in classes),
            read_counts(path, classes, "objects"),
            options,
            read_sources(path, head),
            str(Path(path)),
        )


def concurrent_rates_of(names: str | Sequence[str], options: RateOptions | None = None) -> ConcurrentRates:
    """Rates of registered data sets, together.

    Args:
        names: data sets that are annotation stores, with equal class lists.
        options: what counts; the defaults of `RateOptions` if None.

    Raises:
        DataError: an unknown name, an absent store, no store, or different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    return ConcurrentRates.of_stores(stores_of(names), options, names)


def _row(
    path: str | os.PathLike[str], one: Mapping[str, Any], index: Mapping[str, int]
) -> tuple[list[int], list[float]]:
    """Class indices and values of one class's rates in a file."""
    rates = one.get("rates")
    if not isinstance(rates, dict):
        raise DataError(f"{path}: class {one['id']!r} has no 'rates' {{class id: rate}}")
    unknown = next((other for other in rates if other not in index), None)
    if unknown is not None:
        raise DataError(
            f"{path}: class {one['id']!r} has a rate of {unknown!r}, which is no class of the file"
        )
    for other, value in rates.items():
        # Compared here, as a number that is too large for a float would not even reach the matrix.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise DataError(
                f"{path}: the rate of {other!r} given {one['id']!r} is {shorten(value)}, no number in [0, 1]"
            )
    return [index[other] for other in rates], list(rates.values())
