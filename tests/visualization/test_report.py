"""The report: what it says of runs of all kinds, what it reads from them, and which images it shows."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from factories import CAR, CLASS_IDS, DOG, FISH, PUPPY, build_store, image_label_store
from model_factories import classifier_run

from longtail_det2.evaluation.image_label_metric import ImageScores, write_scores
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.plots import ap_plot, long_tail_plot, smooth, training_plots
from longtail_det2.visualization.predictions import Predictions, read_predictions
from longtail_det2.visualization.report import build_report, duration, read_evaluation, read_log
from longtail_det2.visualization.report_images import choose_images, compare_labels, score_image

SVG = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, addresses and ids."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.words, self.addresses, self.ids = html, [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())
        self.images = sum(address.startswith("data:image/jpeg;base64,") for address in self.addresses)
        self.plots = sum(address.startswith(SVG) for address in self.addresses)

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.open += [tag] if tag not in ("meta", "img", "br") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def row(self, table, name):
        """Cells of a row of the table below a heading."""
        part = self.html[self.html.index(f"{table}</h2>") :]
        return re.findall(r">([^<>]*)</td>", part[part.index(f">{name}</th>") :].split("</tr>")[0])


def report(run, tmp_path, **options):
    """Builds a report that is one file complete in itself."""
    path = tmp_path / "new" / "report.html"
    assert build_report(run, path, **options) == path
    assert list(path.parent.iterdir()) == [path] and path.stat().st_size < 2_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert page.images + page.plots == len(page.addresses) and len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|@import|url\((?!#)", page.html)
    return page


def shown(mean):
    return "–" if mean is None else f"{100 * mean:.1f}"


def test_full_report(run, store, tmp_path):
    options = {
        "train_store": store,
        "val_store": store.path,
        "title": "A <title>",
        "steps": [("train", 65.0)],
    }
    page = report(run, tmp_path, **options)
    for name, mean in read_evaluation(run).summary["bbox"].items():
        assert shown(mean) in page.text, name
    assert "A <title>" in page.text and "green <circle>" in page.text and "<circle>" not in page.html
    assert "4 images, 5 objects with 6 labels of 5 classes (3 leaves, 2 inner)" in page.text
    assert "200 iterations" in page.text and "0.125" in page.text and "train 1 min 05 s" in page.text
    assert "/secret" not in page.html and str(tmp_path) not in page.html
    assert page.images == 6  # three images with objects, truth and predictions
    assert page.plots == 4
    assert report(run, tmp_path, **options).html == page.html


def test_facts_are_those_of_the_run(run, tmp_path):
    record = {
        "config": "shapes/tiny.yaml",
        "options": ["SOLVER.MAX_ITER", "3", "DATASETS.ROOT", "/secret", "MODEL.WEIGHTS", "hub://r50"],
        "seed": 11,
        "processes": 2,
        "commit": "c0ffee",
        "versions": {"torch": "9.9"},
        "machine": {"host": "secret", "cpus": 3, "gpus": ["H9000"]},
    }
    (run / "run.json").write_text(json.dumps(record))
    model = (
        "MODEL:\n  ROI_HEADS: {NAME: MultiLabelROIHeads}\n  ROI_BOX_HEAD: {CLASSIFICATION_LOSS: AnyLoss}\n"
    )
    (run / "config.yaml").write_text(model)
    text = report(run, tmp_path).text
    for fact in ("shapes/tiny.yaml", "SOLVER.MAX_ITER 3 MODEL.WEIGHTS hub://r50", "c0ffee", "torch 9.9"):
        assert fact in text
    assert "Seed 11" in text and "3 CPU cores, H9000, 2 processes" in text and "loss AnyLoss" in text
    assert "secret" not in text
    (run / "config.yaml").write_text("[")
    assert "AnyLoss" not in report(run, tmp_path).text


def test_masks(masked_run, masked_store, tmp_path, caplog):
    page = report(masked_run, tmp_path, train_store=masked_store, val_store=masked_store)
    evaluation = read_evaluation(masked_run)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP_leaves", "AP_tail"):
        means = [shown(evaluation.summary[task][name]) for task in ("coco_bbox", "coco_segm")]
        assert page.row("COCO metric", name) == means
    assert "COCO's AP, boxes, %" in page.text and "COCO's AP, masks, %" in page.text
    assert "Masks are tinted" in page.text and page.images == 6
    results = evaluation.folder / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    results.write_text(json.dumps([{**row, "segmentation": None} for row in rows]))
    plain = report(masked_run, tmp_path, val_store=masked_store)
    drawings = ([one for one in each.addresses if "jpeg" in one] for each in (page, plain))
    same = [one == other for one, other in zip(*drawings, strict=True)]
    assert same == [True, False] * 3  # truth and predictions of each image
    # Where the mask of a prediction is damaged, the image is left out.
    rows[0]["segmentation"]["counts"] = "04"
    results.write_text(json.dumps(rows))
    assert report(masked_run, tmp_path, val_store=masked_store).images == 4
    assert "image left out: " in caplog.text and "detection 0 has a segmentation whose counts" in caplog.text


def test_lvis_metric_alone(lvis_run, masked_store, tmp_path):
    folder, means = lvis_run
    path = folder / "inference" / "masked" / "results.json"
    document = json.loads(path.read_text())
    document["metrics"]["lvis"]["options"].update(max_detections=123, fixed_ap_detections=4567)
    path.write_text(json.dumps(document))
    evaluation = read_evaluation(folder)
    assert evaluation.ap_key == "lvis_segm" and evaluation.predictions.suffix == ".json"
    groups = [evaluation.group_of(one) for one in evaluation.classes]
    assert groups == ["rare"] * 3 + ["inner"] * 2  # of four images
    page = report(folder, tmp_path, train_store=masked_store, val_store=masked_store)
    assert "challenge" not in page.text and "nan" not in page.text.split() and "AP expanded" not in page.text
    assert "LVIS's AP, masks, %" in page.text and page.images
    tasks = ("lvis_bbox", "lvis_segm", "lvis_bbox_fixed", "lvis_segm_fixed")
    assert sorted(page.row("LVIS metric", "APr")) == sorted(f"{means[task]['APr']:.1f}" for task in tasks)
    assert "the best 123 detections" in page.text and "the best 4,567 of each class" in page.text


def test_classifier_of_images(tmp_path):
    store = image_label_store(tmp_path)
    run = classifier_run(tmp_path / "run", store)
    page = report(run, tmp_path, train_store=store, val_store=store)
    means = read_evaluation(run).summary["image_labels"]
    for group, ending in (("all", ""), ("head", "_head"), ("tail", "_tail")):
        wanted = [shown(means[f"{name}{ending}"]) for name in ("mAP", "micro_F1", "macro_F1")]
        assert page.row("Image-label metric", group) == wanted
    assert f"{shown(means['micro_F1'])} % all classes micro F1" in page.text
    assert "4 images, 6 labels of whole images of 6 classes" in page.text and "images to find" in page.text
    assert "loss SigmoidBCELoss" in page.text and "text block" not in page.text and page.plots == 2
    assert page.images == 3 and page.text.count("labels found") + page.text.count("label found") == 3
    (run / "inference/tiny/scores.npz").unlink()
    assert "truth dog puppy fish" in report(run, tmp_path, val_store=store).text  # of image c


@pytest.mark.parametrize("exhaustive", [True, False])
def test_labels_of_images_are_compared_as_the_metric_does(tmp_path, exhaustive):
    if exhaustive:
        store, unlisted = image_label_store(tmp_path), "✗"
    else:
        store, unlisted = build_store(tmp_path), "?"  # with PARENTS
    scores = np.full((len(store), len(CLASS_IDS)), 0.125, np.float32)
    scores[1, [FISH, CAR, PUPPY]] = 0.9, 0.8, 0.7
    scores[2, [FISH, DOG]] = 0.3, 0.6
    path = tmp_path / "scores.npz"
    write_scores(path, store, ImageScores(np.arange(len(store)), scores))
    predictions = read_predictions(path, store).above(0.5)
    one, other = (score_image(store, index, predictions.of_image(index)) for index in (1, 2))
    texts = compare_labels(store, one, predictions.of_image(1))
    assert [text for text, _ in texts["predictions"]] == ["✓ fish 90%", "✗ car 80%", f"{unlisted} puppy 70%"]
    if exhaustive:
        assert one[1:] == ([FISH], [], 2) and other[1:] == ([DOG], [PUPPY, FISH], 0)
        texts = compare_labels(store, other, predictions.of_image(2))["truth"]
        assert [text for text, _ in texts] == ["✓ dog", "○ puppy", "○ fish"]
    else:
        assert one.found == [FISH] and one.wrong == 1 and CAR in other.missed  # an object's class


@pytest.mark.parametrize("lacking", ["log", "predictions", "evaluation", "config", "stores", "all"])
def test_missing_pieces(run, store, tmp_path, lacking):
    evaluation = run / "inference" / "tiny"
    pieces = {
        "log": run / "metrics.json",
        "predictions": evaluation / "predictions.csv",
        "evaluation": evaluation / "results.json",
        "config": run / "config.yaml",
    }
    for name, path in pieces.items():
        if lacking in (name, "all"):
            path.unlink()
    stores = {} if lacking in ("stores", "all") else {"train_store": store, "val_store": store}
    page = report(run, tmp_path, **stores)
    assert ("There is no training log" in page.text) == (lacking in ("log", "all"))
    assert ("There is no finished evaluation" in page.text) == (lacking in ("evaluation", "all"))
    assert page.images == {"stores": 0, "all": 0, "predictions": 3, "evaluation": 3}.get(lacking, 6)


def test_nothing_evaluated_is_not_a_number(run, store, tmp_path):
    path = run / "inference" / "tiny" / "results.json"
    document = json.loads(path.read_text())
    document["summary"] = dict.fromkeys(document["summary"])
    for one in document["classes"]:
        one.update(AP=None, AP_expanded=None, num_gt=0.0, train_images=None)
    path.write_text(json.dumps(document))
    page = report(run, tmp_path, val_store=store)
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert page.plots == 2  # only the losses and the learning rate


def test_errors_name_the_problem(run, store, tmp_path, caplog):
    (tmp_path / "images" / "im0.png").write_bytes(b"no image")
    (tmp_path / "images" / "im1.png").unlink()
    assert report(run, tmp_path, val_store=store).images == 2 and caplog.text.count("image left out") == 2
    (run / "inference" / "tiny" / "predictions.csv").write_text("ImageID,Score\n")
    output = tmp_path / "report.html"
    for folder, val_store, message in (
        (tmp_path / "absent", None, "no such folder"),
        (run, tmp_path / "absent", "no annotation store"),
        (run, store, r"predictions\.csv"),
    ):
        with pytest.raises(DataError, match=message):
            build_report(folder, output, val_store=val_store)
    assert not output.exists()


def test_reading_evaluations(masked_run, caplog):
    evaluation = read_evaluation(masked_run)
    folder = masked_run / "inference" / "masked"
    assert set(evaluation.summary) == {"bbox", "coco_bbox", "coco_segm"} and evaluation.ap_key == "AP"
    assert [evaluation.group_of(one) == "inner" for one in evaluation.classes] == [False] * 3 + [True] * 2
    assert evaluation.predictions == folder / "coco_instances_results.json"
    (folder / "coco_instances_results.json").unlink()
    assert read_evaluation(masked_run).predictions == folder / "predictions.csv"
    other = masked_run / "inference" / "another"
    other.mkdir()
    (other / "results.json").write_text('{"summary": {"bbox": {"mAP50": null}}, "classes": []}')
    assert read_evaluation(masked_run).folder == other
    assert read_evaluation(masked_run, "masked").folder == folder
    assert read_evaluation(masked_run, "absent") is None
    for damage in ("{", "[]", '{"summary": 3, "classes": []}', '{"summary": {"bbox": 3}, "classes": []}'):
        (folder / "results.json").write_text(damage)
        assert read_evaluation(masked_run, "masked") is None
    assert caplog.text.count("results.json cannot be read") == 4


def test_logs_of_stopped_resumed_and_damaged_runs(run, tmp_path, caplog):
    log = read_log(run / "metrics.json")
    assert log["iteration"][-1] == 199  # the half-written line is left out
    assert {"total_loss", "loss_cls", "lr", "time"} <= set(log)
    assert read_log(run / "absent.json") == {}
    # A resumed run replaces what it repeats.
    rows = [{"iteration": i, "total_loss": 3.0, "time": 0.5} for i in (19, 39, 59, 79)]
    rows += [{"iteration": 49, "total_loss": 42.0}, {"iteration": 49, "bbox/mAP50": 1.0}]
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(path)
    assert log["iteration"].tolist() == [19, 39, 49] and log["total_loss"][-1] == 42
    assert np.isnan(log["time"][-1])
    path.write_text('{"iteration": 1}\nnonsense\n[1]\n{"iteration": 2, "total_loss": NaN}\n')
    assert np.isnan(read_log(path)["total_loss"]).all() and f"{path}:2: not JSON" in caplog.text


def test_plots_of_any_numbers():
    one = np.array([1.0])
    plots = training_plots({"iteration": one, "total_loss": one * np.nan, "lr": one})
    assert len(plots) == 2 and training_plots({}) == []
    for counts in ([0, 1, 10**6], [0, 0, 0], [5, 5, 5]):
        plots.append(ap_plot([("inner", 3, 0.1), *(("leaf", count, 0.5) for count in counts)], "<AP>"))
        plots.append(long_tail_plot(["head", "leaf", "tail"], counts))
    for uri in plots:
        assert ElementTree.fromstring(base64.b64decode(uri.removeprefix(SVG))).tag.endswith("svg")


def test_smoothing():
    np.testing.assert_allclose(smooth(np.full(50, 2.0)), 2.0)
    np.testing.assert_allclose(smooth(np.array([3.0])), 3.0)
    noisy = np.random.default_rng(0).normal(size=1000)
    assert smooth(noisy).std() < 0.4 * noisy.std()


def test_durations():
    seconds = (1.23, 12.3, 185, 7620)
    assert [*map(duration, seconds)] == ["1.2 s", "12 s", "3 min 05 s", "2 h 07 min"]


def detections(*rows):
    columns = map(np.array, zip(*rows, strict=True))
    return Predictions(np.zeros(len(rows), int), *columns, np.full(len(rows), None), np.arange(len(rows)), "")


def test_scores_and_choice_of_images(store):
    first, second = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    low = (0, 0, 0.05, 1)
    found = [(0, 0.9, first), (4, 0.8, first), (1, 0.7, second), (2, 0.6, second), (0, 0.5, low)]
    assert score_image(store, 0, detections(*found))[1:] == ([0, 1], [0], 2)
    # A small box inside a group finds it; an ancestor on it is not wrong.
    group = detections((1, 0.9, (0.3, 0.3, 0.4, 0.4)), (3, 0.9, (0.3, 0.3, 0.4, 0.4)))
    assert score_image(store, 1, group)[1:] == ([1], [], 0)
    assert score_image(store, 3, detections((0, 0.9, first))).wrong == 1
    nothing = [score_image(store, index, None) for index in range(len(store))]
    scores = [score_image(store, 0, detections((0, 0.9, first))), *nothing[1:]]
    chosen = [(one.index, reason) for one, reason in choose_images(scores, {2}, 10)]
    assert chosen == [(2, "rare classes missed"), (0, "among the best"), (1, "among the worst")]
    assert len(choose_images(scores, {2}, 2)) == 2
    # Where nothing is found, no image is a good one.
    assert [reason for _, reason in choose_images(nothing, set(), 3)] == ["among the worst"] * 3
