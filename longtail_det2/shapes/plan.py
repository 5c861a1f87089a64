"""What is to be drawn: options, frequencies, and what the annotators write, for a whole split at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail_det2.utils.errors import ConfigError

from .vocabulary import MAX_LEAVES, ShapesVocabulary

SPLITS = ("train", "validation")
FORMATS = ("openimages", "lvis", "coco")

# fmt: off
_RANGES: dict[str, tuple[float, float]] = {
    "train_images": (1, 10**7), "validation_images": (1, 10**7), "image_size": (64, 4096),
    "num_leaves": (2, MAX_LEAVES), "imbalance": (1, 1e9), "min_objects": (1, 10**7),
    "max_objects": (1, 12),  # with more, boxes would pile up
    "missing_leaf_rate": (0, 1), "co_label_rate": (0, 1), "confusion_rate": (0, 1), "group_of_rate": (0, 1),
    "negatives_per_image": (0, 10**4), "seed": (0, 2**63),
}
# fmt: on


@dataclass(frozen=True)
class ShapesOptions:
    """What to generate; with the version of the generator it determines every byte."""

    train_images: int = 3000
    validation_images: int = 500
    image_size: int = 128  # side of the square images, px; objects scale with it
    num_leaves: int = MAX_LEAVES
    imbalance: float = 300.0  # frequency of the most over that of the least frequent leaf in training
    min_objects: int = 4  # correctly annotated training objects per leaf, at least
    max_objects: int = 7  # per image, from 1 on, uniformly distributed
    missing_leaf_rate: float = 0.1  # rates are fractions of the objects
    co_label_rate: float = 0.1
    confusion_rate: float = 0.02
    group_of_rate: float = 0.02
    negatives_per_image: int = 8  # classes verified absent; a number above that of the leaves verifies all
    formats: tuple[str, ...] = FORMATS  # annotation files to write
    seed: int = 0

    def validate(self) -> None:
        """Raise a ConfigError that names the first bad option, its value and what is allowed."""
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be in [{low}, {high}], got {getattr(self, name)}")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ConfigError(f"formats must be some of {FORMATS}, got {self.formats}")

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class PlannedObject:
    """One object of an image."""

    leaves: tuple[int, ...]  # what it is: one leaf, or two for a two-coloured object
    labels: tuple[int, ...]  # what its annotators write, class indices
    group: bool = False  # a cluster of more than five touching instances under one box


@dataclass(frozen=True)
class PlannedImage:
    """Objects of an image and the classes verified to be absent from it (class indices, ascending)."""

    objects: tuple[PlannedObject, ...]
    negatives: tuple[int, ...]


def geometric_counts(total: int, num_classes: int, imbalance: float, floor: int) -> np.ndarray:
    """Compute integers max(floor, a * imbalance**(-i / (num_classes - 1))) whose sum is `total`."""
    if total < floor * num_classes:
        raise ConfigError(
            f"{total} labelled objects are too few for {floor} of each of {num_classes} leaves; ask for more "
            "images, more objects per image, or fewer leaves"
        )
    curve = imbalance ** (-np.arange(num_classes) / max(num_classes - 1, 1))
    low, high = 0.0, float(total)
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (scale, high) if np.maximum(floor, scale * curve).sum() < total else (low, scale)
    exact = np.maximum(floor, high * curve)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    # The largest remainders are rounded up, so that the sum is exact.
    counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
    return np.sort(counts)[::-1].copy()


def plan_split(
    options: ShapesOptions, vocabulary: ShapesVocabulary, split: str
) -> tuple[list[PlannedImage], np.ndarray]:
    """Plan all images of a split, and count the objects per leaf; ConfigError if options cannot be met."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), 1])
    training = split == "train"
    num_images = options.train_images if training else options.validation_images
    per_image = rng.integers(1, options.max_objects + 1, size=num_images)
    num_objects = int(per_image.sum())
    num_pairs = round(options.co_label_rate * num_objects)
    floor = options.min_objects if training else 1
    imbalance = options.imbalance if training else 1.0
    counts = geometric_counts(num_objects + num_pairs, vocabulary.num_leaves, imbalance, floor)
    counts = counts[rng.permutation(vocabulary.num_leaves)]
    pairs = _draw_pairs(counts, num_pairs, vocabulary, rng)
    objects = _annotate(counts, pairs, split, options, vocabulary, rng)
    order = rng.permutation(num_objects)
    images = []
    for stop, size in zip(np.cumsum(per_image).tolist(), per_image.tolist(), strict=True):
        members = tuple(objects[k] for k in order[stop - size : stop].tolist())
        negatives = _draw_negatives(members, options.negatives_per_image, vocabulary, rng)
        images.append(PlannedImage(members, negatives))
    return images, counts


def _draw_pairs(
    counts: np.ndarray, num_pairs: int, vocabulary: ShapesVocabulary, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw the leaves of the two-coloured objects out of `counts`, so that frequencies stay as planned."""
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


def _annotate(
    counts: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    split: str,
    options: ShapesOptions,
    vocabulary: ShapesVocabulary,
    rng: np.random.Generator,
) -> list[PlannedObject]:
    """Return all objects of a split; the phenomena are disjoint and spare some objects of each leaf."""
    noisy, floor = (True, options.min_objects) if split == "train" else (False, 1)
    in_pairs = np.bincount(np.array(pairs, dtype=np.int64).reshape(-1), minlength=len(counts))
    num_objects = int(counts.sum()) - len(pairs)
    objects = [PlannedObject(pair, pair) for pair in pairs]
    free: list[int] = []
    spared = np.maximum(floor - in_pairs, 0)
    for leaf, (number, keep) in enumerate(zip((counts - in_pairs).tolist(), spared.tolist(), strict=True)):
        objects += [PlannedObject((leaf,), (leaf,))] * min(number, keep)
        free += [leaf] * max(number - keep, 0)
    groups = round(options.group_of_rate * num_objects)
    missing = round(options.missing_leaf_rate * num_objects) if noisy else 0
    confused = round(options.confusion_rate * num_objects) if noisy else 0
    if groups + missing + confused > len(free):
        raise ConfigError(
            f"group_of_rate, missing_leaf_rate and confusion_rate ask for {groups + missing + confused} "
            f"objects together, but only {len(free)} of {num_objects} have one colour and are not among the "
            f"{floor} spared per leaf; lower the rates (or co_label_rate)"
        )
    coins = rng.integers(2, size=len(free)).tolist()
    for position, index in enumerate(rng.permutation(len(free)).tolist()):
        leaf, coin = free[index], coins[index]
        label = leaf
        if groups <= position < groups + missing:
            label = vocabulary.parents[leaf][coin]
        elif groups + missing <= position < groups + missing + confused:
            label = vocabulary.similar_leaf(leaf, by_colour=bool(coin))
        objects.append(PlannedObject((leaf,), (label,), group=position < groups))
    return objects


def _draw_negatives(
    objects: Sequence[PlannedObject], number: int, vocabulary: ShapesVocabulary, rng: np.random.Generator
) -> tuple[int, ...]:
    """Draw classes that are neither in the image nor written in it: half similar ones, half any others."""
    seen = {label for planned in objects for label in (*planned.leaves, *planned.labels)}
    present = seen.union(*(vocabulary.ancestors(label) for label in seen))
    near = {j for planned in objects for leaf in planned.leaves for j in vocabulary.similar_leaves(leaf)}
    hard = sorted(near - present)
    chosen: set[int] = set()
    if hard and number:
        chosen |= set(rng.choice(hard, size=min(number // 2, len(hard)), replace=False).tolist())
    others = sorted(set(range(vocabulary.num_leaves)) - present - chosen)
    inner = sorted(set(range(vocabulary.num_leaves, vocabulary.num_classes)) - present)
    if number > len(chosen) and inner and rng.random() < 0.5:
        chosen.add(int(rng.choice(inner)))
    room = min(number - len(chosen), len(others))
    if room > 0:
        chosen |= set(rng.choice(others, size=room, replace=False).tolist())
    return tuple(sorted(chosen))
