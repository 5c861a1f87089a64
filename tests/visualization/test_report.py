import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.plots import ap_plot, long_tail_plot, smooth, training_plots
from longtail_det2.visualization.predictions import Predictions
from longtail_det2.visualization.report import build_report
from longtail_det2.visualization.report_images import choose_images, score_image
from longtail_det2.visualization.run_data import Evaluation, read_evaluation

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, addresses and ids."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.addresses, self.ids, self.images = [], [], [], [], 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.images += tag == "img" and dict(attrs)["src"].startswith("data:image/jpeg")
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    for address in page.addresses:
        assert address.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")), address[:80]
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    return html, " ".join(page.text), page


def row_of(html, table, name):
    """Cells of a row of the table below a heading."""
    part = html[html.index(f"{table}</h2>") :]
    row = part[part.index(f">{name}</th>") :].split("</tr>")[0]
    return re.findall(r">([^<>]*)</td>", row)


def test_full_report(run, store, tmp_path):
    output = tmp_path / "new" / "report.html"
    options = {"title": "A <title>", "steps": [("train", 65.0)]}
    assert build_report(run, output, train_store=store, val_store=store.path, **options) == output
    html, text, page = read(output)
    summary = read_evaluation(run).summary["bbox"]
    for name in ("mAP50", "mAP50_expanded", "mAP50_leaves", "mAP50_head", "mAP50_tail"):
        assert f"{100 * summary[name]:.1f}" in text
    assert "A <title>" in text and "green <circle>" in text and "<circle>" not in html
    assert "4 images, 5 objects with 6 labels of 5 classes (3 leaves, 2 inner)" in text
    assert "200 iterations" in text and "0.125" in text and "train 1 min 05 s" in text
    assert "/secret" not in html and str(tmp_path) not in html
    assert page.images == 6  # three images with objects, truth and predictions
    assert html.count("image/svg") == 4
    assert output.stat().st_size < 2_000_000
    assert [path for path in output.parent.iterdir() if path != output] == []


def test_facts_are_those_of_the_run(run, store, tmp_path):
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
    build_report(run, tmp_path / "report.html")
    _, text, _ = read(tmp_path / "report.html")
    text = " ".join(text.split())
    for fact in ("shapes/tiny.yaml", "SOLVER.MAX_ITER 3 MODEL.WEIGHTS hub://r50", "c0ffee", "torch 9.9"):
        assert fact in text
    assert "Seed 11" in text and "3 CPU cores, H9000, 2 processes" in text and "secret" not in text


def test_report_of_a_run_with_masks(masked_run, masked_store, tmp_path):
    build_report(masked_run, tmp_path / "report.html", train_store=masked_store, val_store=masked_store)
    html, text, page = read(tmp_path / "report.html")
    summary = read_evaluation(masked_run).summary
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP_leaves", "AP_tail"):
        means = [summary[task][name] for task in ("coco_bbox", "coco_segm")]
        assert row_of(html, "COCO metric", name) == [
            "–" if one is None else f"{100 * one:.1f}" for one in means
        ]
    assert "COCO's AP, boxes, %" in text and "COCO's AP, masks, %" in text
    assert "Masks are tinted" in text and page.images == 6
    images = re.findall(r'jpeg;base64,[^"]+', html)
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    for row in rows:
        del row["segmentation"]
    results.write_text(json.dumps(rows))
    build_report(masked_run, tmp_path / "plain.html", val_store=masked_store)
    plain = re.findall(r'jpeg;base64,[^"]+', read(tmp_path / "plain.html")[0])
    same = [one == other for one, other in zip(images, plain, strict=True)]
    assert same == [True, False] * 3  # truth and predictions of each image


def test_report_of_a_run_with_the_lvis_metric_alone(lvis_run, masked_store, tmp_path):
    folder, means = lvis_run
    path = folder / "inference" / "masked" / "results.json"
    document = json.loads(path.read_text())
    document["metrics"]["lvis"]["options"].update(max_detections=123, fixed_ap_detections=4567)
    path.write_text(json.dumps(document))
    evaluation = read_evaluation(folder)
    assert evaluation.ap_key == "lvis_segm" and evaluation.predictions.suffix == ".json"
    inner = masked_store.hierarchy.inner.tolist()
    groups = [evaluation.group_of(one) for one in evaluation.classes]
    assert groups == ["inner" if k in inner else "rare" for k in range(5)]  # of four images
    build_report(folder, tmp_path / "report.html", train_store=masked_store, val_store=masked_store)
    html, text, page = read(tmp_path / "report.html")
    assert "challenge" not in text and "nan" not in text.split() and "AP expanded" not in text
    assert "LVIS's AP, masks, %" in text and page.images
    row = row_of(html, "LVIS metric", "APr")
    tasks = ("lvis_bbox", "lvis_segm", "lvis_bbox_fixed", "lvis_segm_fixed")
    assert sorted(row) == sorted(f"{means[task]['APr']:.1f}" for task in tasks)
    assert "the best 123 detections" in text and "the best 4,567 of each class" in text


def test_coco_metric_alone(coco_run, masked_store, tmp_path):
    evaluation = read_evaluation(coco_run)
    assert evaluation.ap_key == "coco_bbox"
    build_report(coco_run, tmp_path / "report.html", val_store=masked_store)
    html, text, _ = read(tmp_path / "report.html")
    assert "COCO's AP, boxes, %" in text and 'class="card"' in html and "challenge" not in text


def test_damaged_masks_leave_an_image_out(masked_run, masked_store, tmp_path, caplog):
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    rows[0]["segmentation"]["counts"] = "04"
    results.write_text(json.dumps(rows))
    build_report(masked_run, tmp_path / "report.html", val_store=masked_store)
    assert read(tmp_path / "report.html")[2].images == 4
    assert "image left out: " in caplog.text and "entry 0 has a segmentation whose counts" in caplog.text
    rows[0]["segmentation"]["size"] = [3, 4]
    results.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="detection 0 is malformed"):
        build_report(masked_run, tmp_path / "report.html", val_store=masked_store)


def test_report_is_the_same_every_time(run, store, tmp_path):
    pages = []
    for name in ("one.html", "two.html"):
        build_report(run, tmp_path / name, train_store=store, val_store=store)
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("lacking", ["log", "predictions", "evaluation", "config", "stores", "all"])
def test_missing_pieces(run, store, tmp_path, lacking):
    evaluation = run / "inference" / "tiny"
    remove = {
        "log": [run / "metrics.json"],
        "predictions": [evaluation / "predictions.csv"],
        "evaluation": [evaluation / "results.json"],
        "config": [run / "config.yaml"],
        "stores": [],
        "all": [run / "metrics.json", evaluation / "results.json", run / "config.yaml"],
    }[lacking]
    for path in remove:
        path.unlink()
    stores = {} if lacking in ("stores", "all") else {"train_store": store, "val_store": store}
    build_report(run, tmp_path / "report.html", **stores)
    _, text, page = read(tmp_path / "report.html")
    assert ("There is no training log" in text) == (lacking in ("log", "all"))
    assert ("There is no finished evaluation" in text) == (lacking in ("evaluation", "all"))
    expected = {"stores": 0, "all": 0, "predictions": 3, "evaluation": 3}
    assert page.images == expected.get(lacking, 6)


def test_nothing_evaluated_is_not_a_number(run, store, tmp_path):
    path = run / "inference" / "tiny" / "results.json"
    document = json.loads(path.read_text())
    document["summary"] = dict.fromkeys(document["summary"])
    for one in document["classes"]:
        one.update(AP=None, AP_expanded=None, num_gt=0.0, train_images=None)
    path.write_text(json.dumps(document))
    build_report(run, tmp_path / "report.html", val_store=store)
    html, _, _ = read(tmp_path / "report.html")
    assert not re.search(r"\bnan\b", re.sub("<(img|script).*?>", "", html), re.IGNORECASE)
    assert html.count("image/svg") == 2  # only the losses and the learning rate


def test_errors_name_the_problem(run, store, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        build_report(tmp_path / "absent", tmp_path / "report.html")
    with pytest.raises(DataError, match="no annotation store"):
        build_report(run, tmp_path / "report.html", val_store=tmp_path / "absent")
    (run / "inference" / "tiny" / "predictions.csv").write_text("ImageID,Score\n")
    with pytest.raises(DataError, match=r"predictions\.csv"):
        build_report(run, tmp_path / "report.html", val_store=store)
    assert not (tmp_path / "report.html").exists()


def test_unreadable_images_are_passed_over(run, store, tmp_path, caplog):
    (tmp_path / "images" / "im0.png").write_bytes(b"no image")
    (tmp_path / "images" / "im1.png").unlink()
    build_report(run, tmp_path / "report.html", val_store=store)
    assert read(tmp_path / "report.html")[2].images == 2
    assert caplog.text.count("image left out") == 2


def evaluation_of(counts, aps):
    classes = [
        {"name": f"<c{i}>", "AP": ap, "train_images": count, "is_leaf": True, "frequency_bin": None}
        for i, (count, ap) in enumerate(zip(counts, aps, strict=True))
    ]
    return Evaluation(None, {"summary": {"bbox": {}}, "classes": classes})


@pytest.mark.parametrize("counts", [[0, 1, 10**6], [0, 0, 0], [5, 5, 5]])
def test_plots_of_any_counts(counts):
    evaluation = evaluation_of(counts, [0.0, 0.5, 1.0])
    for uri in (ap_plot(evaluation, "AP"), long_tail_plot(evaluation)):
        root = ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))
        assert root.tag.endswith("svg")


def test_plots_without_content():
    nothing = evaluation_of([None, None], [0.5, None])
    assert ap_plot(nothing, "AP") == long_tail_plot(nothing) == ""
    assert ap_plot(evaluation_of([3], [None]), "AP") == ""
    assert training_plots({}) == []
    one = np.array([1.0])
    assert len(training_plots({"iteration": one, "total_loss": one * np.nan, "lr": one})) == 2


def test_smoothing():
    np.testing.assert_allclose(smooth(np.full(50, 2.0)), 2.0)
    np.testing.assert_allclose(smooth(np.array([3.0])), 3.0)
    noisy = np.random.default_rng(0).normal(size=1000)
    assert smooth(noisy).std() < 0.4 * noisy.std()


def detections(*rows):
    columns = list(zip(*rows, strict=True))
    columns = map(np.array, columns)
    return Predictions(np.zeros(len(rows), int), *columns, np.full(len(rows), None), np.arange(len(rows)), "")


def test_scores_of_images(store):
    first, second = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    low = (0, 0, 0.05, 1)
    shown = [(0, 0.9, first), (4, 0.8, first), (1, 0.7, second), (2, 0.6, second), (0, 0.5, low)]
    assert score_image(store, 0, detections(*shown))[1:] == ([0, 1], [0], 2)
    # A small box inside a group finds it; an ancestor on it is not wrong.
    group = detections((1, 0.9, (0.3, 0.3, 0.4, 0.4)), (3, 0.9, (0.3, 0.3, 0.4, 0.4)))
    assert score_image(store, 1, group)[1:] == ([1], [], 0)
    assert score_image(store, 0, None).found == []
    assert score_image(store, 3, detections((0, 0.9, first))).wrong == 1


def test_choice_of_images(store):
    first = detections((0, 0.9, (0.1, 0.1, 0.5, 0.5)))
    scores = [score_image(store, index, first if index == 0 else None) for index in range(len(store))]
    chosen = choose_images(scores, {2}, 10)
    assert [(one.index, reason) for one, reason in chosen] == [
        (2, "rare classes missed"),
        (0, "among the best"),
        (1, "among the worst"),
    ]
    assert len(choose_images(scores, {2}, 2)) == 2
    # Where nothing is found, no image is a good one.
    nothing = [score_image(store, index, None) for index in range(len(store))]
    assert [reason for _, reason in choose_images(nothing, set(), 3)] == ["among the worst"] * 3
