"""Pictures of class statistics: which classes are shown, names of any kind, files."""

import itertools
import warnings

import numpy as np
import pytest
from PIL import Image

from longtail_det2.data.category_statistics import long_tail
from longtail_det2.data.concurrent_rates import ConcurrentRates
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.category_plots import (
    draw_heat_map,
    draw_long_tail,
    most_concurrent,
    ratio_text,
    related_classes,
)

IDS = ["animal", "dog", "puppy", "pet", "fish", "car"]
TREE = LabelHierarchy.from_parents({"dog": ["animal", "pet"], "puppy": ["dog"], "fish": ["pet"]}, IDS)


def rates_of(pairs, objects=(50,) * 6):
    rates = TREE.ancestors.astype(float)
    for (one, other), value in pairs.items():
        rates[IDS.index(one), IDS.index(other)] = value
    return ConcurrentRates(rates, tuple(IDS), objects=np.array(objects))


def test_related_classes_are_those_that_one_label_implies():
    bears = [{label, *TREE.ancestors_of(label).tolist()} for label in range(6)]
    related = related_classes(TREE)
    for i, j in itertools.product(range(6), repeat=2):
        assert related[i, j] == any({i, j} <= one for one in bears)
    assert related[IDS.index("animal"), IDS.index("pet")], "a dog is both"
    assert not related[IDS.index("animal"), IDS.index("fish")]


def test_classes_with_unrelated_partners_come_first():
    rates = rates_of({("car", "fish"): 0.5, ("puppy", "car"): 0.1})
    related = related_classes(TREE)
    assert [IDS[c] for c in most_concurrent(rates, related, 2)] == ["fish", "car"]
    assert [IDS[c] for c in most_concurrent(rates, related, 3)] == ["fish", "car", "puppy"]
    assert sorted(most_concurrent(rates, related, 99).tolist()) == list(range(6))


def test_few_objects_are_little_evidence():
    rates = rates_of({("car", "fish"): 0.5, ("puppy", "fish"): 1.0}, objects=(50, 50, 1, 50, 50, 50))
    assert {IDS[c] for c in most_concurrent(rates, related_classes(TREE), 2)} == {"car", "fish"}
    by_hand = rates_of({("car", "fish"): 0.5, ("puppy", "fish"): 1.0}, objects=(0,) * 6)
    assert {IDS[c] for c in most_concurrent(by_hand, related_classes(TREE), 2)} == {"puppy", "fish"}


def test_partners_stand_side_by_side():
    rates = np.zeros((6, 6))
    for i, j in ((0, 3), (1, 4), (2, 5)):
        rates[i, j] = rates[j, i] = 0.9 - i / 10
    order = most_concurrent(ConcurrentRates(rates, tuple(IDS)), np.zeros((6, 6), bool), 6).tolist()
    assert order == [0, 3, 1, 4, 2, 5]


def test_nothing_concurs():
    assert len(most_concurrent(ConcurrentRates(np.zeros((6, 6)), tuple(IDS)), related_classes(TREE), 5)) == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_of_any_kind(tmp_path, suffix):
    """Dollars would be formulas, line breaks would be lines, and no font has all characters."""
    names = ("$x_", r"$\frac$", "two\nlines", "猫", "<b>&amp;", "a very long name " * 9)
    path = tmp_path / f"map.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_heat_map(path, ConcurrentRates(TREE.ancestors, tuple(IDS), names), np.arange(6))
    content = path.read_bytes()
    draw_heat_map(path, ConcurrentRates(TREE.ancestors, tuple(IDS), names), np.arange(6))
    assert path.read_bytes() == content, "equal data give equal files"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_colours_follow_the_values(tmp_path):
    rates = ConcurrentRates([[0, 1], [0.04, 0]], ("a", "b"))
    draw_heat_map(tmp_path / "map.png", rates, np.arange(2))
    colors = {tuple(c) for c in np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)}
    assert (6, 44, 74) in colors, "the darkest colour means 1"


@pytest.mark.parametrize("counts", [[5], [0, 0], [3, 2, 1], [1_000_000, 1000, 1, 0], list(range(400))])
def test_curves_of_any_length(tmp_path, counts):
    counts = np.array(counts)
    path = tmp_path / "tail.png"
    draw_long_tail(path, long_tail(counts), "images", counts // 2)
    assert Image.open(path).size == (1290, 660)


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(tmp_path / "absent" / "tail.png", long_tail(np.array([1])), "images")
    (tmp_path / "tail.png").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        draw_long_tail(tmp_path / "tail.png", long_tail(np.array([1])), "images")
    assert [one.name for one in tmp_path.iterdir()] == ["tail.png"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1 : 1"), (2.5, "2.5 : 1"), (149.6, "150 : 1"), (2e6, "2,000,000 : 1")]
)
def test_ratios_as_text(value, text):
    assert ratio_text(value) == text
