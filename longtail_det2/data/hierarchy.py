"""Label hierarchies: which classes are kinds of which others.

A hierarchy is a directed acyclic graph over K classes. Open Images writes it as a tree in which a label with
several parents is listed several times. Only "Subcategory" links mean "is a kind of": "Part" links (wheel -
car) are skipped, as in the official expansion tool of the Open Images challenge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json
from longtail_det2.utils.ragged import gather_rows, offsets_of
from longtail_det2.utils.wording import printable

_EXPAND_CHUNK = 1 << 20  # pairs expanded at once, to bound the memory


class HierarchyError(DataError):
    """A label hierarchy that cannot be used: malformed, cyclic, or not fitting the class list."""


class ParsedHierarchy(NamedTuple):
    """Direct links of a hierarchy file."""

    parents: dict[str, list[str]]  # of each label of the file, in the order of first mention
    root: str | None  # label of the outermost node of an Open Images tree; None for a mapping
    name: str  # what messages call the file


class LabelHierarchy:
    """The "is a kind of" relation between K classes.

    Ancestors and descendants are kept as ragged rows, so that tens of millions of pairs are expanded by few
    array operations and 20,000 classes need no K x K matrix.

    Attributes:
        class_ids: K class identifiers in the order of the class indices.
        num_classes: K.
        parents: for each class the sorted int64 array of its direct parents.
        depth: (K,) int64, links on the longest path up to a class without parents (which has depth 0); the
            deeper class is the more specific one.
        leaves: sorted indices of the classes without children.
        inner: sorted indices of the classes with children.
    """

    def __init__(self, class_ids: Sequence[str], parents: Sequence[Iterable[int]]) -> None:
        """Build the closure of the direct links: for each class the indices in [0, K) of its parents.

        Raises:
            HierarchyError: `class_ids` repeat, or the links form a cycle.
        """
        self.class_ids = tuple(map(str, class_ids))
        self.num_classes = len(self.class_ids)
        index = {class_id: i for i, class_id in enumerate(self.class_ids)}
        if len(index) != self.num_classes:
            repeated = next(c for i, c in enumerate(self.class_ids) if c in self.class_ids[:i])
            raise HierarchyError(f"class list: {repeated!r} occurs more than once; ids must be distinct")
        self.parents = [np.unique(np.array(list(above), dtype=np.int64)) for above in parents]
        self.depth = np.zeros(self.num_classes, dtype=np.int64)
        above = list(self.parents)  # of each class; becomes all its proper ancestors, sorted
        for child in map(index.__getitem__, _parents_first(self.to_parents())):
            if (direct := self.parents[child]).size:
                above[child] = np.unique(np.concatenate([direct, *(above[parent] for parent in direct)]))
                self.depth[child] = self.depth[direct].max() + 1
        counts = np.array([len(one) for one in above], dtype=np.int64)
        classes = np.concatenate([np.empty(0, np.int64), *above])
        self._up = offsets_of(counts), classes
        children = np.repeat(np.arange(self.num_classes), counts)[np.argsort(classes, kind="stable")]
        num_below = np.bincount(classes, minlength=self.num_classes)
        self._down = offsets_of(num_below), children
        self.inner = np.flatnonzero(num_below)
        self.leaves = np.flatnonzero(num_below == 0)

    @classmethod
    def from_json(
        cls,
        source: str | Path | Mapping[str, Any] | ParsedHierarchy,
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
    ) -> LabelHierarchy:
        """Read a hierarchy file: an Open Images tree or a mapping, see `read_parents`.

        The outermost node of a tree is left out unless `class_ids` names it. Classes that a mapping does not
        contain have no parents.

        Args:
            source: path of a JSON file, or what such a file holds, or its links.
            class_ids: the K classes in index order.
            unlisted: raise for labels that are not in `class_ids`, or leave them out and hang their children
                below their nearest kept ancestors.

        Raises:
            HierarchyError: unreadable or malformed file, unknown label, a class outside the tree, or a cycle.
        """
        links, root, name = source if isinstance(source, ParsedHierarchy) else read_parents(source)
        index = {class_id: i for i, class_id in enumerate(class_ids)}
        lost = [class_id for class_id in class_ids if class_id not in links]
        if lost and root is not None:
            raise HierarchyError(
                f"{name}: {len(lost)} of {len(class_ids)} classes are not in the tree (first: {lost[0]!r}; "
                "Part links do not count); add them, or correct the class list"
            )
        unknown = [label for label in links if label not in index and label != root]
        if unknown and unlisted == "error":
            raise HierarchyError(
                f"{name}: {len(unknown)} labels are not in the class list (first: {unknown[0]!r}); correct "
                "the class list, or use unlisted='contract' to leave them out"
            )
        try:
            nearest: dict[str, set[int]] = {}  # of each label: its parents, or the kept ancestors next to it
            for label in _parents_first(links):
                kept = ({index[p]} if p in index else nearest[p] for p in links[label])
                nearest[label] = set().union(*kept)
            return cls(class_ids, [nearest.get(class_id, ()) for class_id in class_ids])
        except HierarchyError as error:
            raise HierarchyError(f"{name}: {error}") from None

    @classmethod
    def flat(cls, class_ids: Sequence[str]) -> LabelHierarchy:
        """Hierarchy in which no class is a kind of another one."""
        return cls(class_ids, [()] * len(class_ids))

    @property
    def ancestors(self) -> np.ndarray:
        """(K, K) bool, made at each call: [i, j] is True if and only if j is a proper ancestor of i."""
        dense = np.zeros((self.num_classes, self.num_classes), dtype=bool)
        offsets, classes = self._up
        dense[np.repeat(np.arange(self.num_classes), np.diff(offsets)), classes] = True
        return dense

    @property
    def is_flat(self) -> bool:
        """True when no class has a parent."""
        return len(self._up[1]) == 0

    def ancestors_of(self, label: int) -> np.ndarray:
        """Sorted proper ancestors of one class."""
        offsets, classes = self._up
        return classes[offsets[label] : offsets[label + 1]]

    def to_parents(self) -> dict[str, list[str]]:
        """`{"child id": ["parent id", ...]}` of the classes that have parents; `from_json` reads it."""
        names = self.class_ids
        return {names[i]: [names[p] for p in above] for i, above in enumerate(self.parents) if len(above)}

    def specificity_order(self, labels: np.ndarray) -> np.ndarray:
        """Place of each class (K,) from the most specific one: deeper, then rarer in `labels`, then lower."""
        place = np.empty(self.num_classes, dtype=np.int64)
        counts = np.bincount(labels, minlength=self.num_classes)
        place[np.lexsort((counts, -self.depth))] = np.arange(self.num_classes)
        return place

    def expand(self, rows: np.ndarray, classes: np.ndarray, up: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Repeat each (row, class) pair for every proper ancestor of its class.

        This is the official expansion of boxes and verified-present image labels, and with `up=False` of
        verified-absent ones. Nothing is de-duplicated: a class and its parent in a row give the parent twice.

        Args:
            rows: (n,) values of any type, such as box or image numbers.
            classes: (n,) integers in [0, K).
            up: towards the ancestors (True) or the descendants.

        Returns:
            Arrays (m,) with m >= n and the input types (int64 classes if theirs cannot hold K - 1); each
            input pair stands first, then its expansion in the order of class indices.

        Raises:
            HierarchyError: a class is out of range.
        """
        classes = self._check(classes)
        offsets, targets = self._up if up else self._down
        if len(targets) == 0:
            return rows.copy(), classes.copy()
        # With its own class in front of each list, a pair and its expansion are one row.
        targets = np.insert(targets, offsets[:-1], np.arange(self.num_classes)).astype(classes.dtype)
        offsets = offsets + np.arange(self.num_classes + 1)
        total = int(np.bincount(classes, minlength=self.num_classes) @ np.diff(offsets))
        out_rows, out_classes = np.empty(total, dtype=rows.dtype), np.empty(total, dtype=classes.dtype)
        done = 0
        for start in range(0, len(classes), _EXPAND_CHUNK):
            part = slice(start, start + _EXPAND_CHUNK)
            expanded = _related((offsets, targets), rows[part], classes[part])
            stop = done + len(expanded[0])
            out_rows[done:stop], out_classes[done:stop] = expanded
            done = stop
        return out_rows, out_classes

    def encode(self, labels: Sequence[Sequence[int]], ignore_descendants: bool = True) -> np.ndarray:
        """Training targets of N objects.

        Positive (1): the annotated labels and their ancestors. Ignored (-1): the descendants of the most
        specific annotated labels (those without an annotated descendant), because an object that is only
        known to be an animal may well be a dog. Negative (0): everything else.

        Args:
            labels: a list of class indices per object.
            ignore_descendants: False makes these descendants negative.

        Returns:
            (N, K) int8.
        """
        counts = np.array([len(one) for one in labels], dtype=np.int64)
        flat = self._check(np.array(list(itertools.chain.from_iterable(labels)), dtype=np.int64))
        truth = np.zeros((len(counts), self.num_classes), dtype=np.int8)
        rows = np.repeat(np.arange(len(counts)), counts)
        if not self.is_flat:
            truth[_related(self._up, rows, flat)] = 1  # so far only the proper ancestors
            if ignore_descendants:
                specific = truth[rows, flat] == 0
                truth[_related(self._down, rows[specific], flat[specific])] = -1
        truth[rows, flat] = 1
        return truth

    def _check(self, classes: np.ndarray) -> np.ndarray:
        """Class indices in [0, K), in a type that can hold every class index."""
        if classes.size and (classes.min() < 0 or classes.max() >= self.num_classes):
            wrong = classes[(classes < 0) | (classes >= self.num_classes)][0]
            raise HierarchyError(f"class index {wrong} is outside [0, {self.num_classes})")
        is_wide = np.iinfo(classes.dtype).max >= self.num_classes - 1
        return classes if is_wide else classes.astype(np.int64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelHierarchy):
            return NotImplemented
        return self.class_ids == other.class_ids and self.to_parents() == other.to_parents()


def _parents_first(links: Mapping[str, Sequence[str]]) -> list[str]:
    """All labels of direct links, parents before their children; a cycle is an error that prints its path."""
    try:
        return list(TopologicalSorter(links).static_order())
    except CycleError as error:
        path = " -> ".join(map(printable, error.args[1][::-1]))
        raise HierarchyError(f"cycle (child -> parent): {path}") from None


def read_parents(source: str | Path | Mapping[str, Any]) -> ParsedHierarchy:
    """Read an Open Images tree or a `{"child id": ["parent id", ...]}` mapping.

    Args:
        source: path of a JSON file, or what such a file holds. It is a tree if "LabelName" is a text; nodes
            are `{"LabelName": id, "Subcategory": [nodes], "Part": [nodes]}`.

    Raises:
        HierarchyError: the file is absent or not JSON, or its content has neither form.
    """
    name, content = "hierarchy", source
    if isinstance(source, (str, Path)):
        name, content = str(source), read_json(Path(source), error=HierarchyError)
    if not isinstance(content, Mapping):
        raise HierarchyError(
            f"{name}: expected a JSON object (an Open Images tree with 'LabelName' and 'Subcategory', or "
            f"{{'child id': ['parent id', ...]}}), got {type(content).__name__}"
        )
    if isinstance(content.get("LabelName"), str):
        return _walk_tree(content, name)
    parents: dict[str, list[str]] = {}
    for child, above in content.items():
        names = [above] if isinstance(above, str) else above
        if not isinstance(names, (list, tuple)) or not all(isinstance(p, str) for p in names):
            raise HierarchyError(f"{name}: parents of {child!r} must be a list of class ids, got {above!r}")
        parents.setdefault(child, []).extend(names)
        for parent in names:
            parents.setdefault(parent, [])
    return ParsedHierarchy(parents, None, name)


def _walk_tree(tree: Mapping[str, Any], name: str) -> ParsedHierarchy:
    """Join all mentions of a label; anything below a Part link is skipped."""
    parents: dict[str, list[str]] = {}
    pending: list[tuple[object, str | None]] = [(tree, None)]
    while pending:
        node, above = pending.pop()
        label = node.get("LabelName") if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping) or not isinstance(label, str):
            raise HierarchyError(f"{name}: node below {above!r} has no 'LabelName' string: {str(node)[:80]}")
        known = parents.setdefault(label, [])
        if above is not None and above not in known:
            known.append(above)
        children = node.get("Subcategory", [])
        if not isinstance(children, list):
            raise HierarchyError(f"{name}: 'Subcategory' of {label!r} must be a list of nodes")
        pending.extend((child, label) for child in reversed(children))
    return ParsedHierarchy(parents, str(tree["LabelName"]), name)


def _related(
    table: tuple[np.ndarray, np.ndarray], rows: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(row, related class) for each class that the table relates to the class of each pair."""
    positions, offsets = gather_rows(table[0], classes)
    return np.repeat(rows, np.diff(offsets)), table[1][positions]
