"""The metric's arrays: random cases against the obvious implementation in openimages_oracle.py, and batches.

The golden values are compared in test_evaluate_open_images.py.
"""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import openimages_oracle
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
from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth


def random_boxes(rng, count, grid):
    """On a coarse grid many overlaps tie exactly; `grid` 0 means anywhere."""
    if grid == 0:
        corner = rng.random((count, 2)) * 0.6
        return np.concatenate([corner, corner + 0.1 + 0.3 * rng.random((count, 2))], axis=1)
    corner = rng.integers(0, grid, (count, 2))
    return np.concatenate([corner, corner + rng.integers(1, grid, (count, 2))], axis=1).astype(float)


def random_case(seed):
    rng = np.random.default_rng(seed)
    classes, images = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    grid = int(rng.choice([0, 3, 5]))
    boxes, labels, scored = (int(rng.integers(0, n)) for n in (25, 8, 60))
    truth = GroundTruth(
        image=rng.integers(0, images, boxes),
        cls=rng.integers(0, classes, boxes),
        box=random_boxes(rng, boxes, grid),
        group_of=rng.random(boxes) < 0.3,
        label_image=rng.integers(0, images + 1, labels),
        label_cls=rng.integers(0, classes, labels),
        label_present=rng.random(labels) < 0.5,
    )
    box = random_boxes(rng, scored, grid)
    near = rng.random(scored) < (0.5 if boxes else 0.0)
    if near.any():
        source = rng.integers(0, boxes, int(near.sum()))
        box[near] = truth.box[source]
        if grid == 0:
            box[near] += rng.normal(0, 0.03, box[near].shape)
    inverted = rng.random(scored) < 0.05
    box[inverted] = box[inverted][:, [2, 1, 0, 3]]
    thin = rng.random(scored) < 0.05
    box[thin, 2] = box[thin, 0]
    scores = rng.random(scored) if rng.random() < 0.5 else rng.integers(-1, 4, scored) / 3
    detections = Detections(
        rng.integers(0, images + 2, scored), rng.integers(0, classes, scored), scores, box
    )
    options = {
        "iou_threshold": float(rng.choice([0.5, 0.5, 0.25, 0.75])),
        "group_of_weight": float(rng.choice([1.0, 1.0, 0.0, 0.5])),
        "use_image_labels": bool(rng.random() < 0.8),
        "verified_filter": bool(rng.random() < 0.8),
        "max_detections": int(rng.choice([2, 5, 10_000])),
    }
    return truth, detections, classes, options


def evaluate(truth, detections, classes, options, **more):
    options = dict(options)
    if not options.pop("use_image_labels"):
        names = ("label_image", "label_cls", "label_present")
        truth = replace(truth, **{name: getattr(truth, name)[:0] for name in names})
    with patch.object(openimages_metric, "MAX_DETECTIONS", options.pop("max_detections")):
        return evaluate_detections(truth, detections, classes, **options, **more)


def by_oracle(truth, detections, classes, options):
    return openimages_oracle.evaluate(
        [
            (int(i), int(c), tuple(b), bool(g))
            for i, c, b, g in zip(truth.image, truth.cls, truth.box.tolist(), truth.group_of, strict=True)
        ],
        [(int(i), int(c)) for i, c in zip(truth.label_image, truth.label_cls, strict=True)],
        [
            (int(i), int(c), s, tuple(b))
            for i, c, s, b in zip(
                detections.image,
                detections.cls,
                detections.score.tolist(),
                detections.box.tolist(),
                strict=True,
            )
        ],
        classes,
        options["iou_threshold"],
        options["group_of_weight"],
        options["use_image_labels"],
        options["verified_filter"],
        options["max_detections"],
    )


@pytest.mark.parametrize("block", range(8))
def test_equals_the_obvious_implementation(block):
    for seed in range(100 * block, 100 * block + 100):
        truth, detections, classes, options = random_case(seed)
        ap, num_gt = by_oracle(truth, detections, classes, options)
        result = evaluate(truth, detections, classes, options)
        np.testing.assert_allclose(result.ap, ap, atol=1e-12, rtol=0, err_msg=f"seed {seed}, {options}")
        np.testing.assert_array_equal(result.num_gt, num_gt, err_msg=f"seed {seed}, {options}")
        known = [value for value in ap if not np.isnan(value)]
        assert result.mean_ap == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)


def test_random_cases_reach_every_rule():
    seen = dict.fromkeys(evaluate_detections(*random_case(0)[:3]).counts, 0)
    for seed in range(100):
        truth, detections, classes, options = random_case(seed)
        counts = evaluate(truth, detections, classes, options).counts
        for name, count in counts.items():
            seen[name] += count
        fates = [count for name, count in counts.items() if name not in ("detections", "groups_found")]
        assert counts["detections"] == sum(fates) == len(detections)
    assert all(seen.values()), seen


def test_counts(monkeypatch):
    """A detection of each fate, but two of foreign images and two that a group absorbs."""
    unit, left, away = [0.0, 0, 1, 1], [0.0, 0, 0.5, 1], [2.0, 0, 3, 1]
    one, no = np.ones(1, int), np.zeros(1, int)
    boxes = np.array([unit, away])
    truth = GroundTruth(np.zeros(2, int), np.zeros(2, int), boxes, boxes[:, 0] == 0, one, one, no > 0)
    rows = [
        (9, 0, 0.9, unit),
        (-1, 0, 0.9, unit),
        (0, 0, 0.9, unit[::-1]),
        (0, 1, 0.9, unit),
        (0, 0, 0.9, away),
    ]
    rows += [(0, 0, 0.8, left), (0, 0, 0.7, [0.5, 0, 1, 1]), (0, 0, 0.6, away), (0, 0, 0.5, away)]
    monkeypatch.setattr(openimages_metric, "MAX_DETECTIONS", 4)
    detections = Detections(*map(np.array, zip(*rows, strict=True)))
    result = evaluate_detections(truth, detections, 2)
    counts = {"detections": 9, "image_not_annotated": 2, "inverted": 1, "class_not_verified": 1}
    counts |= {"over_limit": 1, "true_positives": 1, "absorbed_by_group_of": 2, "false_positives": 1}
    assert result.counts == counts | {"groups_found": 1} and result.num_images == 2


@pytest.fixture(scope="module")
def golden(oid):
    class_ids, _ = read_classes(oid / "classes.csv")
    hierarchy = LabelHierarchy.from_json(oid / "hierarchy.json", class_ids)
    truth, image_ids, _ = read_ground_truth(oid / "boxes.csv", oid / "imagelabels.csv", class_ids)
    detections, _ = read_detections(oid / "predictions.csv", class_ids, image_ids)
    return class_ids, hierarchy, truth, detections


def test_expansion_equals_the_reference_tool(oid, golden):
    class_ids, hierarchy, truth, _ = golden
    files = (oid / "boxes_expanded.csv", oid / "imagelabels_expanded.csv")
    reference, _, _ = read_ground_truth(*files, class_ids)

    def rows(t):
        labels = zip(t.label_image, t.label_cls, t.label_present, strict=True)
        return sorted(zip(t.image, t.cls, t.group_of, *t.box.T, strict=True)), sorted(labels)

    assert rows(expand_ground_truth(truth, hierarchy)) == rows(reference)


def test_batches_and_chunks_do_not_change_anything(golden, monkeypatch):
    class_ids, hierarchy, truth, detections = golden
    truth = expand_ground_truth(truth, hierarchy)
    whole = evaluate_detections(truth, detections, len(class_ids), prediction_hierarchy=hierarchy)
    monkeypatch.setattr(openimages_metric, "_DETECTIONS_AT_ONCE", 7)
    monkeypatch.setattr(openimages_metric, "_OVERLAPS_AT_ONCE", 5)
    small = evaluate_detections(truth, detections, len(class_ids), prediction_hierarchy=hierarchy)
    np.testing.assert_array_equal(whole.ap, small.ap)
    assert whole.counts == small.counts
