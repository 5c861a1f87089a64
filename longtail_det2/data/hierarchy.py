"""Label hierarchies: which classes are kinds of which others.

A hierarchy is a directed acyclic graph (DAG) over K classes. Open Images writes it as a tree in which a
label with several parents is listed several times; LabelHierarchy joins the mentions. Only
"Subcategory" links mean "is a kind of": "Part" links (wheel - car) are skipped, as in the official
expansion tool of the Open Images challenge.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json
from longtail_det2.utils.ragged import gather_rows, offsets_of
from longtail_det2.utils.wording import printable

_EXPAND_CHUNK = 1 << 20  # pairs expanded at once, to bound the memory


class HierarchyError(DataError):
    """A label hierarchy that cannot be used: malformed, cyclic, or not fitting the class list."""


@dataclass(frozen=True)
class ParsedHierarchy:
    """Direct links of a hierarchy file.

    Attributes:
        parents: each label of the file with its direct parents, in the order of first mention.
        root: label of the outermost node of an Open Images tree; None for a mapping.
        name: what messages call the file.
    """

    parents: dict[str, list[str]]
    root: str | None = None
    name: str = "hierarchy"


class LabelHierarchy:
    """The "is a kind of" relation between K classes.

    Ancestors and descendants are kept as ragged rows, so that tens of millions of pairs are expanded by few
    array operations and 20,000 classes need no K x K matrix. Objects are immutable and can be pickled.

    Attributes:
        class_ids: K class identifiers in the order of the class indices.
        num_classes: K.
        parents: for each class the sorted int64 array of its direct parents.
        depth: (K,) int64, links on the longest path up to a class without parents (which has depth 0); the
            deeper class is the more specific one.
        leaves: sorted indices of the classes without children.
        inner: sorted indices of the classes with children.
    """

    def __init__(self, class_ids: Sequence[str], parents: Sequence[Sequence[int]]) -> None:
        """Build the closure of the direct links.

        Args:
            class_ids: K distinct identifiers.
            parents: for each class the indices in [0, K) of its direct parents; may be empty.

        Raises:
            HierarchyError: identifiers repeat, an index is out of range, or the links form a cycle.
        """
        self.class_ids = tuple(map(str, class_ids))
        self.num_classes = len(self.class_ids)
        if len(set(self.class_ids)) != self.num_classes:
            repeated = next(c for i, c in enumerate(self.class_ids) if c in self.class_ids[:i])
            raise HierarchyError(f"class list: {repeated!r} occurs more than once; ids must be distinct")
        if len(parents) != self.num_classes:
            raise HierarchyError(f"{self.num_classes} classes but {len(parents)} lists of parents")
        self.parents = [np.unique(np.asarray(list(above), dtype=np.int64)) for above in parents]
        for child, above in enumerate(self.parents):
            if above.size and (above[0] < 0 or above[-1] >= self.num_classes):
                raise HierarchyError(
                    f"{self.class_ids[child]!r}: parent index out of range [0, {self.num_classes})"
                )
        above, self.depth = self._close()
        counts = np.array([len(one) for one in above], dtype=np.int64)
        classes = np.concatenate([np.empty(0, np.int64), *above])
        self._up = offsets_of(counts), classes
        children = np.repeat(np.arange(self.num_classes), counts)[np.argsort(classes, kind="stable")]
        num_below = np.bincount(classes, minlength=self.num_classes)
        self._down = offsets_of(num_below), children
        self.inner = np.flatnonzero(num_below)
        self.leaves = np.flatnonzero(num_below == 0)

    def _close(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Sorted proper ancestors of each class, and its depth."""
        links = {child: above.tolist() for child, above in enumerate(self.parents)}
        depth = np.zeros(self.num_classes, dtype=np.int64)
        closed = list(self.parents)
        for child in parents_first(links, self.class_ids):
            if direct := links[child]:
                closed[child] = np.unique(np.concatenate([self.parents[child], *(closed[p] for p in direct)]))
                depth[child] = depth[direct].max() + 1
        return closed, depth

    @classmethod
    def from_json(
        cls,
        source: str | Path | Mapping[str, Any] | ParsedHierarchy,
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
        missing: Literal["error", "root"] = "error",
    ) -> LabelHierarchy:
        """Read a hierarchy file: an Open Images tree or a simple mapping.

        A tree node is `{"LabelName": id, "Subcategory": [nodes], "Part": [nodes]}`; the outermost node is a
        virtual root unless `class_ids` names it. A mapping is `{"child id": ["parent id", ...]}`.

        Args:
            source: path of a JSON file, or what such a file holds, or its links.
            class_ids: the K classes in index order.
            unlisted: what to do with labels that are not in `class_ids`: raise, or leave them out and hang
                their children below their nearest kept ancestors.
            missing: what to do with classes that a tree does not contain: raise, or give them no parents (as
                those have that a mapping does not contain).

        Raises:
            HierarchyError: unreadable file, malformed node, unknown or missing label, or a cycle.
        """
        parsed = source if isinstance(source, ParsedHierarchy) else read_parents(source)
        if unlisted not in ("error", "contract"):
            raise HierarchyError(f"unlisted must be 'error' or 'contract', not {unlisted!r}")
        lost = [class_id for class_id in class_ids if class_id not in parsed.parents]
        if lost and parsed.root is not None and missing == "error":
            raise HierarchyError(
                f"{parsed.name}: {len(lost)} of {len(class_ids)} classes are not in the tree (first: "
                f"{lost[0]!r}; Part links do not count); add them, or use missing='root'"
            )
        try:
            kept = _resolve_unlisted(parsed, class_ids, contract=unlisted == "contract")
            index = {class_id: i for i, class_id in enumerate(class_ids)}
            return cls(class_ids, [[index[p] for p in kept.get(class_id, ())] for class_id in class_ids])
        except HierarchyError as error:
            raise HierarchyError(f"{parsed.name}: {error}") from None

    @classmethod
    def from_parents(
        cls,
        parents: Mapping[str, Sequence[str]],
        class_ids: Sequence[str],
        unlisted: Literal["error", "contract"] = "error",
    ) -> LabelHierarchy:
        """Build from `{"child id": ["parent id", ...]}`; arguments and errors as `from_json`."""
        return cls.from_json(ParsedHierarchy(_check_links(parents, "hierarchy")), class_ids, unlisted)

    @classmethod
    def flat(cls, class_ids: Sequence[str]) -> LabelHierarchy:
        """Hierarchy in which no class is a kind of another one."""
        return cls(class_ids, [()] * len(class_ids))

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

    def to_parents(self) -> dict[str, list[str]]:
        """`{"child id": ["parent id", ...]}` of the classes that have parents; `from_parents` reads it."""
        names = self.class_ids
        return {names[i]: [names[p] for p in above] for i, above in enumerate(self.parents) if len(above)}

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
            HierarchyError: a class is out of range or the lengths differ.
        """
        rows, classes = np.asarray(rows), self._as_classes(classes)
        if rows.shape != classes.shape or rows.ndim != 1:
            raise HierarchyError(f"rows {rows.shape} and classes {classes.shape} must be 1-D of one length")
        offsets, targets = self._up if up else self._down
        if len(targets) == 0:
            return rows.copy(), classes.copy()
        # With its own class in front of each list, a pair and its expansion are one row.
        table = np.insert(targets, offsets[:-1], np.arange(self.num_classes)).astype(classes.dtype)
        table_offsets = offsets + np.arange(self.num_classes + 1)
        total = int(np.bincount(classes, minlength=self.num_classes) @ np.diff(table_offsets))
        out_rows = np.empty(total, dtype=rows.dtype)
        out_classes = np.empty(total, dtype=classes.dtype)
        done = 0
        for start in range(0, len(classes), _EXPAND_CHUNK):
            part = slice(start, start + _EXPAND_CHUNK)
            positions, gathered = gather_rows(table_offsets, classes[part])
            stop = done + len(positions)
            out_rows[done:stop] = np.repeat(rows[part], np.diff(gathered))
            out_classes[done:stop] = table[positions]
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
        flat = self._as_classes(np.array(list(itertools.chain.from_iterable(labels)), dtype=np.int64))
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
        """Verified image-level labels with ancestors of what is present, and descendants of what is absent.

        A class that is both (contradicting annotations) counts as present.

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
            wrong = min(int(classes.min()), 0) or int(classes.max())
            raise HierarchyError(f"class index {wrong} is outside [0, {self.num_classes})")
        if np.iinfo(classes.dtype).max < self.num_classes - 1:
            classes = classes.astype(np.int64)
        return classes

    def __getstate__(self) -> dict[str, Any]:
        """Leave the K x K matrix out: it is cheaper to make again than to send to a worker."""
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
        return f"LabelHierarchy({self.num_classes} classes, {len(self.leaves)} of them leaves)"


def parents_first(links: Mapping[Any, Sequence[Any]], names: Sequence[str] | None = None) -> list[Any]:
    """Order nodes so that parents come before their children.

    Args:
        links: direct parents of each node.
        names: how to write node i in a message; None for nodes that are texts.

    Raises:
        HierarchyError: the links form a cycle; the message prints its path.
    """
    try:
        return list(TopologicalSorter(links).static_order())
    except CycleError as error:
        path: list[Any] = error.args[1][::-1]
        words = [printable(str(node) if names is None else names[int(node)]) for node in path]
        raise HierarchyError("cycle (child -> parent): " + " -> ".join(words)) from None


def read_parents(source: str | Path | Mapping[str, Any]) -> ParsedHierarchy:
    """Read an Open Images tree or a `{"child id": ["parent id", ...]}` mapping.

    Args:
        source: path of a JSON file, or what such a file holds. It is a tree if it has the key "LabelName".

    Raises:
        HierarchyError: the file is absent or not JSON, or its content has neither form.
    """
    if isinstance(source, (str, Path)):
        name, content = str(source), read_json(Path(source), error=HierarchyError)
    else:
        name, content = "hierarchy", source
    if not isinstance(content, Mapping):
        raise HierarchyError(
            f"{name}: expected a JSON object (an Open Images tree with 'LabelName' and 'Subcategory', or "
            f"{{'child id': ['parent id', ...]}}), got {type(content).__name__}"
        )
    if "LabelName" in content:
        return _walk_tree(content, name)
    return ParsedHierarchy(_check_links(content, name), name=name)


def _check_links(mapping: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    """Parents of each label of a mapping, and of the parents; one parent may be a bare string."""
    parents: dict[str, list[str]] = {}
    for child, above in mapping.items():
        names = [above] if isinstance(above, str) else above
        if not isinstance(names, (list, tuple)) or not all(isinstance(p, str) for p in names):
            raise HierarchyError(f"{name}: parents of {child!r} must be a list of class ids, got {above!r}")
        parents.setdefault(child, []).extend(names)
        for parent in names:
            parents.setdefault(parent, [])
    return parents


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


def _resolve_unlisted(
    hierarchy: ParsedHierarchy, class_ids: Collection[str], contract: bool
) -> dict[str, list[str]]:
    """Direct parents between listed classes only; the root of a tree is left out unless it is listed.

    With `contract`, other labels are left out and their children hang below the nearest kept ancestors.
    """
    keep = set(class_ids)
    unknown = [label for label in hierarchy.parents if label not in keep and label != hierarchy.root]
    if unknown and not contract:
        raise HierarchyError(
            f"{len(unknown)} labels are not in the class list (first: {unknown[0]!r}); correct the class "
            "list, or use unlisted='contract' to leave them out"
        )
    nearest: dict[str, list[str]] = {}
    for label in parents_first(hierarchy.parents):
        kept: dict[str, None] = {}
        for parent in hierarchy.parents[label]:
            kept.update(dict.fromkeys([parent] if parent in keep else nearest[parent]))
        nearest[label] = list(kept)
    return {label: above for label, above in nearest.items() if label in keep}


def _gather(
    table: tuple[np.ndarray, np.ndarray], rows: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(row, related class) for each related class of each pair; the pairs themselves are left out."""
    positions, gathered = gather_rows(table[0], classes)
    return np.repeat(rows, np.diff(gathered)), table[1][positions]
