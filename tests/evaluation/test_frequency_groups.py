import numpy as np
import pytest

from longtail_det2.evaluation import split_by_frequency
from longtail_det2.utils.errors import ConfigError


def test_thirds_by_count():
    assert split_by_frequency(np.array([5, 100, 1, 50, 20, 2])).tolist() == [1, 0, 2, 0, 1, 2]


def test_uneven_thirds_give_the_extra_class_to_the_head():
    assert split_by_frequency(np.array([4, 3, 2, 1])).tolist() == [0, 0, 1, 2]
    assert split_by_frequency(np.array([5, 4, 3, 2, 1])).tolist() == [0, 0, 1, 1, 2]


def test_equal_counts_are_ordered_by_class():
    assert split_by_frequency(np.full(6, 7)).tolist() == [0, 0, 1, 1, 2, 2]


def test_unseen_classes_are_tail():
    assert split_by_frequency(np.array([3, 0, 0, 0, 0, 0])).tolist() == [0, 2, 2, 2, 2, 2]
    assert split_by_frequency(np.array([0, 5]), (-1, 3)).tolist() == [2, 0]


def test_thresholds():
    assert split_by_frequency(np.array([1, 10, 11, 100, 101]), (10, 100)).tolist() == [2, 2, 1, 1, 0]


def test_no_classes_and_empty_thresholds():
    assert split_by_frequency(np.zeros(0)).tolist() == []
    assert split_by_frequency(np.array([2, 1, 3]), ()).tolist() == [1, 2, 0]


@pytest.mark.parametrize("thresholds", [(1,), (5, 2), (1, 2, 3)])
def test_bad_thresholds(thresholds):
    with pytest.raises(ConfigError, match="low <= high"):
        split_by_frequency(np.array([1, 2]), thresholds)


def test_bad_counts():
    with pytest.raises(ConfigError, match="counts must be"):
        split_by_frequency(np.array([-1, 2]))
