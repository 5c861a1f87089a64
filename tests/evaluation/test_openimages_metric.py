from dataclasses import replace

import numpy as np
import pytest

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.open_images_csv import read_classes
from longtail_det2.evaluation import openimages_metric
from longtail_det2.evaluation.openimages_io import (
    Detections,
    GroundTruth,
    read_detections,
    read_ground_truth,
)
from longtail_det2.evaluation.openimages_metric import (
    average_precision,
    evaluate_detections,
    expand_ground_truth,
)
from longtail_det2.utils.errors import ConfigError

UNIT = [0.0, 0.0, 1.0, 1.0]
LEFT = [0.0, 0.0, 0.5, 1.0]
RIGHT = [0.5, 0.0, 1.0, 1.0]


def expand_detections(detections, hierarchy):
    """Every detection repeated for each proper ancestor of its class."""
    rows, classes = hierarchy.expand(np.arange(len(detections)), detections.cls)
    return Detections(detections.image[rows], classes, detections.score[rows], detections.box[rows])


def truth_of(*rows, labels=()):
    """Rows (image, cls, box, group_of); labels (image, cls, present)."""
    return GroundTruth(
        np.array([r[0] for r in rows], dtype=np.int64),
        np.array([r[1] for r in rows], dtype=np.int64),
        np.array([r[2] for r in rows], dtype=np.float64).reshape(-1, 4),
        np.array([r[3] for r in rows], dtype=bool),
        np.array([r[0] for r in labels], dtype=np.int64),
        np.array([r[1] for r in labels], dtype=np.int64),
        np.array([r[2] for r in labels], dtype=bool),
    )


def without_labels(truth):
    names = ("label_image", "label_cls", "label_present")
    return replace(truth, **{name: getattr(truth, name)[:0] for name in names})


def detections_of(*rows):
    """Rows (image, cls, score, box)."""
    return Detections(
        np.array([r[0] for r in rows], dtype=np.int64),
        np.array([r[1] for r in rows], dtype=np.int64),
        np.array([r[2] for r in rows], dtype=np.float64),
        np.array([r[3] for r in rows], dtype=np.float64).reshape(-1, 4),
    )


def permuted(detections, rng):
    order = rng.permutation(len(detections))
    return Detections(*(getattr(detections, name)[order] for name in ("image", "cls", "score", "box")))


@pytest.fixture(scope="module")
def golden(oid):
    class_ids, _ = read_classes(oid / "classes.csv")
    hierarchy = LabelHierarchy.from_json(oid / "hierarchy.json", class_ids)
    truth, image_ids, _ = read_ground_truth(oid / "boxes.csv", oid / "imagelabels.csv", class_ids)
    detections, _ = read_detections(oid / "predictions.csv", class_ids, image_ids)
    return class_ids, hierarchy, truth, detections


PROTOCOLS = {
    "official": (True, {}),
    "expanded_gt_and_predictions": (True, {"expand": True}),
    "unexpanded": (False, {}),
    "expanded_no_image_labels": (True, {"image_labels": False}),
    "expanded_groupof_weight0": (True, {"group_of_weight": 0.0}),
    "v2_protocol_expanded": (True, {"group_of_weight": 0.0, "verified_filter": False}),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_reference_values(golden, expected, protocol, seed):
    class_ids, hierarchy, truth, detections = golden
    expand_truth, options = PROTOCOLS[protocol]
    options = dict(options)
    if expand_truth:
        truth = expand_ground_truth(truth, hierarchy)
    if not options.pop("image_labels", True):
        truth = without_labels(truth)
    if options.pop("expand", False):
        options["prediction_hierarchy"] = hierarchy
    if seed is not None:
        detections = permuted(detections, np.random.default_rng(seed))
    result = evaluate_detections(truth, detections, len(class_ids), **options)
    reference = expected[protocol]
    assert result.metric == reference["metric"]
    assert result.mean_ap == pytest.approx(reference["mAP"], abs=1e-12)
    assert result.num_images == reference["num_images"]
    assert dict(zip(class_ids, result.num_gt.tolist(), strict=True)) == reference["num_gt"]
    for label, ap in zip(class_ids, result.ap, strict=True):
        if reference["AP"][label] is None:
            assert np.isnan(ap)
        else:
            assert ap == pytest.approx(reference["AP"][label], abs=1e-12)


def test_expansion_equals_the_reference_tool(oid, golden):
    class_ids, hierarchy, truth, detections = golden
    reference, image_ids, _ = read_ground_truth(
        oid / "boxes_expanded.csv", oid / "imagelabels_expanded.csv", class_ids
    )
    ours = expand_ground_truth(truth, hierarchy)

    def box_rows(t):
        return sorted(zip(t.image, t.cls, t.group_of, *t.box.T, strict=True))

    def label_rows(t):
        return sorted(zip(t.label_image, t.label_cls, t.label_present, strict=True))

    assert box_rows(ours) == box_rows(reference)
    assert label_rows(ours) == label_rows(reference)
    scored, _ = read_detections(oid / "predictions_expanded.csv", class_ids, image_ids)
    ours = expand_detections(detections, hierarchy)
    assert sorted(zip(ours.image, ours.cls, ours.score, *ours.box.T, strict=True)) == sorted(
        zip(scored.image, scored.cls, scored.score, *scored.box.T, strict=True)
    )


def test_batches_and_chunks_do_not_change_anything(golden, monkeypatch):
    class_ids, hierarchy, truth, detections = golden
    truth = expand_ground_truth(truth, hierarchy)
    whole = evaluate_detections(truth, detections, len(class_ids), prediction_hierarchy=hierarchy)
    copies = evaluate_detections(truth, expand_detections(detections, hierarchy), len(class_ids))
    monkeypatch.setattr(openimages_metric, "_DETECTIONS_AT_ONCE", 7)
    monkeypatch.setattr(openimages_metric, "_OVERLAPS_AT_ONCE", 5)
    small = evaluate_detections(truth, detections, len(class_ids), prediction_hierarchy=hierarchy)
    for other in (copies, small):
        np.testing.assert_array_equal(whole.ap, other.ap)
        assert whole.counts == other.counts


def test_counts_add_up(golden):
    class_ids, _, truth, detections = golden
    counts = dict(evaluate_detections(truth, detections, len(class_ids)).counts)
    counts.pop("groups_found")
    assert counts.pop("detections") == sum(counts.values()) == len(detections)


def test_no_detections_is_zero_and_no_truth_is_nan():
    truth = truth_of((0, 0, UNIT, False), labels=[(0, 1, True)])
    result = evaluate_detections(truth, detections_of(), 2)
    assert result.ap[0] == 0.0 and np.isnan(result.ap[1]) and result.mean_ap == 0.0
    nothing = evaluate_detections(truth_of(), detections_of((0, 0, 0.5, UNIT)), 1)
    assert np.isnan(nothing.mean_ap) and nothing.num_images == 0
    assert nothing.counts["image_not_annotated"] == 1


def test_threshold_is_inclusive():
    truth = truth_of((0, 0, UNIT, False))
    detections = detections_of((0, 0, 0.5, LEFT))
    assert evaluate_detections(truth, detections, 1, iou_threshold=0.5).mean_ap == 1.0
    assert evaluate_detections(truth, detections, 1, iou_threshold=np.nextafter(0.5, 1)).mean_ap == 0.0


def test_second_best_box_is_not_tried():
    # Both detections overlap the first box most; the second would match the other box too, but may not.
    truth = truth_of((0, 0, [0, 0, 1.0, 1], False), (0, 0, [0.2, 0, 1.2, 1], False))
    detections = detections_of((0, 0, 0.9, [0, 0, 1.0, 1]), (0, 0, 0.8, [0.05, 0, 1.05, 1]))
    counts = evaluate_detections(truth, detections, 1).counts
    assert (counts["true_positives"], counts["false_positives"]) == (1, 1)


def test_equal_boxes_of_the_truth_share_one_match():
    # A box annotated as child and as parent becomes two equal boxes of the parent: one can be found.
    truth = truth_of((0, 0, UNIT, False), (0, 0, UNIT, False))
    detections = detections_of((0, 0, 0.9, UNIT), (0, 0, 0.8, UNIT))
    assert evaluate_detections(truth, detections, 1).mean_ap == 0.5


def test_group_of_absorbs_and_counts_once():
    truth = truth_of((0, 0, UNIT, True), (0, 0, [2, 0, 3, 1], False))
    detections = detections_of(
        (0, 0, 0.9, [2, 0, 3, 1]), (0, 0, 0.8, LEFT), (0, 0, 0.7, RIGHT), (0, 0, 0.6, [2, 0, 3, 1])
    )
    result = evaluate_detections(truth, detections, 1)
    assert result.counts["absorbed_by_group_of"] == 2 and result.counts["groups_found"] == 1
    assert result.num_gt.tolist() == [2.0] and result.mean_ap == 1.0
    half = evaluate_detections(truth, detections, 1, group_of_weight=0.5)
    assert half.num_gt.tolist() == [1.5] and half.mean_ap == pytest.approx(1.0, abs=1e-15)
    ignored = evaluate_detections(truth, detections, 1, group_of_weight=0.0)
    assert ignored.num_gt.tolist() == [1.0] and ignored.mean_ap == 1.0


def test_group_of_only():
    truth = truth_of((0, 0, UNIT, True))
    assert evaluate_detections(truth, detections_of((0, 0, 0.9, LEFT)), 1).mean_ap == 1.0
    assert evaluate_detections(truth, detections_of(), 1).mean_ap == 0.0
    assert np.isnan(
        evaluate_detections(truth, detections_of((0, 0, 0.9, LEFT)), 1, group_of_weight=0).mean_ap
    )
    # A group counts as found only with a positive score, and its detections are absorbed all the same.
    zero = evaluate_detections(truth, detections_of((0, 0, 0.0, LEFT)), 1)
    assert zero.mean_ap == 0.0 and zero.counts["absorbed_by_group_of"] == 1


def test_unverified_classes_and_unannotated_images_are_not_read():
    truth = truth_of((0, 0, UNIT, False), labels=[(1, 0, False)])
    detections = detections_of(
        (0, 0, 0.1, UNIT),
        (0, 1, 0.9, UNIT),  # class 1 is not verified in image 0
        (1, 0, 0.8, UNIT),  # verified absent: a false positive
        (2, 0, 0.7, UNIT),  # image without any annotation row
        (-1, 0, 0.7, UNIT),
        (99, 0, 0.7, UNIT),
    )
    result = evaluate_detections(truth, detections, 2)
    assert result.mean_ap == 0.5 and result.num_images == 2
    assert result.counts["class_not_verified"] == 1 and result.counts["image_not_annotated"] == 3
    assert evaluate_detections(without_labels(truth), detections, 2).mean_ap == 1.0


def test_inverted_detections_are_dropped():
    truth = truth_of((0, 0, UNIT, False))
    boxes = ([1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 1, 1])
    detections = detections_of(*((0, 0, 0.9, box) for box in boxes), (0, 0, 0.1, UNIT))
    result = evaluate_detections(truth, detections, 1)
    assert result.counts["inverted"] == 4 and result.mean_ap == 1.0


def test_cap_keeps_the_highest_scores_of_each_class_and_image(monkeypatch):
    count = 10_050
    boxes = np.tile(np.array([[2.0, 2.0, 3.0, 3.0]]), (count, 1))
    boxes[count - 1] = UNIT
    score = np.linspace(1.0, 0.1, count)
    detections = Detections(np.zeros(count, int), np.zeros(count, int), score, boxes)
    truth = truth_of((0, 0, UNIT, False))
    result = evaluate_detections(truth, detections, 1)
    assert result.counts["over_limit"] == 50 and result.mean_ap == 0.0
    monkeypatch.setattr(openimages_metric, "MAX_DETECTIONS", count)
    assert evaluate_detections(truth, detections, 1).mean_ap > 0.0


@pytest.mark.parametrize("seed", range(5))
def test_order_of_detections_with_equal_scores_does_not_matter(seed, monkeypatch):
    monkeypatch.setattr(openimages_metric, "MAX_DETECTIONS", 10)
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 4, (200, 2))
    box = np.concatenate([corner, corner + rng.integers(1, 4, (200, 2))], axis=1).astype(float)
    detections = Detections(
        rng.integers(0, 4, 200), rng.integers(0, 3, 200), rng.integers(0, 3, 200) / 2, box
    )
    none = np.zeros(0, int)
    image, cls, group_of = rng.integers(0, 4, 40), rng.integers(0, 3, 40), rng.random(40) < 0.2
    truth = GroundTruth(image, cls, box[:40], group_of, none, none, none > 0)
    first = evaluate_detections(truth, detections, 3)
    for _ in range(5):
        again = evaluate_detections(truth, permuted(detections, rng), 3)
        np.testing.assert_array_equal(first.ap, again.ap)


def test_average_precision_by_hand():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    assert average_precision(np.array([1.0, 0.0, 1.0]), 2) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-15)
    assert average_precision(np.zeros(3), 2) == 0.0
    assert np.isnan(average_precision(np.ones(0), 0))


def test_options_out_of_range():
    truth, detections = truth_of((0, 0, UNIT, False)), detections_of((0, 0, 0.5, UNIT))
    for option in ({"iou_threshold": 0}, {"group_of_weight": -1}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            evaluate_detections(truth, detections, 1, **option)
