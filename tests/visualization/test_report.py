import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from longtail_det2.evaluation.openimages_io import Detections
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.picture_choice import choose, tally_image
from longtail_det2.visualization.report import ReportOptions, build_report
from longtail_det2.visualization.report_plots import ap_figure, frequency_figure, smooth, training_figure
from longtail_det2.visualization.run_data import ClassResult, read_run

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
        self.images += tag == "img"
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
        assert address.startswith(("data:image/jpeg;base64,", "#")), address[:80]
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    return html, " ".join(page.text), page


def test_full_report(run, store, tmp_path):
    output = tmp_path / "new" / "report.html"
    options = ReportOptions(title="A <title>", steps=[("train", 65.0)])
    assert build_report(run, output, train_store=store, val_store=store.path, options=options) == output
    html, text, page = read(output)
    summary = read_run(run).evaluation.summary
    for name in ("mAP50", "mAP50_expanded", "mAP50_leaves", "mAP50_head", "mAP50_tail"):
        assert f"{100 * summary[name]:.1f}" in text
    assert "A <title>" in text and "green <circle>" in text and "<circle>" not in html
    assert "OpenImagesEvaluator" in text and "COCO" in text
    assert "4 images, 5 objects with 6 labels of 5 classes (3 leaves, 2 inner)" in text
    assert "200 iterations" in text and "learning rate 0.125" in text and "train 1 min 05 s" in text
    assert "/secret" not in html and str(tmp_path) not in html
    assert page.images == 6  # three images with objects, truth and predictions
    assert html.count("<svg") == 3 and html.count("<title>") == 1 + 2 * 5  # a hover text per class and figure
    assert output.stat().st_size < 2_000_000
    assert [path for path in output.parent.iterdir() if path != output] == []


def test_report_of_a_run_with_masks(masked_run, masked_store, tmp_path):
    build_report(masked_run, tmp_path / "report.html", train_store=masked_store, val_store=masked_store)
    html, text, page = read(tmp_path / "report.html")
    evaluation = read_run(masked_run).evaluation
    table = html[html.index("COCO&#x27;s metric</h2>") :]
    table = table[: table.index("</table>")]
    for task, name in (("coco_bbox", "boxes"), ("coco_segm", "masks")):
        row = table[table.index(f">{name}</th>") :].split("</tr>")[0]
        cells = re.findall(r">([^<>]*)</td>", row)
        means = [evaluation.coco[task][key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert cells[:6] == ["–" if np.isnan(mean) else f"{100 * mean:.1f}" for mean in means]
        assert len(cells) == 10 and not np.isnan(means[0])
    assert "by the Open Images challenge metric and by COCO's" in text
    assert "COCO's AP, boxes, %" in text and "COCO's AP, masks, %" in text
    assert "Masks are tinted" in text and page.images == 6
    pictures = re.findall(r'base64,[^"]+', html)
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    for row in rows:
        del row["segmentation"]
    results.write_text(json.dumps(rows))
    build_report(masked_run, tmp_path / "plain.html", val_store=masked_store)
    plain = re.findall(r'base64,[^"]+', read(tmp_path / "plain.html")[0])
    same = [one == other for one, other in zip(pictures, plain, strict=True)]
    assert same == [True, False] * 3  # truth and predictions of each picture


def test_report_of_a_run_with_the_lvis_metric_alone(lvis_run, masked_store, tmp_path):
    folder, means = lvis_run
    evaluation = read_run(folder).evaluation
    assert evaluation.summary == {} and not evaluation.coco
    for task, values in means.items():
        expected = {name: value / 100 for name, value in values.items()}
        assert evaluation.lvis[task] == pytest.approx(expected, nan_ok=True)
    assert evaluation.predictions.name == "coco_instances_results.json"
    assert [one.train_images for one in evaluation.classes] == masked_store.image_counts(
        expanded=True
    ).tolist()
    build_report(folder, tmp_path / "report.html", train_store=masked_store, val_store=masked_store)
    page = Page((tmp_path / "report.html").read_text())
    text = " ".join(page.text)
    assert "by LVIS's metric." in text and "masks, fixed AP" in text and page.images
    assert "challenge" not in text and "nan" not in text.split()
    assert f"{means['lvis_segm']['AP']:.1f}" in text


def test_figures_and_table_of_classes_show_lvis_ap_by_frequency(lvis_run, masked_store, tmp_path):
    folder, _ = lvis_run
    evaluation = read_run(folder).evaluation
    assert evaluation.main_task == "lvis_segm"
    inner = set(masked_store.hierarchy.inner.tolist())
    for k, one in enumerate(evaluation.classes):
        assert one.is_leaf == (k not in inner) and one.group == "rare"  # of four images
        assert one.num_gt > 0 or np.isnan(one.ap_of("lvis_segm"))
    assert sum(not one.is_leaf for one in evaluation.classes) == len(inner) > 0
    build_report(folder, tmp_path / "report.html", train_store=masked_store, val_store=masked_store)
    html = (tmp_path / "report.html").read_text()
    known = next(one for one in evaluation.classes if one.ap_of("lvis_segm") > 0)
    assert f"{known.name}: AP {100 * known.ap_of('lvis_segm'):.1f} %, {known.train_images}" in html
    text = " ".join(Page(html).text)
    assert "LVIS's AP, masks, %" in text and "AP expanded" not in text


def test_figures_show_coco_ap_where_that_is_all(coco_run, masked_store, tmp_path):
    evaluation = read_run(coco_run).evaluation
    assert evaluation.main_task == "coco_bbox"
    leaves = [one for one in evaluation.classes if one.is_leaf]
    assert {one.group for one in leaves} <= {"head", "medium", "tail"} and leaves
    build_report(coco_run, tmp_path / "report.html", val_store=masked_store)
    assert "COCO's AP, boxes, %" in " ".join(Page((tmp_path / "report.html").read_text()).text)


def test_damaged_masks_pass_a_picture_over(masked_run, masked_store, tmp_path, caplog):
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    rows[0]["segmentation"]["counts"] = "04"
    results.write_text(json.dumps(rows))
    build_report(masked_run, tmp_path / "report.html", val_store=masked_store)
    assert read(tmp_path / "report.html")[2].images == 4
    assert "picture passed over: " in caplog.text and "entry 0 has a segmentation whose run" in caplog.text
    rows[0]["segmentation"]["size"] = [3, 4]
    results.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="entry 0 has a segmentation of the size"):
        build_report(masked_run, tmp_path / "report.html", val_store=masked_store)


def test_report_without_coco_metric_does_not_speak_of_it(run, store, tmp_path):
    build_report(run, tmp_path / "report.html", val_store=store)
    _, text, _ = read(tmp_path / "report.html")
    assert "COCO's metric" not in text and "COCO's AP, boxes" not in text and "Masks are" not in text


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
        one.update(AP=None, AP_expanded=None, num_gt=0.0, train_images=None, group=None)
    path.write_text(json.dumps(document))
    build_report(run, tmp_path / "report.html", val_store=store)
    html, _, _ = read(tmp_path / "report.html")
    assert not re.search(r"\bnan\b", re.sub("<(img|script).*?>", "", html), re.IGNORECASE)
    assert html.count("<svg") == 1  # only the losses


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
    assert caplog.text.count("picture passed over") == 2


def classes(counts, aps):
    return [
        ClassResult(f"c{i}", f"<c{i}>", ap, float("nan"), 3.0, count, True, None)
        for i, (count, ap) in enumerate(zip(counts, aps, strict=True))
    ]


@pytest.mark.parametrize("counts", [[0, 1, 10**6], [0, 0, 0], [5, 5, 5]])
def test_figures_of_unusual_counts(counts):
    for svg in (ap_figure(classes(counts, [0.0, 1.0, 0.5])), frequency_figure(classes(counts, [0.0] * 3))):
        Page(svg)
        assert svg.count("<title>") == 3 and "&lt;c1&gt;" in svg and "var(--" in svg and "#0" not in svg


def test_figures_without_content():
    nothing = classes([None, None], [0.5, float("nan")])
    assert ap_figure(nothing) is None and frequency_figure(nothing) is None
    assert training_figure(None) is None
    assert ap_figure(classes([3], [float("nan")])) is None


def test_smoothing():
    np.testing.assert_allclose(smooth(np.full(50, 2.0)), 2.0)
    np.testing.assert_allclose(smooth(np.array([3.0])), 3.0)
    noisy = np.random.default_rng(0).normal(size=1000)
    assert smooth(noisy).std() < 0.4 * noisy.std()


def detections(*rows):
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    box = np.array(columns[2], dtype=np.float64).reshape(-1, 4)
    return Detections(np.zeros(len(rows), int), np.array(columns[0], int), np.array(columns[1], float), box)


def test_tally(store):
    first, second = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    low = (0, 0, 0.05, 1)
    shown = [(0, 0.9, first), (4, 0.8, first), (1, 0.7, second), (2, 0.6, second), (0, 0.5, low)]
    tally = tally_image(store, 0, detections(*shown))
    assert (tally.labels, tally.found, tally.wrong) == (3, 2, 2)
    assert tally.found_classes == (0, 1) and tally.missed_classes == (0,)
    assert (tally.most_labels, tally.groups) == (2, 0)
    # A small box inside a group finds it; an ancestor on it is not wrong.
    group = tally_image(store, 1, detections((1, 0.9, (0.3, 0.3, 0.4, 0.4)), (3, 0.9, (0.3, 0.3, 0.4, 0.4))))
    assert (group.found, group.wrong, group.groups) == (1, 0, 1)
    assert tally_image(store, 0, None).found == 0
    assert tally_image(store, 3, detections((0, 0.9, first))).wrong == 1


def test_choice_of_pictures(store):
    tallies = [tally_image(store, index, None) for index in range(len(store))]
    chosen = choose(tallies, {2: "tail"}, 10, with_predictions=False)
    assert [(one.index, why) for one, why in chosen] == [
        (0, "several labels on a box"),
        (2, "rare classes"),
        (1, "a group of objects"),
    ]
    assert len(choose(tallies, {2: "tail"}, 2, with_predictions=True)) == 2
    many = choose(tallies, {}, 10, with_predictions=True)
    assert len({one.index for one, _ in many}) == len(many) == 3
