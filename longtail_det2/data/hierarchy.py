"""Label hierarchies: which classes are kinds of which others.

A hierarchy is a directed acyclic graph (DAG) over K classes. Open Images writes it as a tree in which a
label with several parents is listed several times; LabelHierarchy joins the mentions. Only
"Subcategory" links mean "is a kind of": "Part" links (wheel - car) are skipped, as in the official
expansion tool of the Open Images challenge.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.data.hierarchy_io import (
    HierarchyError,
    ParsedHierarchy,
    class_parents,
    parents_first,
    read_parents,
    resolve_unlisted,
)

__all__ = ["HierarchyError", "LabelHierarchy"]

_EXPAND_CHUNK = 1 << 20
"""Pairs expanded at once: keeps the index arrays of `LabelHierarchy.expand` at a few MB."""


class LabelHierarchy:
    """The "is a kind of" relation between K classes.

    Ancestors and descendants are kept as compressed rows, so that tens of millions of pairs are expanded by
    a few array operations and 20,000 classes need no K x K matrix. Objects are immutable and pickle.

    Attributes:
        class_ids: K class identifiers in the order of the class indices.
        num_classes: K.
        parents: for each class the sorted int64 array of its direct parents.
        depth: (K,) int64, links on the longest way up to a class without parents (which has depth 0).
        leaves: sorted indices of the classes without children.
        inner: sorted indices of the classes with children.
    """

    def __init__(self, class_ids: Sequence[str], parents: Sequence[Sequence[int]]) -> None:
        """Builds the closure of the direct links.

        Args:
            class_ids: K distinct identifiers.
            parents: for each class the indices in [0, K) of its direct parents; may be empty.

        Raises:
            HierarchyError: identifiers repeat, an index is out of range, or the links form a cycle.
        """
        self.class_ids = tuple(str(class_id) for class_id in class_ids)
        self.num_classes = len(self.class_ids)
        if len(set(self.class_ids)) != self.num_classes:
            repeated = next(c for i, c in enumerate(self.class_ids) if c in self.class_ids[:i])
            raise HierarchyError(
                f"class list: {repeated!r} occurs more than once; class ids must be distinct"
            )
        if len(parents) != self.num_classes:
            raise HierarchyError(f"{self.num_classes} classes but {len(parents)} lists of parents")
        self.parents = [np.unique(np.asarray(list(above), dtype=np.int64)) for above in parents]
        for child, above in enumerate(self.parents):
            if above.size and (above[0] < 0 or above[-1] >= self.num_classes):
                raise HierarchyError(
                    f"{self.class_ids[child]!r}: parent index out of range [0, {self.num_classes})"
                )
        above_sets, self.depth = self._close()
        below_sets: list[list[int]] = [[] for _ in range(self.num_classes)]
        for child, above in enumerate(above_sets):
            for ancestor in above:
                below_sets[ancestor].append(child)
        self._up = _compress(above_sets)
        self._down = _compress(below_sets)
        has_children = np.diff(self._down[0]) > 0
        self.inner = np.flatnonzero(has_children)
        self.leaves = np.flatnonzero(~has_children)

    def _close(self) -> tuple[list[set[int]], np.ndarray]:
        """All proper ancestors of each class and its depth; the cycle in the message where there is one."""
        links = {child: [int(parent) for parent in above] for child, above in enumerate(self.parents)}
        depth = np.zeros(self.num_classes, dtype=np.int64)
        above_sets: list[set[int]] = [set() for _ in range(self.num_classes)]
        for child in parents_first(links, lambda index: self.class_ids[index]):
            for parent in links[child]:
                above_sets[child] |= above_sets[parent] | {parent}
                depth[child] = max(depth[child], depth[parent] + 1)
        return above_sets, depth

    @classmethod
    def from_json(
        cls,
        source: str | Path | Mapping[str, Any],
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
        missing: Literal["error", "root"] = "error",
    ) -> LabelHierarchy:
        """Reads a hierarchy file: an Open Images tree or a simple mapping.

        A tree node is `{"LabelName": id, "Subcategory": [nodes], "Part": [nodes]}`; the outermost node is a
        virtual root unless `class_ids` names it. A mapping is `{"child id": ["parent id", ...]}`, see
        `from_parents`.

        Args:
            source: path of a JSON file, or what such a file holds.
            class_ids: the K classes in index order.
            unlisted: what to do with labels that are not in `class_ids`: raise, or leave them out and hang
                their children below their nearest kept ancestors.
            missing: what to do with classes that a tree does not contain: raise, or give them no parents.
                (In a mapping such classes have no parents: nothing needs to be said about them.)

        Raises:
            HierarchyError: unreadable file, malformed node, unknown or missing label, or a cycle.
        """
        name = str(source) if isinstance(source, (str, Path)) else "hierarchy"
        return cls.from_parsed(read_parents(source), class_ids, unlisted, missing, name)

    @classmethod
    def from_parents(
        cls,
        parents: Mapping[str, Sequence[str]],
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
    ) -> LabelHierarchy:
        """From `{"child id": ["parent id", ...]}`; a class without an entry has no parents.

        Raises:
            HierarchyError: an id that is not in `class_ids` (unless `unlisted="contract"`) or a cycle.
        """
        parsed = ParsedHierarchy(class_parents(parents, "hierarchy"), root=None)
        return cls.from_parsed(parsed, class_ids, unlisted, "root", "hierarchy")

    @classmethod
    def flat(cls, class_ids: Sequence[str]) -> LabelHierarchy:
        """No class is a kind of another one."""
        return cls(class_ids, [()] * len(class_ids))

    @classmethod
    def from_parsed(
        cls,
        parsed: ParsedHierarchy,
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
        missing: Literal["error", "root"] = "error",
        name: str = "hierarchy",
    ) -> LabelHierarchy:
        """From the links of a file; arguments and errors as `from_json`, `name` for messages."""
        if unlisted not in ("error", "contract"):
            raise HierarchyError(f"unlisted must be 'error' or 'contract', not {unlisted!r}")
        lost = [class_id for class_id in class_ids if class_id not in parsed.parents]
        if parsed.is_tree and missing == "error" and lost:
            raise HierarchyError(
                f"{name}: {len(lost)} of {len(class_ids)} classes are not in the tree (first: {lost[0]!r}; "
                "Part links do not count); add them, or use missing='root'"
            )
        try:
            kept = resolve_unlisted(parsed, class_ids, contract=unlisted == "contract")
            index = {class_id: i for i, class_id in enumerate(class_ids)}
            return cls(class_ids, [[index[p] for p in kept.get(class_id, ())] for class_id in class_ids])
        except HierarchyError as error:
            raise HierarchyError(f"{name}: {error}") from None

    @cached_property
    def ancestors(self) -> np.ndarray:
        """(K, K) bool: [i, j] is True if and only if j is a proper ancestor of i."""
        dense = np.zeros((self.num_classes, self.num_classes), dtype=bool)
        offsets, classes = self._up
        dense[np.repeat(np.arange(self.num_classes), np.diff(offsets)), classes] = True
        return dense

    @property
    def descendants(self) -> np.ndarray:
        """(K, K) bool: [i, j] is True if and only if j is a proper descendant of i."""
        return self.ancestors.T

    @property
    def is_flat(self) -> bool:
        """True when no class has a parent."""
        return len(self._up[1]) == 0

    def ancestors_of(self, label: int) -> np.ndarray:
        """Sorted proper ancestors of one class."""
        offsets, classes = self._up
        return classes[offsets[label] : offsets[label + 1]]

    def descendants_of(self, label: int) -> np.ndarray:
        """Sorted proper descendants of one class."""
        offsets, classes = self._down
        return classes[offsets[label] : offsets[label + 1]]

    def to_parents(self) -> dict[str, list[str]]:
        """`{"child id": ["parent id", ...]}` of the classes that have parents; `from_parents` reads it."""
        names = self.class_ids
        return {names[i]: [names[p] for p in above] for i, above in enumerate(self.parents) if len(above)}

    def expand(self, rows: np.ndarray, classes: np.ndarray, up: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Repeats each (row, class) pair for every proper ancestor of its class.

        This is the official expansion of boxes and verified-present image labels; with `up=False` it goes to
        the descendants, as for verified-absent image labels. Nothing is de-duplicated: a row labelled with a
        class and its parent gets the parent twice.

        Args:
            rows: (n,) values of any type, such as box or image numbers.
            classes: (n,) integers in [0, K).
            up: towards the ancestors (True) or the descendants.

        Returns:
            Arrays (m,) with m >= n and the input types (int64 classes if theirs cannot hold K - 1); each
            input pair stands first, then its expansion in the order of class indices.

        Raises:
            HierarchyError: a class is out of range or the lengths differ.
        """
        rows, classes = np.asarray(rows), self._as_classes(classes)
        if rows.shape != classes.shape or rows.ndim != 1:
            raise HierarchyError(f"rows {rows.shape} and classes {classes.shape} must be 1-D of one length")
        offsets, targets = self._up if up else self._down
        if len(targets) == 0:
            return rows.copy(), classes.copy()
        copies = np.diff(offsets) + 1
        total = int(np.bincount(classes, minlength=self.num_classes) @ copies)
        out_rows = np.empty(total, dtype=rows.dtype)
        out_classes = np.empty(total, dtype=classes.dtype)
        # Prefixing each list with its own class makes the pair and its expansion one run.
        runs = np.insert(targets, offsets[:-1], np.arange(self.num_classes)).astype(classes.dtype)
        run_starts = offsets[:-1] + np.arange(self.num_classes)
        done = 0
        for start in range(0, len(classes), _EXPAND_CHUNK):
            chunk = classes[start : start + _EXPAND_CHUNK]
            counts = copies[chunk]
            stop = done + int(counts.sum())
            shift = run_starts[chunk] - (np.cumsum(counts) - counts)
            out_rows[done:stop] = np.repeat(rows[start : start + _EXPAND_CHUNK], counts)
            out_classes[done:stop] = runs[np.repeat(shift, counts) + np.arange(stop - done)]
            done = stop
        return out_rows, out_classes

    def most_specific(self, labels: Sequence[int]) -> int:
        """The deepest of an object's labels (of several, the one with the lowest index).

        It has no descendant among `labels`, because a descendant is always deeper.

        Raises:
            HierarchyError: `labels` is empty.
        """
        if len(labels) == 0:
            raise HierarchyError("an object without labels has no most specific label")
        return min((int(label) for label in labels), key=lambda label: (-self.depth[label], label))

    def encode(
        self,
        labels: Sequence[Sequence[int]] | tuple[np.ndarray, np.ndarray],
        ignore_descendants: bool = True,
    ) -> np.ndarray:
        """Training truth of N objects.

        Positive (1): the annotated labels and their ancestors. Ignored (-1): the descendants of the most
        specific annotated labels (those without an annotated descendant), because an object that is only
        known to be an animal may well be a dog. Negative (0): everything else.

        Args:
            labels: a label list per object, or `(offsets, flat)` with the labels of object n in
                `flat[offsets[n]:offsets[n + 1]]`.
            ignore_descendants: False makes these descendants negative.

        Returns:
            (N, K) int8.
        """
        if isinstance(labels, tuple) and len(labels) == 2 and isinstance(labels[0], np.ndarray):
            offsets, flat = labels[0], np.asarray(labels[1], dtype=np.int64)
            counts = np.diff(offsets)
        else:
            counts = np.array([len(one) for one in labels], dtype=np.int64)
            flat = np.array(list(itertools.chain.from_iterable(labels)), dtype=np.int64)
        flat = self._as_classes(flat)
        truth = np.zeros((len(counts), self.num_classes), dtype=np.int8)
        rows = np.repeat(np.arange(len(counts)), counts)
        if not self.is_flat:
            up_rows, up_classes = _gather(self._up, rows, flat)
            truth[up_rows, up_classes] = 1  # so far only the proper ancestors
            if ignore_descendants:
                specific = truth[rows, flat] == 0
                down = _gather(self._down, rows[specific], flat[specific])
                truth[down] = -1
        truth[rows, flat] = 1
        return truth

    def encode_image_labels(self, positive: Sequence[int], negative: Sequence[int]) -> np.ndarray:
        """Verified image-level labels with their expansion.

        What is present makes its ancestors present; what is absent makes its descendants absent. A class
        that is both (contradicting annotations) counts as present.

        Returns:
            (K,) int8: 1 verified present, 0 verified absent, -1 unverified.
        """
        verified = np.full(self.num_classes, -1, dtype=np.int8)
        for labels, table, value in ((negative, self._down, 0), (positive, self._up, 1)):
            flat = self._as_classes(labels)
            verified[_gather(table, flat, flat)[1]] = value
            verified[flat] = value
        return verified

    def _as_classes(self, values: Sequence[int] | np.ndarray) -> np.ndarray:
        """Class indices as an integer array whose type can hold every class index."""
        classes = np.asarray(values)
        if classes.dtype.kind not in "iu":
            if classes.size:
                raise HierarchyError(f"class indices must be integers, got {classes.dtype}")
            classes = classes.astype(np.int64)
        if classes.size and (int(classes.min()) < 0 or int(classes.max()) >= self.num_classes):
            wrong = int(classes.min()) if int(classes.min()) < 0 else int(classes.max())
            raise HierarchyError(f"class index {wrong} is outside [0, {self.num_classes})")
        if np.iinfo(classes.dtype).max < self.num_classes - 1:
            classes = classes.astype(np.int64)
        return classes

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the K x K matrix out: it is cheaper to make again than to send to a worker."""
        return {name: value for name, value in self.__dict__.items() if name != "ancestors"}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelHierarchy):
            return NotImplemented
        return self.class_ids == other.class_ids and all(
            np.array_equal(a, b) for a, b in zip(self.parents, other.parents, strict=True)
        )

    def __hash__(self) -> int:
        return hash(self.class_ids)

    def __repr__(self) -> str:
        return (
            f"LabelHierarchy({self.num_classes} classes, {len(self.leaves)} leaves, {len(self.inner)} inner)"
        )


def _compress(lists: Sequence[Sequence[int] | set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(offsets (K + 1,), sorted values) of K lists, int64."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return offsets, np.array([v for one in lists for v in sorted(one)], dtype=np.int64)


def _gather(
    table: tuple[np.ndarray, np.ndarray], rows: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(row, related class) for each related class of each pair; the pairs themselves are left out."""
    offsets, values = table
    starts = offsets[classes]
    counts = offsets[classes + 1] - starts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    positions = np.repeat(starts - ends + counts, counts) + np.arange(total)
    return np.repeat(rows, counts), values[positions]
