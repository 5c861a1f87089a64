import numpy as np
import pytest

from longtail_det2.export.compare import compare_detections

SIZE = (50, 100)


def detections(count=5):
    generator = np.random.default_rng(0)
    return {
        "boxes": generator.uniform(0, 50, (count, 4)).astype(np.float32),
        "scores": np.sort(generator.uniform(0.1, 1, count).astype(np.float32))[::-1],
        "classes": generator.integers(0, 2, count),
    }


def test_order_does_not_matter():
    one = detections(20)
    order = np.random.default_rng(1).permutation(20)
    difference = compare_detections(one, {key: value[order] for key, value in one.items()}, SIZE)
    assert difference.largest == 0 and difference.unmatched == 0


def test_differences_are_found():
    one, other = detections(), detections()
    other["boxes"][2, 1] += 0.5
    other["scores"] = other["scores"] + np.float32(1e-3)
    one["masks"], other["masks"] = np.zeros((5, 1, 3, 3)), np.full((5, 1, 3, 3), 0.25)
    difference = compare_detections(one, other, SIZE)
    assert difference.boxes == pytest.approx(0.005, abs=1e-6)
    assert difference.scores == pytest.approx(1e-3, abs=1e-6)
    assert difference.largest == difference.masks == 0.25


def test_another_class_is_another_detection():
    one, other = detections(), detections()
    other["classes"] = 1 - other["classes"]
    difference = compare_detections(one, {key: value[:1] for key, value in other.items()}, SIZE)
    assert difference.unmatched >= 4 and difference.largest == float("inf")


def test_missing_at_the_cut_only():
    one, fewer = detections(), {key: value[:4] for key, value in detections().items()}
    above, below = float(one["scores"][-1]) + 1e-4, float(one["scores"][-1]) - 1e-4
    found = compare_detections(one, fewer, SIZE, cut=above)
    assert (found.at_the_cut, found.largest) == (1, 0)
    limits = np.full(9, below)
    assert compare_detections(one, fewer, SIZE, cut=limits).unmatched == 1
    assert compare_detections(fewer, one, SIZE, cut=limits).unmatched == 1
    limits[one["classes"][-1]] = above
    assert compare_detections(one, fewer, SIZE, cut=limits).unmatched == 0


def test_nothing_equals_nothing():
    nothing = {key: value[:0] for key, value in detections().items()}
    assert compare_detections(nothing, nothing, SIZE).largest == 0
    assert compare_detections(nothing, detections(), SIZE).unmatched == 5


def test_swaps_of_near_ties_do_not_count():
    """Rounding decides which of two overlapping boxes survives, and with it whether a third one does."""
    one = {
        "boxes": np.array([[0, 0, 40, 40], [60, 60, 90, 90]], np.float32),
        "scores": np.array([0.5, 0.4], np.float32),
        "classes": np.array([0, 0]),
    }
    other = {
        "boxes": np.array([[0, 8, 40, 48], [60, 60, 90, 90], [0, 0, 40, 30]], np.float32),
        "scores": np.array([0.5 + 1e-7, 0.4, 0.3], np.float32),
        "classes": np.array([0, 0, 0]),
    }
    difference = compare_detections(one, other, SIZE, overlap=0.5)
    assert (difference.swapped, difference.unmatched, difference.largest) == (1, 0, 0)
    assert compare_detections(one, other, SIZE, overlap=0.8).largest == float("inf")
    other["scores"][0] = 0.51
    assert compare_detections(one, other, SIZE, overlap=0.5).largest > 0
    other["scores"][0], other["classes"][2] = 0.5, 1
    assert compare_detections(one, other, SIZE, overlap=0.5).unmatched == 1
