"""Plots of class statistics: which classes are shown, names of any kind, files."""

import itertools
import warnings

import numpy as np
import pytest
from factories import CAR, CLASS_IDS, FISH, PARENTS, PUPPY
from PIL import Image

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.statistics import ClassStatistics, frequency_bins
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.plots import (
    draw_heat_map,
    draw_long_tail,
    inequality_text,
    most_cooccurring,
    related_classes,
)

TREE = LabelHierarchy.from_json(PARENTS, CLASS_IDS)


def statistics_of(pairs, hierarchy=TREE):
    """Of 50 objects of each class, and those of some pairs of classes."""
    cooccurrence = np.diag([50] * 6)
    for (one, other), count in pairs.items():
        cooccurrence[one, other] = cooccurrence[other, one] = count
    return ClassStatistics(CLASS_IDS, 100, [50] * 6, [50] * 6, cooccurrence, None, hierarchy)


def test_related_classes_are_those_that_one_label_implies():
    implied = [{label, *TREE.ancestors_of(label).tolist()} for label in range(6)]
    related = related_classes(statistics_of({}))
    for i, j in itertools.product(range(6), repeat=2):
        assert related[i, j] == any({i, j} <= one for one in implied)


def test_partners_stand_side_by_side_and_unrelated_ones_first():
    statistics = statistics_of({(CAR, FISH): 25, (PUPPY, CAR): 5})
    assert most_cooccurring(statistics, 3).tolist() == [FISH, CAR, PUPPY]
    assert sorted(most_cooccurring(statistics).tolist()) == list(range(6))
    flat = statistics_of({(i, i + 3): 45 - 5 * i for i in range(3)}, None)
    assert most_cooccurring(flat).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_of_any_kind(tmp_path, suffix):
    """Dollars would be formulas, line breaks would be lines, and no font has all characters."""
    names = ("$x_", r"$\frac$", "two\nlines", "猫", "<b>&amp;", "a very long name " * 9)
    path, contents = tmp_path / f"map.{suffix}", []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_heat_map(path, TREE.ancestors.astype(float), names, np.arange(6))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1], "equal data give equal files"


def test_colours_follow_the_values(tmp_path):
    draw_heat_map(tmp_path / "map.png", np.array([[0, 1], [0.04, 0]]), "ab", np.arange(2))
    colors = {tuple(c) for c in np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)}
    assert (6, 44, 74) in colors, "the darkest colour means 1"


def test_curves_of_any_length_and_files_that_cannot_be_written(tmp_path):
    path = tmp_path / "tail.png"
    for counts in ([5], [0, 0], [3, 2, 1], [1_000_000, 1000, 1, 0], list(range(400))):
        draw_long_tail(path, np.array(counts), frequency_bins(np.array(counts)))
        assert Image.open(path).size == (1290, 660)
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(tmp_path / "absent" / "tail.png", np.array([1]), np.array([0]))
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(path, np.array([1]), np.array([0]))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("counts", [[7], [5, 5, 5], [9, 0, 3, 1], [1000, 100, 10, 1, 0, 0], [0, 8]])
def test_inequality_of_counts(counts):
    differences = sum(abs(a - b) for a in counts for b in counts)
    gini = differences / (2 * len(counts) * sum(counts))
    ratio = max(counts) / min(one for one in counts if one)
    assert inequality_text(np.array(counts)).endswith(f"{ratio:,g} : 1, Gini {gini:.3f}")
    assert inequality_text(np.zeros(3)) == "no class has images"
