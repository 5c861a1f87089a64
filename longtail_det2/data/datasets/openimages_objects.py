"""From rows with one label each to objects with several labels, vectorised.

Open Images repeats a box once per label and has no object ids, so that objects have to be found by their
boxes. The rules, for rows of one image:

1. Rows with equal coordinates and equal group-of flag are one object. (The official metric treats single and
   group-of boxes differently, so they stay apart.) Its other flags are united. A label that it bears twice
   counts once.
2. With `merge_iou` < 1, objects that share no label, with equal group-of flag and an IoU of at least
   `merge_iou`, are joined one to one: pairs of mutual best matches first (ties: the earlier objects), then
   the same among what is left. An object that is already joined takes another one only if all its boxes
   overlap that one's boxes so much, and no label is borne twice: two adjacent "Man" boxes never end up as one
   object. The object keeps the box of its most specific label.
3. Labels of an object stand most specific first; objects of an image from left to right, in an order that
   depends on their boxes alone. The result does not depend on the order of the rows.
"""

from dataclasses import dataclass

import numpy as np

from longtail_det2.data.overlaps import near_pairs
from longtail_det2.data.store import ObjectFlag

_CHUNK = 1 << 19
_POSITION_BITS = 12
_POSITIONS = (1 << _POSITION_BITS) - 1


@dataclass
class Objects:
    """Objects of all images, by image.

    Attributes:
        image: (m,) int32 image of each object, ascending.
        box: (m, 4) float32 (x0, y0, x1, y1).
        flags: (m,) uint8 bits of `ObjectFlag`.
        label_offsets: (m + 1,) int64.
        label: (l,) int32, most specific first within an object.
        num_duplicates: rows that repeated a label of their object.
        num_merged: rows that gave an object a further label because of an equal box.
        num_merged_near: objects joined to another one by `merge_iou`.
        object_of_row: (r,) int64 object that each row became part of, if it was asked for.
    """

    image: np.ndarray
    box: np.ndarray
    flags: np.ndarray
    label_offsets: np.ndarray
    label: np.ndarray
    num_duplicates: int = 0
    num_merged: int = 0
    num_merged_near: int = 0
    object_of_row: np.ndarray | None = None


def specificity_rank(depth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rank of each class from the most specific one: (K,) int64.

    Args:
        depth: (K,) depth in the hierarchy; deeper is more specific.
        counts: (K,) rows of each class; of equally deep classes the rarer one is more specific, then the one
            with the lower index.
    """
    rank = np.empty(len(depth), dtype=np.int64)
    rank[np.lexsort((counts, -np.asarray(depth)))] = np.arange(len(depth))
    return rank


def group_rows(
    image: np.ndarray,
    label: np.ndarray,
    box: np.ndarray,
    flags: np.ndarray,
    rank: np.ndarray,
    *,
    with_rows: bool = False,
) -> Objects:
    """Rule 1 and 3: rows with equal boxes become one object.

    Args:
        image: (r,) int32 image indices in any order.
        label: (r,) int32 class indices.
        box: (r, 4) float32 with coordinates in [0, 1].
        flags: (r,) uint8 bits of `ObjectFlag`.
        rank: (K,) rank of each class from the most specific one.
        with_rows: also say which object each row became part of (8 bytes a row).
    """
    if len(image) == 0:
        offsets = np.zeros(1, dtype=np.int64)
        return Objects(image, box, flags, offsets, label, object_of_row=offsets[:0] if with_rows else None)
    order, first = _sort_rows(image, box, flags)
    object_of_row = _invert(order, first) if with_rows else None
    starts = np.flatnonzero(first)
    del first
    label = label[order]
    flags = np.bitwise_or.reduceat(flags[order], starts)
    counts = np.diff(starts, append=len(order))
    heads = order[starts]
    del order, starts
    label, num_duplicates = _order_labels(label, counts, rank)
    num_merged = len(label) - len(heads)
    offsets = np.zeros(len(heads) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    del counts
    return Objects(
        image[heads], box[heads], flags, offsets, label, num_duplicates, num_merged, 0, object_of_row
    )


def merge_near(objects: Objects, merge_iou: float, rank: np.ndarray) -> Objects:
    """Rule 2: join objects whose boxes are nearly equal.

    Args:
        objects: result of `group_rows`.
        merge_iou: threshold in (0, 1); at 1 nothing is left to join.
        rank: (K,) rank of each class from the most specific one.
    """
    group_of = objects.flags & np.uint8(ObjectFlag.GROUP_OF)
    first, second, iou = near_pairs(objects.image, objects.box, merge_iou, group_of)
    apart = ~_share_label(objects, first, second, len(rank))
    root = _join_pairs(len(objects.image), first[apart], second[apart], iou[apart])
    joined = int(np.count_nonzero(root != np.arange(len(root))))
    if joined == 0:
        return objects
    # Within a root, the object with the most specific label comes first: the box is taken from it.
    leading = rank[objects.label[objects.label_offsets[:-1]]]
    order = np.argsort(root * len(rank) + leading, kind="stable")
    starts = np.flatnonzero(np.diff(root[order], prepend=-1))
    counts = np.diff(objects.label_offsets)
    target = np.repeat(root, counts)
    keys = target * len(rank) + rank[objects.label]
    keys.sort()
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(np.add.reduceat(counts[order], starts), out=offsets[1:])
    rows = objects.object_of_row
    return Objects(
        objects.image[order[starts]],
        objects.box[order[starts]],
        np.bitwise_or.reduceat(objects.flags[order], starts),
        offsets,
        np.argsort(rank)[keys % len(rank)].astype(objects.label.dtype),
        objects.num_duplicates,
        objects.num_merged,
        joined,
        None if rows is None else np.searchsorted(root[order[starts]], root)[rows],
    )


def _sort_rows(image: np.ndarray, box: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order that puts the rows of an object together, and whether a row (in that order) begins an object.

    One sort of 64-bit keys: image, rough x0 and y0, and a hash of the box in the remaining bits. Equal boxes
    have equal keys; rows with equal keys and different boxes (few) are then sorted by their boxes.
    """
    keys = _sort_keys(image, box, flags)
    order = np.argsort(keys)
    first = np.ones(len(order), dtype=bool)
    clashes = []
    for start in range(0, len(order) - 1, _CHUNK):
        rows = order[start : start + _CHUNK + 1]
        part = keys[rows]
        same_key = part[1:] == part[:-1]
        same = same_key & _same_object(rows, image, box, flags)
        first[start + 1 : start + len(rows)] = ~same
        clashes.append(part[1:][same_key & ~same])
    clash = np.unique(np.concatenate(clashes)) if clashes else np.empty(0, keys.dtype)
    if len(clash):
        _settle_clashes(np.flatnonzero(_contains(clash, keys)), keys, order, first, image, box, flags)
    return order, first


def _invert(order: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Number of the object that each row belongs to, where `first` marks where objects begin in `order`."""
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = np.cumsum(first) - 1
    return owner


def _sort_keys(image: np.ndarray, box: np.ndarray, flags: np.ndarray) -> np.ndarray:
    image_bits = max(1, int(image.max()).bit_length())
    hash_bits = np.uint64(64 - image_bits - 2 * _POSITION_BITS)
    multipliers = np.array(
        [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
    )
    keys = np.empty(len(image), dtype=np.uint64)
    for start in range(0, len(image), _CHUNK):
        part = slice(start, start + _CHUNK)
        position = (box[part, :2] * np.float32(_POSITIONS)).astype(np.uint64)
        hashed = ((box[part] + np.float32(0)).view(np.uint32) * multipliers).sum(axis=1, dtype=np.uint64)
        hashed += (flags[part] & np.uint8(ObjectFlag.GROUP_OF)) * multipliers[0]
        hashed ^= hashed >> np.uint64(29)
        hashed *= multipliers[1]
        key = (image[part].astype(np.uint64) << np.uint64(_POSITION_BITS)) | position[:, 0]
        key = (key << np.uint64(_POSITION_BITS)) | position[:, 1]
        keys[part] = (key << hash_bits) | (hashed >> (np.uint64(64) - hash_bits))
    return keys


def _same_object(rows: np.ndarray, image: np.ndarray, box: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Whether each row but the first equals its predecessor in image, box and group-of flag."""
    boxes = box[rows]
    equal = boxes[1:] == boxes[:-1]
    same = equal[:, 0] & equal[:, 1] & equal[:, 2] & equal[:, 3]
    images = image[rows]
    same &= images[1:] == images[:-1]
    group_of = flags[rows] & np.uint8(ObjectFlag.GROUP_OF)
    same &= group_of[1:] == group_of[:-1]
    return same


def _settle_clashes(
    rows: np.ndarray,
    keys: np.ndarray,
    order: np.ndarray,
    first: np.ndarray,
    image: np.ndarray,
    box: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Sort the `rows` of clashing keys by box, in their places of `order`; correct `first` there."""
    wanted = np.zeros(len(order), dtype=bool)
    wanted[rows] = True
    places = np.flatnonzero(wanted[order])
    boxes = box[rows]
    group_of = flags[rows] & np.uint8(ObjectFlag.GROUP_OF)
    sorting = np.lexsort((group_of, *boxes.T[::-1], keys[rows]))
    order[places] = rows[sorting]
    first[places[1:]] = ~_same_object(rows[sorting], image, box, flags)
    first[places[0]] = True


def _order_labels(label: np.ndarray, counts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, int]:
    """Order the labels of each object and drop repeated ones; `counts` is corrected in place.

    Returns:
        The labels, and the number of repeated ones.
    """
    several = counts > 1
    places = np.flatnonzero(np.repeat(several, counts))
    objects = np.repeat(np.flatnonzero(several), counts[several])
    keys = objects * len(rank) + rank[label[places]]
    keys.sort()
    label[places] = np.argsort(rank)[keys % len(rank)]
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[1:] = keys[1:] == keys[:-1]
    num_repeated = int(np.count_nonzero(repeated))
    if num_repeated:
        np.subtract.at(counts, objects[repeated], 1)
        keep = np.ones(len(label), dtype=bool)
        keep[places[repeated]] = False
        label = label[keep]
    return label, num_repeated


def _share_label(objects: Objects, first: np.ndarray, second: np.ndarray, num_classes: int) -> np.ndarray:
    """Whether the two objects of each pair have a label in common."""
    keys = []
    for members in (first, second):
        begin = objects.label_offsets[members]
        counts = objects.label_offsets[members + 1] - begin
        pair = np.repeat(np.arange(len(members)), counts)
        inner = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys.append(pair * num_classes + objects.label[begin[pair] + inner])
    both = np.concatenate(keys)
    both.sort()
    shared = np.zeros(len(first), dtype=bool)
    shared[both[1:][both[1:] == both[:-1]] // num_classes] = True
    return shared


def _join_pairs(num_objects: int, first: np.ndarray, second: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Root (lowest member) of the cluster of each object: (num_objects,) int64.

    Rounds of mutual best matches with complete linkage: two clusters are joined when each is the other's best
    and every pair between their members is among the given ones. Two clusters with a member pair missing can
    never be joined later, so their link is dropped; hence label sets within a cluster stay disjoint.
    """
    root = np.arange(num_objects)
    size = np.ones(num_objects, dtype=np.int64)
    links = np.ones(len(first), dtype=np.int64)
    while len(first):
        by_iou = np.lexsort((second, first, -iou))
        place = np.empty(len(first), dtype=np.int64)
        place[by_iou] = np.arange(len(first))
        best = np.full(num_objects, len(first), dtype=np.int64)
        np.minimum.at(best, first, place)
        np.minimum.at(best, second, place)
        chosen = (best[first] == place) & (best[second] == place)
        target = np.arange(num_objects)
        target[second[chosen]] = first[chosen]
        size[first[chosen]] += size[second[chosen]]
        root = target[root]
        first, second, iou, links = _relink(target[first], target[second], iou, links)
        complete = links == size[first] * size[second]
        first, second, iou, links = first[complete], second[complete], iou[complete], links[complete]
    return root


def _relink(
    first: np.ndarray, second: np.ndarray, iou: np.ndarray, links: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unite parallel links between clusters (lowest IoU, added counts), leaving out those within one."""
    between = first != second
    low, high = np.minimum(first, second)[between], np.maximum(first, second)[between]
    iou, links = iou[between], links[between]
    if len(low) == 0:
        return low, high, iou, links
    order = np.lexsort((high, low))
    low, high, iou, links = low[order], high[order], iou[order], links[order]
    new = np.ones(len(low), dtype=bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    starts = np.flatnonzero(new)
    return low[starts], high[starts], np.minimum.reduceat(iou, starts), np.add.reduceat(links, starts)


def _contains(values: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether each item is among the sorted `values`: (items,) bool."""
    place = np.searchsorted(values, items)
    place[place == len(values)] = 0
    return values[place] == items
