"""Average precision and F1 of image labels: equal to scikit-learn's, over ranks and verified labels alone."""

import json

import numpy as np
import pytest
import torch
from factories import CAR, CLASS_IDS, DOG, FISH, PARENTS, PICTURES, build_store, store_columns
from sklearn import metrics

from longtail_det2.data.store import write_store
from longtail_det2.evaluation.evaluator import build_evaluators
from longtail_det2.evaluation.ground_truth import StoreGroundTruth
from longtail_det2.evaluation.image_label_metric import (
    SCORES_FILE,
    average_precision,
    f1,
    f1_counts,
    image_truth,
    read_scores,
)
from longtail_det2.utils.errors import ConfigError, DataError


def random_case(seed, images=150, classes=7, levels=None):
    """Labels and scores; with few `levels` of scores there are many ties."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((images, classes)) < 0.5 ** np.arange(classes)).astype(np.int8)
    score = 1 / (1 + np.exp(-generator.normal(truth - 1, 1)))
    return truth, (score if levels is None else np.round(score * levels) / levels).astype(np.float32)


@pytest.mark.parametrize("levels", [None, 10, 2])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed, levels):
    truth, score = random_case(seed, levels=levels)
    truth[0] = 1
    for one, scores in zip(truth.T, score.T, strict=True):
        expected = metrics.average_precision_score(one, scores)
        assert average_precision(one, scores) == pytest.approx(expected, abs=1e-9)
    predicted = score > 0.5
    counts = f1_counts(truth, predicted)
    for kind, value in (("micro", f1(counts.sum(axis=0))), ("macro", f1(counts).mean())):
        expected = metrics.f1_score(truth, predicted, average=kind, zero_division=0)
        assert value == pytest.approx(expected, abs=1e-9)


def test_what_is_not_verified_does_not_count():
    truth, score = random_case(0)
    hidden = np.random.default_rng(1).random(truth.shape) < 0.3
    marked = np.where(hidden, -1, truth).astype(np.int8)
    for k in range(truth.shape[1]):
        known = ~hidden[:, k]
        assert average_precision(marked[:, k], score[:, k]) == average_precision(
            truth[known, k], score[known, k]
        )
    expected = [f1_counts(truth[~h][:, None], p[~h][:, None] > 0.5)[0] for truth, p, h in zip(
        truth.T, score.T, hidden.T, strict=True
    )]  # fmt: skip
    assert (f1_counts(marked, score > 0.5) == expected).all()
    assert np.isnan(average_precision(np.array([0, -1]), np.array([0.1, 0.9])))


def test_truth_of_stores(tmp_path):
    """Of Open Images' form, where the rest is unverified, and of COCO's, where it is absent."""
    store = build_store(tmp_path)
    truth = image_truth(StoreGroundTruth(store))
    #                           animal dog puppy pet fish car
    assert truth[0].tolist() == [1, 1, 1, 1, -1, 1]
    assert truth[1].tolist() == [-1, -1, -1, 1, 1, 0]  # b: a fish, no car
    columns = store_columns(["a", "b"], image_labels=[(0, DOG, 1), (1, CAR, 0), (1, FISH, 1)])
    for exhaustive, rest in ((None, 0), (True, 0), (False, -1)):
        options = {"form": "image_labels", "exhaustive_labels": exhaustive}
        store = write_store(tmp_path / f"{exhaustive}", columns, CLASS_IDS, parents=PARENTS, **options)
        truth = image_truth(StoreGroundTruth(store))
        assert truth.tolist() == [[1, 1, rest, 1, rest, rest], [rest, rest, rest, 1, 1, 0]]


@pytest.fixture
def store(tmp_path):
    pictures = [(row, label, 1) for row in range(40) for label in ({row % 6, row % 4})]
    columns = store_columns([f"{row:02}" for row in range(40)], image_labels=pictures)
    return write_store(tmp_path / "labels", columns, CLASS_IDS, form="image_labels")


def scores_of(store):
    return np.random.default_rng(0).random((len(store), store.num_classes), dtype=np.float32)


def feed(evaluator, store, rows):
    for row in rows:
        output = {"scores": torch.from_numpy(scores_of(store)[row])}
        evaluator.process([{"image_id": f"{row:02}", "file_name": f"{row:02}.png"}], [output])


def test_evaluation_over_ranks(store, tmp_path, run_ranks):
    counts, bins = [100, 99, 20, 19, 5, 0], (20, 100)

    def run(rank):
        evaluator = build_evaluators(
            str(store.path), output_dir=tmp_path / "out", train_counts=counts, frequency_thresholds=bins
        )
        evaluator.reset()
        feed(evaluator, store, range(rank * 20, 20 + rank * 20))
        feed(evaluator, store, [39 * rank])  # padding
        return evaluator.evaluate()

    first, second = run_ranks(2, run)
    assert not second
    (task,) = first
    truth, score = image_truth(StoreGroundTruth(store)), scores_of(store)
    ap = metrics.average_precision_score(truth, score, average=None)
    assert task == "image_labels"
    for name, classes in (("", range(6)), ("_head", [0]), ("_medium", [1, 2]), ("_tail", [3, 4, 5])):
        assert first[task][f"mAP{name}"] == pytest.approx(100 * ap[list(classes)].mean(), abs=1e-9)
        expected = metrics.f1_score(truth, score > 0.5, average=None)[list(classes)].mean()
        assert first[task][f"macro_F1{name}"] == pytest.approx(100 * expected, abs=1e-9)
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert [one["image_labels"] for one in document["classes"]] == pytest.approx(ap.tolist())
    assert [one["frequency_bin"] for one in document["classes"]] == ["head", *["medium"] * 2, *["tail"] * 3]
    found = read_scores(tmp_path / "out" / SCORES_FILE, store)
    assert (found.score == score).all() and found.image.tolist() == list(range(40))


def test_images_without_output_are_left_out(store, caplog):
    evaluator = build_evaluators(str(store.path))
    feed(evaluator, store, range(30))
    assert "10 of 40 images had no output" in (evaluator.evaluate() and caplog.text)


def test_what_does_not_fit(store, tmp_path):
    evaluator = build_evaluators(str(store.path))
    record = {"image_id": "00", "file_name": "00.png"}
    for output, error, message in (
        ({"instances": None}, ConfigError, "MultiLabelClassifier"),
        ({"scores": torch.zeros(5)}, ConfigError, "5 scores .* 6 classes"),
        ({"scores": torch.full((6,), torch.nan)}, DataError, "00.png"),
    ):
        with pytest.raises(error, match=message):
            evaluator.process([record], [output])
    detection = build_store(tmp_path, PICTURES, name="boxes")
    with pytest.raises(ConfigError, match="image_labels"):
        build_evaluators(str(detection.path), metrics=["image_labels", "coco"])
    with pytest.raises(ConfigError, match="the model gives none"):
        build_evaluators(str(detection.path)).process([{"image_id": "a"}], [{"scores": torch.zeros(6)}])
    with pytest.raises(ConfigError, match="SCORE_THRESH"):
        build_evaluators(str(store.path), image_labels={"score_threshold": 1.5})
    empty = write_store(tmp_path / "empty", store_columns(), CLASS_IDS, form="image_labels")
    with pytest.raises(ConfigError, match="no image has a label"):
        build_evaluators(str(empty.path))
    (tmp_path / SCORES_FILE).write_text("nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / SCORES_FILE, store)
