"""The classes of the generated shapes data set and how they relate.

A leaf class is a shape of a colour ("red circle"). It has two parents, its shape and its colour, each below
one of two top classes ("shape", "colour"), so that the hierarchy is a directed acyclic graph of depth 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from longtail_det2.utils.errors import ConfigError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 150, 60),
    "cyan": (0, 195, 205),
    "blue": (20, 95, 225),
    "purple": (140, 35, 150),
    "pink": (245, 130, 190),
    "brown": (115, 70, 35),
    "white": (240, 240, 240),
}
"""sRGB; any two are at least 43 apart in CIE Lab (Delta E 1976)."""

SIMILAR_SHAPES = {
    "circle": ("ring", "square"),
    "square": ("circle", "triangle", "cross"),
    "triangle": ("star", "square"),
    "star": ("cross", "triangle"),
    "cross": ("star", "square"),
    "ring": ("circle", "square"),
}
"""Most similar first: what a hurried annotator would write instead."""

SIMILAR_COLOURS = {
    "red": ("orange", "brown", "pink"),
    "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "green", "brown"),
    "green": ("cyan", "yellow", "brown"),
    "cyan": ("white", "green", "brown"),
    "blue": ("purple", "pink", "cyan"),
    "purple": ("blue", "pink", "brown"),
    "pink": ("purple", "white", "red"),
    "brown": ("red", "orange", "pink"),
    "white": ("cyan", "pink", "brown"),
}
"""The three nearest in CIE Lab, nearest first."""

_PARTNER_CYCLE = (
    "red",
    "yellow",
    "cyan",
    "orange",
    "pink",
    "green",
    "blue",
    "brown",
    "purple",
    "white",
)
"""Two-coloured objects usually show neighbours of this ring: the order whose weakest contrast is greatest."""

ROOT_ID = "/s/entity"
MAX_LEAVES = len(SHAPES) * len(COLOURS)


@dataclass(frozen=True)
class ShapesVocabulary:
    """Class list of a generated data set: leaves first, then shapes, colours and the two top classes.

    Attributes:
        class_ids: K identifiers such as "/s/red_circle".
        class_names: K display names such as "red circle".
        parents: for each class the indices of its direct parents; a leaf has (shape, colour).
        leaves: for each leaf its (shape name, colour name); leaves are classes 0..L-1.
    """

    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]
    leaves: tuple[tuple[str, str], ...]
    _leaf_index: dict[tuple[str, str], int] = field(repr=False)

    @classmethod
    def build(cls, num_leaves: int = MAX_LEAVES) -> ShapesVocabulary:
        """The first `num_leaves` of all leaves, in an order that uses shapes and colours evenly.

        Raises:
            ConfigError: `num_leaves` is not in [2, 60].
        """
        if not 2 <= num_leaves <= MAX_LEAVES:
            raise ConfigError(f"num_leaves must be in [2, {MAX_LEAVES}], got {num_leaves}")
        colours = tuple(COLOURS)
        # Walking the diagonals gives every shape a run of colours that starts elsewhere.
        diagonals = [
            (shape, colours[(3 * row + step) % len(colours)])
            for step in range(len(colours))
            for row, shape in enumerate(SHAPES)
        ]
        chosen = set(diagonals[:num_leaves])
        leaves = tuple((s, c) for s in SHAPES for c in colours if (s, c) in chosen)
        inner = [s for s in SHAPES if any(s == leaf[0] for leaf in leaves)]
        inner += [c for c in colours if any(c == leaf[1] for leaf in leaves)]
        names = [f"{colour} {shape}" for shape, colour in leaves] + inner + ["shape", "colour"]
        index = {name: i for i, name in enumerate(names)}
        parents = [(index[shape], index[colour]) for shape, colour in leaves]
        parents += [(index["shape" if name in SHAPES else "colour"],) for name in inner]
        parents += [(), ()]
        return cls(
            class_ids=tuple("/s/" + name.replace(" ", "_") for name in names),
            class_names=tuple(names),
            parents=tuple(parents),
            leaves=leaves,
            _leaf_index={leaf: i for i, leaf in enumerate(leaves)},
        )

    @property
    def num_classes(self) -> int:
        """K: leaves and inner classes; the virtual root is none."""
        return len(self.class_ids)

    @property
    def num_leaves(self) -> int:
        """L: leaves are the classes [0, L)."""
        return len(self.leaves)

    def ancestors(self, label: int) -> set[int]:
        """All proper ancestors of a class."""
        found: set[int] = set()
        for parent in self.parents[label]:
            found |= {parent} | self.ancestors(parent)
        return found

    def leaves_below(self, label: int) -> list[int]:
        """The leaves that are `label` or descend from it."""
        return [leaf for leaf in range(self.num_leaves) if leaf == label or label in self.ancestors(leaf)]

    def tree(self) -> dict[str, Any]:
        """Open Images hierarchy: a tree below a virtual root in which each leaf stands under both parents."""

        def node(label: int) -> dict[str, Any]:
            children = [i for i, above in enumerate(self.parents) if label in above]
            entry: dict[str, Any] = {"LabelName": self.class_ids[label]}
            if children:
                entry["Subcategory"] = [node(child) for child in children]
            return entry

        top = [node(i) for i, above in enumerate(self.parents) if not above]
        return {"LabelName": ROOT_ID, "Subcategory": top}

    def similar_leaf(self, leaf: int, by_colour: bool) -> int:
        """The leaf most easily confused with `leaf`: same shape and similar colour, or the reverse.

        Falls back on the other kind, then on any other leaf, where the subset of leaves has none.
        """
        ranked = self.similar_leaves(leaf)
        same_kind = [j for j in ranked if (self.leaves[j][0] == self.leaves[leaf][0]) == by_colour]
        return (same_kind or ranked or [(leaf + 1) % self.num_leaves])[0]

    def similar_leaves(self, leaf: int) -> list[int]:
        """Leaves that share the shape or the colour of `leaf` and are similar in the other, nearest first."""
        shape, colour = self.leaves[leaf]
        by_colour = [(shape, other) for other in SIMILAR_COLOURS[colour]]
        by_shape = [(other, colour) for other in SIMILAR_SHAPES[shape]]
        keys = [key for pair in zip_longest(by_colour, by_shape) for key in pair if key is not None]
        return [self._leaf_index[key] for key in keys if key in self._leaf_index]

    def co_label_pairs(self, partners_only: bool) -> np.ndarray:
        """Pairs of leaves that one two-coloured object may bear: same shape, different colours.

        Args:
            partners_only: only the colours that are neighbours in a fixed ring of contrasting colours
                (filtered to the colours that the shape has), so that co-labels are systematic, as in
                real annotations; else every pair of colours.

        Returns:
            (n, 2) int64 leaf indices, each pair once, smaller index first.
        """
        pairs: set[tuple[int, int]] = set()
        for shape in SHAPES:
            ring = [self._leaf_index[shape, c] for c in _PARTNER_CYCLE if (shape, c) in self._leaf_index]
            for i, leaf in enumerate(ring):
                others = [ring[(i + 1) % len(ring)]] if partners_only else ring
                pairs |= {(min(leaf, other), max(leaf, other)) for other in others if other != leaf}
        return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)

    def nested_pairs(self) -> np.ndarray:
        """Which leaf may lie within which: same shape, and the colour opposite in the ring of colours.

        Opposite colours are no neighbours in the ring, so that nested objects and two-coloured objects show
        different pairs of leaves (where a shape has at least four colours). Their contrast is at least 58 in
        CIE Lab where it has all ten.

        Returns:
            (n, 2) int64 leaf indices, (outer, inner); a leaf is outer in one pair at most. A shape of one
            colour has none.
        """
        pairs: list[tuple[int, int]] = []
        for shape in SHAPES:
            ring = [self._leaf_index[shape, c] for c in _PARTNER_CYCLE if (shape, c) in self._leaf_index]
            step = max(len(ring) // 2, 1)
            pairs += [(leaf, ring[(i + step) % len(ring)]) for i, leaf in enumerate(ring) if len(ring) > 1]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)
