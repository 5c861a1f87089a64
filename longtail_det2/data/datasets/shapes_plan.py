"""What is to be drawn: how often each class occurs, in which image, and what the annotators write.

The plan is made for a whole split at once, because frequencies are a property of the split; drawing image i
then needs only (seed, split, i) and the plan of image i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longtail_det2.data.datasets.shapes_options import ShapesOptions
from longtail_det2.data.datasets.shapes_vocabulary import ShapesVocabulary
from longtail_det2.utils.errors import ConfigError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class PlannedObject:
    """One object of an image.

    Attributes:
        leaves: what it truly is: one leaf, or two for a two-coloured object.
        labels: the class indices its annotators write, one row each.
        group: a cluster of more than five touching instances under one box.
        inner: leaf of the object that lies within this one; it is the next object of the image.
        within: it lies within the object before it.
    """

    leaves: tuple[int, ...]
    labels: tuple[int, ...]
    group: bool = False
    inner: int | None = None
    within: bool = False

    def with_inner(self) -> tuple[PlannedObject, ...]:
        """This object, and the one that lies within it, if any."""
        if self.inner is None:
            return (self,)
        return (self, PlannedObject((self.inner,), (self.inner,), within=True))


@dataclass(frozen=True)
class PlannedImage:
    """Objects of an image and the classes verified to be absent from it (class indices, ascending)."""

    objects: tuple[PlannedObject, ...]
    negatives: tuple[int, ...]


def geometric_counts(total: int, num_classes: int, imbalance: float, floor: int) -> np.ndarray:
    """Integer frequencies that fall geometrically from the first to the last class.

    The frequency of rank i is max(floor, a * imbalance**(-i / (num_classes - 1))) with `a` such that the sum
    is `total`; rounding moves each by less than one. Where `total` is too small for a last class of `floor`
    objects the end of the curve is flat, and the realised imbalance is smaller than the one asked for.

    Returns:
        (num_classes,) int64, non-increasing, sum `total`, none below `floor`.

    Raises:
        ConfigError: `total` < `floor * num_classes`.
    """
    if total < floor * num_classes:
        raise ConfigError(
            f"{total} labelled objects are too few for {floor} of each of {num_classes} leaves; "
            f"ask for more images, more objects per image, or fewer leaves"
        )
    curve = imbalance ** (-np.arange(num_classes) / max(num_classes - 1, 1))
    low, high = 0.0, float(total)
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (scale, high) if np.maximum(floor, scale * curve).sum() < total else (low, scale)
    exact = np.maximum(floor, high * curve)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    # The largest remainders are rounded up, so that the sum is exact.
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return np.sort(counts)[::-1].copy()


def plan_split(
    options: ShapesOptions, vocabulary: ShapesVocabulary, split: str
) -> tuple[list[PlannedImage], np.ndarray]:
    """Plans all images of a split.

    Returns:
        The images, and (L,) int64: how many labelled objects of each leaf there truly are (a two-coloured
        object counts for both of its leaves).

    Raises:
        ConfigError: the rates or the number of images cannot be met.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), 1])
    training = split == "train"
    num_images = options.train_images if training else options.validation_images
    per_image = rng.integers(1, options.max_objects + 1, size=num_images)
    num_objects = int(per_image.sum())
    num_pairs = round(options.co_label_rate * num_objects)
    num_nested = round(options.nested_rate * num_objects)
    tokens = num_objects + num_pairs + num_nested
    floor = options.min_objects if training else 1
    counts = geometric_counts(tokens, vocabulary.num_leaves, options.imbalance if training else 1.0, floor)
    counts = counts[rng.permutation(vocabulary.num_leaves)]
    pairs = _draw_pairs(counts, num_pairs, vocabulary, rng)
    nested = _draw_nested(counts - _occurrences(pairs, len(counts)), num_nested, vocabulary, rng)
    noisy = training or options.noisy_validation
    objects = _annotate(counts, pairs, nested, floor, options, vocabulary, rng, noisy=noisy)
    order = rng.permutation(num_objects)
    ends = np.cumsum(per_image)
    images = []
    for stop, size in zip(ends.tolist(), per_image.tolist(), strict=True):
        members = tuple(one for k in order[stop - size : stop].tolist() for one in objects[k].with_inner())
        negatives = _draw_negatives(members, options.negatives_per_image, vocabulary, rng)
        images.append(PlannedImage(members, negatives))
    return images, counts


def _draw_pairs(
    counts: np.ndarray, num_pairs: int, vocabulary: ShapesVocabulary, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Leaves of the two-coloured objects, taken out of `counts` so that frequencies stay as planned."""
    left = counts.copy()
    drawn: list[tuple[int, int]] = []
    for partners_only in (True, False):
        edges = vocabulary.co_label_pairs(partners_only)
        while len(drawn) < num_pairs and len(edges):
            weights = left[edges].min(axis=1).astype(np.float64)
            if not weights.any():
                break
            edge = edges[np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right")]
            left[edge] -= 1
            first = int(rng.integers(2))
            drawn.append((int(edge[first]), int(edge[1 - first])))
    if len(drawn) < num_pairs:
        raise ConfigError(
            f"co_label_rate asks for {num_pairs} two-coloured objects, but the class frequencies leave room "
            f"for {len(drawn)}; lower co_label_rate or imbalance, or use more leaves"
        )
    return drawn


def _draw_nested(
    left: np.ndarray, number: int, vocabulary: ShapesVocabulary, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Leaves (outer, inner) of the objects with another inside, taken out of `left`, what is not yet used."""
    left = left.copy()
    edges = vocabulary.nested_pairs()
    drawn: list[tuple[int, int]] = []
    while len(drawn) < number:
        weights = left[edges].min(axis=1).astype(np.float64)
        if not weights.any():
            raise ConfigError(
                f"nested_rate asks for {number} objects with another inside, but the class frequencies leave "
                f"room for {len(drawn)}; lower nested_rate, co_label_rate or imbalance, or use more leaves"
            )
        edge = edges[np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right")]
        left[edge] -= 1
        drawn.append((int(edge[0]), int(edge[1])))
    return drawn


def _occurrences(pairs: Sequence[tuple[int, int]], num_leaves: int) -> np.ndarray:
    """(L,) int64: how often each leaf is in a pair."""
    return np.bincount(np.array(pairs, dtype=np.int64).reshape(-1), minlength=num_leaves)


def _annotate(
    counts: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    nested: Sequence[tuple[int, int]],
    floor: int,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    rng: np.random.Generator,
    *,
    noisy: bool,
) -> list[PlannedObject]:
    """All objects of a split with what is written for each, in no particular order.

    The phenomena are disjoint (an object is two-coloured, or has another inside, or is a group, or lacks its
    leaf, or is confused), so that each rate is met to the nearest object. `floor` objects of every leaf are
    spared. An object within another is part of that one here.
    """
    in_pairs = _occurrences([*pairs, *nested], len(counts))
    num_objects = int(counts.sum()) - len(pairs) - len(nested)
    spared = np.maximum(floor - in_pairs, 0)
    singles = counts - in_pairs
    objects = [PlannedObject(pair, pair) for pair in pairs]
    objects += [PlannedObject((outer,), (outer,), inner=inner) for outer, inner in nested]
    free: list[int] = []
    for leaf, (number, keep) in enumerate(zip(singles.tolist(), spared.tolist(), strict=True)):
        objects += [PlannedObject((leaf,), (leaf,))] * min(number, keep)
        free += [leaf] * max(number - keep, 0)
    rates = [options.group_of_rate] + ([options.missing_leaf_rate, options.confusion_rate] if noisy else [])
    wanted = [round(rate * num_objects) for rate in rates] + [0] * (3 - len(rates))
    if sum(wanted) > len(free):
        raise ConfigError(
            f"group_of_rate, missing_leaf_rate and confusion_rate ask for {sum(wanted)} objects together, "
            f"but only {len(free)} of {num_objects} have one colour and are not among the "
            f"{floor} spared of each leaf; lower the rates (or co_label_rate)"
        )
    groups, missing, confused = wanted
    coins = rng.integers(2, size=len(free)).tolist()
    for position, index in enumerate(rng.permutation(len(free)).tolist()):
        leaf, coin = free[index], coins[index]
        if position < groups:
            objects.append(PlannedObject((leaf,), (leaf,), group=True))
        elif position < groups + missing:
            objects.append(PlannedObject((leaf,), (vocabulary.parents[leaf][coin],)))
        elif position < groups + missing + confused:
            objects.append(PlannedObject((leaf,), (vocabulary.similar_leaf(leaf, by_colour=bool(coin)),)))
        else:
            objects.append(PlannedObject((leaf,), (leaf,)))
    return objects


def _draw_negatives(
    objects: Sequence[PlannedObject], number: int, vocabulary: ShapesVocabulary, rng: np.random.Generator
) -> tuple[int, ...]:
    """Classes that are neither in the image nor written for anything in it.

    About half are hard (similar to something in the image), the rest are drawn from all absent leaves, and
    every second image on average also verifies that a whole shape or colour is absent.
    """
    present: set[int] = set()
    for planned in objects:
        for label in (*planned.leaves, *planned.labels):
            present |= {label} | vocabulary.ancestors(label)
    absent = [leaf for leaf in range(vocabulary.num_leaves) if leaf not in present]
    near = {j for planned in objects for leaf in planned.leaves for j in vocabulary.similar_leaves(leaf)}
    hard = sorted(near - present)
    chosen: set[int] = set()
    if hard and number:
        chosen |= set(rng.choice(hard, size=min(number // 2, len(hard)), replace=False).tolist())
    others = [leaf for leaf in absent if leaf not in chosen]
    inner = [c for c in range(vocabulary.num_leaves, vocabulary.num_classes) if c not in present]
    if number > len(chosen) and inner and rng.random() < 0.5:
        chosen.add(int(rng.choice(inner)))
    room = min(number - len(chosen), len(others))
    if room > 0:
        chosen |= set(rng.choice(others, size=room, replace=False).tolist())
    return tuple(sorted(chosen))
