"""The classes of the generated data set and how they relate.

A leaf class is a shape of a colour ("red circle"). It has two parents, its shape and its colour, each below
one of two top classes ("shape", "colour"), so that the hierarchy is a directed acyclic graph of depth 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

# fmt: off
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40), "orange": (250, 140, 20), "yellow": (245, 220, 40), "green": (40, 150, 60),
    "cyan": (0, 195, 205), "blue": (20, 95, 225), "purple": (140, 35, 150), "pink": (245, 130, 190),
    "brown": (115, 70, 35), "white": (240, 240, 240),
}
"""sRGB; any two are at least 43 apart in CIE Lab (Delta E 1976)."""

_SIMILAR = {
    "circle": "ring square", "square": "circle triangle cross", "triangle": "star square",
    "star": "cross triangle", "cross": "star square", "ring": "circle square",
    "red": "orange brown pink", "orange": "red yellow brown", "yellow": "orange green brown",
    "green": "cyan yellow brown", "cyan": "white green brown", "blue": "purple pink cyan",
    "purple": "blue pink brown", "pink": "purple white red", "brown": "red orange pink",
    "white": "cyan pink brown",
}
"""Nearest first; colours by their distance in CIE Lab."""
# fmt: on

_PARTNERS = ["red", "yellow", "cyan", "orange", "pink", "green", "blue", "brown", "purple", "white"]
"""Two-coloured objects usually show neighbours of this ring: the order whose weakest contrast is greatest."""

ROOT_ID = "/s/entity"
MAX_LEAVES = len(SHAPES) * len(COLOURS)


@dataclass(frozen=True)
class ShapesVocabulary:
    """Class list of a generated data set: leaves first, then shapes, colours and the two top classes."""

    class_ids: tuple[str, ...]  # such as "/s/red_circle"
    class_names: tuple[str, ...]  # such as "red circle"
    parents: tuple[tuple[int, ...], ...]  # indices of the direct parents; a leaf has (shape, colour)
    leaves: tuple[tuple[str, str], ...]  # (shape name, colour name) of classes 0..L-1

    @classmethod
    def build(cls, num_leaves: int = MAX_LEAVES) -> ShapesVocabulary:
        """Take the first `num_leaves` of all leaves, colour by colour."""
        chosen = [(shape, colour) for colour in COLOURS for shape in SHAPES][:num_leaves]
        leaves = tuple(sorted(chosen, key=lambda leaf: SHAPES.index(leaf[0])))
        inner = [name for name in (*SHAPES, *COLOURS) if any(name in leaf for leaf in leaves)]
        names = [f"{colour} {shape}" for shape, colour in leaves] + inner + ["shape", "colour"]
        index = {name: i for i, name in enumerate(names)}
        parents = [(index[shape], index[colour]) for shape, colour in leaves]
        parents += [(index["shape" if name in SHAPES else "colour"],) for name in inner]
        class_ids = tuple("/s/" + name.replace(" ", "_") for name in names)
        return cls(class_ids, tuple(names), (*parents, (), ()), leaves)

    @property
    def num_classes(self) -> int:
        """K: leaves and inner classes; the virtual root is not counted."""
        return len(self.class_ids)

    @property
    def num_leaves(self) -> int:
        """L: leaves are the classes [0, L)."""
        return len(self.leaves)

    def ancestors(self, label: int) -> set[int]:
        """Return all proper ancestors of a class."""
        return set(self.parents[label]).union(*(self.ancestors(parent) for parent in self.parents[label]))

    def leaves_below(self, label: int) -> list[int]:
        """Return the leaves that are `label` or descend from it."""
        return [leaf for leaf in range(self.num_leaves) if leaf == label or label in self.ancestors(leaf)]

    def tree(self) -> dict[str, Any]:
        """Return the Open Images hierarchy: a tree below a virtual root, each leaf below both parents."""

        def node(label: int) -> dict[str, Any]:
            children = [node(i) for i, above in enumerate(self.parents) if label in above]
            return {"LabelName": self.class_ids[label], **({"Subcategory": children} if children else {})}

        top = [node(i) for i, above in enumerate(self.parents) if not above]
        return {"LabelName": ROOT_ID, "Subcategory": top}

    def similar_leaf(self, leaf: int, by_colour: bool) -> int:
        """Return the leaf most easily confused with `leaf`: same shape and similar colour, or the reverse."""
        ranked = self.similar_leaves(leaf)
        same_kind = [j for j in ranked if (self.leaves[j][0] == self.leaves[leaf][0]) == by_colour]
        return (same_kind or ranked or [(leaf + 1) % self.num_leaves])[0]

    def similar_leaves(self, leaf: int) -> list[int]:
        """Return leaves with the shape or colour of `leaf` and similar in the other one, nearest first."""
        shape, colour = self.leaves[leaf]
        pairs = zip_longest(_SIMILAR[colour].split(), _SIMILAR[shape].split())
        keys = [key for other, figure in pairs for key in ((shape, other), (figure, colour))]
        return [self.leaves.index(key) for key in keys if key in self.leaves]

    def co_label_pairs(self, partners_only: bool) -> np.ndarray:
        """Return the pairs (n, 2) of leaves that a two-coloured object may have: same shape, other colour.

        `partners_only` leaves the neighbours in a fixed ring of contrasting colours.
        """
        pairs: set[tuple[int, int]] = set()
        for shape in SHAPES:
            ring = [self.leaves.index((shape, c)) for c in _PARTNERS if (shape, c) in self.leaves]
            for i, leaf in enumerate(ring):
                others = [ring[(i + 1) % len(ring)]] if partners_only else ring
                pairs |= {(min(leaf, other), max(leaf, other)) for other in others if other != leaf}
        return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
