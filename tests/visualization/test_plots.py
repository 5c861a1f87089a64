"""Plots of class statistics: which classes are shown, names of any kind, files."""

import itertools
import warnings

import numpy as np
import pytest
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

IDS = ["animal", "dog", "puppy", "pet", "fish", "car"]
TREE = LabelHierarchy.from_json({"dog": ["animal", "pet"], "puppy": ["dog"], "fish": ["pet"]}, IDS)


def statistics_of(pairs, objects=(50,) * 6, hierarchy=TREE):
    """With the objects of some pairs of classes."""
    cooccurrence = np.diag(objects)
    for (one, other), count in pairs.items():
        one, other = IDS.index(one), IDS.index(other)
        cooccurrence[one, other] = cooccurrence[other, one] = count
    return ClassStatistics(IDS, 100, objects, objects, cooccurrence, None, hierarchy)


def test_related_classes_are_those_that_one_label_implies():
    bears = [{label, *TREE.ancestors_of(label).tolist()} for label in range(6)]
    related = related_classes(statistics_of({}))
    for i, j in itertools.product(range(6), repeat=2):
        assert related[i, j] == any({i, j} <= one for one in bears)
    assert related[IDS.index("animal"), IDS.index("pet")], "a dog is both"
    assert not related[IDS.index("animal"), IDS.index("fish")]


def test_classes_with_unrelated_partners_come_first():
    statistics = statistics_of({("car", "fish"): 25, ("puppy", "car"): 5})
    assert [IDS[c] for c in most_cooccurring(statistics, 2)] == ["fish", "car"]
    assert [IDS[c] for c in most_cooccurring(statistics, 3)] == ["fish", "car", "puppy"]
    assert sorted(most_cooccurring(statistics).tolist()) == list(range(6))


def test_partners_stand_side_by_side():
    pairs = {(IDS[i], IDS[i + 3]): 45 - 5 * i for i in range(3)}
    assert most_cooccurring(statistics_of(pairs, hierarchy=None)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_of_any_kind(tmp_path, suffix):
    """Dollars would be formulas, line breaks would be lines, and no font has all characters."""
    names = ("$x_", r"$\frac$", "two\nlines", "猫", "<b>&amp;", "a very long name " * 9)
    path = tmp_path / f"map.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_heat_map(path, TREE.ancestors.astype(float), names, np.arange(6))
    content = path.read_bytes()
    draw_heat_map(path, TREE.ancestors.astype(float), names, np.arange(6))
    assert path.read_bytes() == content, "equal data give equal files"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_colours_follow_the_values(tmp_path):
    draw_heat_map(tmp_path / "map.png", np.array([[0, 1], [0.04, 0]]), "ab", np.arange(2))
    colors = {tuple(c) for c in np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)}
    assert (6, 44, 74) in colors, "the darkest colour means 1"


@pytest.mark.parametrize("counts", [[5], [0, 0], [3, 2, 1], [1_000_000, 1000, 1, 0], list(range(400))])
def test_curves_of_any_length(tmp_path, counts):
    counts = np.array(counts)
    path = tmp_path / "tail.png"
    draw_long_tail(path, counts, frequency_bins(counts))
    assert Image.open(path).size == (1290, 660)


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(tmp_path / "absent" / "tail.png", np.array([1]), np.array([0]))
    (tmp_path / "tail.png").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(tmp_path / "tail.png", np.array([1]), np.array([0]))
    assert [one.name for one in tmp_path.iterdir()] == ["tail.png"]


@pytest.mark.parametrize("counts", [[7], [5, 5, 5], [9, 0, 3, 1], [1000, 100, 10, 1, 0, 0], [0, 8]])
def test_inequality_of_counts(counts):
    differences = sum(abs(a - b) for a in counts for b in counts)
    gini = differences / (2 * len(counts) * sum(counts))
    ratio = max(counts) / min(one for one in counts if one)
    assert inequality_text(np.array(counts)).endswith(f"{ratio:,g} : 1, Gini {gini:.3f}")
    assert inequality_text(np.zeros(3)) == "no class has images"
