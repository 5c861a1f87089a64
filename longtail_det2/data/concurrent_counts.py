r"""Counting which classes concur: in how many objects of class i is there evidence for class j?

Let L(o) be the annotated labels of object o, A(l) the class l with its ancestors (with l alone, where the
hierarchy is not to be used), and B(o) the union of A(l) over L(o): the classes that o bears. Then

    n_i  = #{o : i in B(o)}
    n_ij = #{o : i in B(o), j != i, and (i, j) in H(o) or X(o) or I(o)}

    H(o) = {(i, j) : i, j in A(l) for one l in L(o)}                  hierarchy
    X(o) = {(i, j) : i in A(l), j in A(l') for some l, l' in L(o)}    explicit co-labels
    I(o) = {(i, j) : i in B(o), j in B(p) for a box p of the same image with IoU(o, p) >= t}    implicit

An object counts at most once for a pair, however many labels or overlapping boxes say the same.

Millions of objects have few distinct sets of labels. So H and X are made once for each set and weighted by
its number of objects; for I, the classes that overlap an object are found chunk by chunk of images and added
up by (set, class).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.overlaps import near_pairs
from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.utils.errors import DataError

_CHUNK = 1 << 19
"""Objects, or pairs of classes, worked on at once; it bounds the memory."""
_DENSE_CODES = 1 << 22
"""Below it, a table of all possible codes is quicker than sorting those that occur."""


@dataclass(frozen=True)
class _LabelSets:
    """The distinct sets of labels that objects have.

    Attributes:
        of_object: (m,) int32 set of each object; -1 for an object that does not count.
        num_objects: (S,) int64 objects of each set.
        labels: `(offsets (S + 1,), classes)`: L of set s is `classes[offsets[s]:offsets[s + 1]]`.
        borne: the same for B.
        explicit: whether X counts; else a set with several labels does not have all pairs of its classes.
        hierarchy: defines A.
    """

    of_object: np.ndarray
    num_objects: np.ndarray
    labels: tuple[np.ndarray, np.ndarray]
    borne: tuple[np.ndarray, np.ndarray]
    explicit: bool
    hierarchy: LabelHierarchy

    @cached_property
    def complete(self) -> np.ndarray:
        """(S,) bool, whether all pairs of a set's classes are in H or X."""
        return np.full(len(self.num_objects), True) if self.explicit else np.diff(self.labels[0]) == 1

    def pairs(self, first: int, last: int) -> np.ndarray:
        """Keys (s * K + i) * K + j of the pairs in H and X for s in [first, last), ascending.

        Pairs with i = j are among them.
        """
        num_classes = self.hierarchy.num_classes
        complete = self.complete[first:last]
        owner, place = _members(self.borne[0], first + np.flatnonzero(complete))
        keys = (first + np.flatnonzero(complete))[owner] * num_classes + self.borne[1][place]
        keys = _join_within(keys, num_classes, owner)
        if not complete.all():
            sets = first + np.flatnonzero(~complete)
            owner, place = _members(self.labels[0], sets)
            number, classes = self.hierarchy.expand(np.arange(len(place)), self.labels[1][place])
            order = np.argsort(number, kind="stable")
            implied = sets[owner[number[order]]] * num_classes + classes[order]
            keys = np.concatenate([keys, _join_within(implied, num_classes, number[order])])
        return _distinct(keys)


def count_concurrent(
    store: AnnotationStore,
    *,
    explicit: bool,
    hierarchy: LabelHierarchy,
    implicit_iou: float | None,
    with_groups: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Count in one store; the meaning is that of the module's docstring.

    Args:
        store: K classes.
        explicit: count the pairs X.
        hierarchy: defines A; a flat one leaves H empty.
        implicit_iou: t in (0, 1] of the pairs I; None leaves them out.
        with_groups: count group-of boxes, too. A group and a single object never overlap in this sense.

    Returns:
        n_i (K,) int64 and n_ij (K, K) int64 with a diagonal of zeros.

    Raises:
        DataError: the store has labels that are no classes.
    """
    sets = _find_sets(store, explicit, hierarchy, with_groups)
    overlapping = (np.empty(0, np.int64), np.empty(0, np.int64))
    if implicit_iou is not None:
        for first, last in _ranges(store.object_offsets):
            new = _overlap_keys(store, sets, first, last, implicit_iou)
            # Few (set, class) are new in a chunk, so they are kept added up.
            overlapping = _sum_equal(
                np.concatenate([overlapping[0], new]), np.concatenate([overlapping[1], np.ones_like(new)])
            )
    pairs = _sum_pairs(sets, *overlapping)
    objects = pairs.diagonal().copy()
    np.fill_diagonal(pairs, 0)
    return objects, pairs


def _find_sets(
    store: AnnotationStore, explicit: bool, hierarchy: LabelHierarchy, with_groups: bool
) -> _LabelSets:
    num_classes = store.num_classes
    labels = store.labels
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(f"{store.path}: the store has labels that are no classes; prepare it again")
    of_object, label_sets = _number_sets(store, with_groups)
    offsets, members = label_sets
    rows, classes = hierarchy.expand(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), members)
    borne = _distinct(rows * num_classes + classes)
    borne_offsets = np.searchsorted(borne, np.arange(len(offsets)) * num_classes).astype(np.int64)
    num_objects = np.bincount(of_object[of_object >= 0], minlength=len(offsets) - 1)
    return _LabelSets(
        of_object, num_objects, label_sets, (borne_offsets, borne % num_classes), explicit, hierarchy
    )


def _number_sets(
    store: AnnotationStore, with_groups: bool
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Number of each object's set (-1: does not count), and the labels of the sets, as (offsets, labels)."""
    of_object = np.full(store.num_objects, -1, dtype=np.int32)
    tables: list[np.ndarray] = []  # sets of one size in one chunk of objects: (sets, size)
    num_found = 0
    for start in range(0, store.num_objects, _CHUNK):
        offsets = store.label_offsets[start : start + _CHUNK + 1]
        sizes = np.diff(offsets)
        if not with_groups:
            group = store.flags[start : start + _CHUNK] & np.uint8(ObjectFlag.GROUP_OF)
            sizes[group != 0] = 0
        for size in np.flatnonzero(np.bincount(sizes)).tolist():
            if size == 0:
                continue
            members = np.flatnonzero(sizes == size)
            table = np.sort(store.labels[offsets[members][:, None] + np.arange(size)], axis=1)
            number, example = _number_rows(table, store.num_classes)
            of_object[start + members] = num_found + number
            tables.append(table[example])
            num_found += len(example)
    merged, by_size = _merge_tables(tables, store.num_classes)
    for start in range(0, len(of_object), _CHUNK):
        part = of_object[start : start + _CHUNK]
        counting = part >= 0
        part[counting] = merged[part[counting]]
    sizes = np.array([table.shape[1] for table in by_size for _ in table], dtype=np.int64)
    labels = np.concatenate([np.empty(0, np.int64), *(table.ravel() for table in by_size)])
    return of_object, (np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), labels)


def _merge_tables(tables: list[np.ndarray], num_classes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Number the rows of all tables anew, equal rows alike.

    Returns:
        (rows of all tables,) int64 new numbers; and the distinct rows by size, in the order of the numbers.
    """
    sizes = np.array([table.shape[1] for table in tables for _ in table], dtype=np.int64)
    merged = np.empty(len(sizes), dtype=np.int64)
    distinct: list[np.ndarray] = []
    for size in np.unique(sizes).tolist():
        together = np.concatenate([table for table in tables if table.shape[1] == size])
        number, example = _number_rows(together, num_classes)
        merged[sizes == size] = sum(map(len, distinct)) + number
        distinct.append(together[example])
    return merged, distinct


def _number_rows(table: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the distinct rows of an (n, size) table of classes, and where a row of each number is."""
    codes, bound = table[:, 0].astype(np.int64), num_classes
    for column in table.T[1:]:
        if bound > 2**62 // num_classes:
            codes, bound = np.unique(codes, return_inverse=True)[1], len(codes)
        codes, bound = codes * num_classes + column, bound * num_classes
    if bound > _DENSE_CODES:
        _, example, number = np.unique(codes, return_index=True, return_inverse=True)
        return number, example
    occurs = np.zeros(bound, dtype=bool)
    occurs[codes] = True
    number = (np.cumsum(occurs) - 1)[codes]
    example = np.empty(np.count_nonzero(occurs), dtype=np.int64)
    example[number] = np.arange(len(codes))
    return number, example


def _overlap_keys(
    store: AnnotationStore, sets: _LabelSets, first_image: int, last_image: int, least_iou: float
) -> np.ndarray:
    """Keys s * K + j, one for each object of set s that a box with class j overlaps, in a range of images."""
    num_classes = store.num_classes
    begin, end = store.object_offsets[[first_image, last_image]].tolist()
    of_object = sets.of_object[begin:end]
    per_image = np.diff(store.object_offsets[first_image : last_image + 1])
    kept = np.flatnonzero(of_object >= 0)
    image = np.repeat(np.arange(len(per_image)), per_image)[kept]
    group = store.flags[begin:end][kept] & np.uint8(ObjectFlag.GROUP_OF)
    first, second, _ = near_pairs(image, store.boxes[begin:end][kept], least_iou, group)
    target, other = kept[np.concatenate([first, second])], kept[np.concatenate([second, first])]
    # A box with the very same classes tells nothing new.
    telling = (of_object[target] != of_object[other]) | ~sets.complete[of_object[target]]
    owner, place = _members(sets.borne[0], of_object[other[telling]])
    keys = _distinct(target[telling][owner] * num_classes + sets.borne[1][place])
    return of_object[keys // num_classes].astype(np.int64) * num_classes + keys % num_classes


def _sum_pairs(sets: _LabelSets, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(K, K) int64 n_ij, with n_i on the diagonal.

    Args:
        sets: with the pairs of H and X.
        keys: (q,) s * K + j, ascending: set s is overlapped by class j.
        counts: (q,) by how many of its objects.
    """
    num_classes = sets.hierarchy.num_classes
    pairs = np.zeros(num_classes**2)
    begins = np.searchsorted(keys, np.arange(len(sets.num_objects) + 1) * num_classes)
    size = np.diff(sets.borne[0])
    for first, last in _ranges(np.concatenate([[0], np.cumsum(size * (size + np.diff(begins)))])):
        own = sets.pairs(first, last)
        weights = sets.num_objects[own // num_classes**2]
        pairs += np.bincount(own % num_classes**2, weights=weights, minlength=num_classes**2)
        part = keys[begins[first] : begins[last]]
        owner, place = _members(sets.borne[0], part // num_classes)
        borne = part[owner] // num_classes * num_classes + sets.borne[1][place]
        triples = borne * num_classes + part[owner] % num_classes
        new = ~_contains(own, triples)
        weights = counts[begins[first] : begins[last]][owner[new]]
        pairs += np.bincount(triples[new] % num_classes**2, weights=weights, minlength=num_classes**2)
    return np.rint(pairs).astype(np.int64).reshape(num_classes, num_classes)


def _ranges(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows that have about _CHUNK elements each (more, if one row has more)."""
    cuts = np.searchsorted(offsets, np.arange(_CHUNK, int(offsets[-1]), _CHUNK), side="right")
    cuts = np.unique(np.concatenate([[0], cuts, [len(offsets) - 1]]))
    yield from zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)


def _members(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The elements [offsets[row], offsets[row + 1]) of each row: (place in `rows`, place of the element)."""
    begin = offsets[rows]
    counts = offsets[rows + 1] - begin
    owner = np.repeat(np.arange(len(rows)), counts)
    return owner, (begin - np.cumsum(counts) + counts)[owner] + np.arange(len(owner))


def _join_within(keys: np.ndarray, num_classes: int, group: np.ndarray) -> np.ndarray:
    """Keys (s * K + i) * K + j of all pairs of keys s * K + i, s * K + j of one group; `group` ascends."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    offsets = np.append(starts, len(group))
    owner, place = _members(offsets, np.repeat(np.arange(len(starts)), np.diff(offsets)))
    return keys[owner] * num_classes + keys[place] % num_classes


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Distinct keys, ascending; sorts `keys` in place, which is faster than the hashing of np.unique."""
    keys.sort()
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys[first]


def _sum_equal(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, with the sums of their counts."""
    if len(keys) == 0:
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[starts], np.add.reduceat(counts[order], starts)


def _contains(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether each item is among the sorted `values`: (items,) bool."""
    if len(values) == 0:
        return np.zeros(len(items), dtype=bool)
    return values[np.minimum(np.searchsorted(values, items), len(values) - 1)] == items
