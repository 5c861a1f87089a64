"""The command-line tool: six protocols, errors, atomic output."""

import json

import pytest

from longtail_det2.cli import main

PROTOCOLS = {
    "official": [],
    "expanded_gt_and_predictions": ["--expand-predictions"],
    "unexpanded": ["--no-expansion"],
    "expanded_no_image_labels": ["--no-image-labels"],
    "expanded_groupof_weight0": ["--group-of-weight", "0"],
    "v2_protocol_expanded": ["--group-of-weight", "0", "--no-verified-filter"],
}


def arguments(folder, output, *, without=()):
    names = ["boxes", "image-labels", "hierarchy", "classes", "predictions"]
    files = ["boxes.csv", "imagelabels.csv", "hierarchy.json", "classes.csv", "predictions.csv"]
    given = [(f"--{name}", str(folder / file)) for name, file in zip(names, files, strict=True)]
    given = [part for pair in given if pair[0] not in without for part in pair]
    return ["evaluate-openimages", *given, "--output", str(output)]


def check(document, reference):
    assert document["metric"] == reference["metric"]
    assert document["mAP"] == pytest.approx(reference["mAP"], abs=1e-12)
    assert document["AP"] == {
        label: None if ap is None else pytest.approx(ap, abs=1e-12) for label, ap in reference["AP"].items()
    }
    assert document["num_gt"] == reference["num_gt"]
    assert document["num_images"] == reference["num_images"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols(oid, shuffled, expected, tmp_path, capsys, protocol):
    output = tmp_path / "result.json"
    for folder in (oid, shuffled):
        assert main([*arguments(folder, output), *PROTOCOLS[protocol]]) == 0
        check(json.loads(output.read_text()), expected[protocol])
        assert f"{expected[protocol]['mAP']:.6f}" in capsys.readouterr().out


def test_files_expanded_beforehand(oid, expected, tmp_path):
    output = tmp_path / "result.json"
    files = {name: str(oid / f"{name}_expanded.csv") for name in ("boxes", "imagelabels", "predictions")}
    common = ["--boxes", files["boxes"], "--image-labels", files["imagelabels"], "--no-expansion"]
    common += ["--classes", str(oid / "classes.csv"), "--output", str(output), "--predictions"]
    assert main(["evaluate-openimages", *common, str(oid / "predictions.csv")]) == 0
    check(json.loads(output.read_text()), expected["official"])
    assert main(["evaluate-openimages", *common, files["predictions"]]) == 0
    check(json.loads(output.read_text()), expected["expanded_gt_and_predictions"])


@pytest.mark.parametrize(
    ("without", "extra", "message"),
    [
        (["--image-labels"], [], "give --image-labels, or --no-image-labels"),
        (["--hierarchy"], [], "give --hierarchy, or --no-expansion"),
        ([], ["--no-expansion", "--expand-predictions"], "contradicts"),
        ([], ["--iou", "0"], "iou_threshold must be in"),
        ([], ["--group-of-weight", "-1"], "group_of_weight must be"),
        ([], ["--output", "/nowhere/at/all/result.json"], "does not exist"),
        ([], ["--output", "."], "is a folder"),
    ],
)
def test_bad_options(oid, tmp_path, capsys, without, extra, message):
    assert main([*arguments(oid, tmp_path / "r.json", without=without), *extra]) == 2
    assert message in capsys.readouterr().err


def test_unknown_labels_can_be_skipped(shuffled, expected, tmp_path, capsys):
    header, *rows = (shuffled / "predictions.csv").read_text().splitlines()
    position = header.split(",").index("LabelName")
    cells = rows[0].replace('"text, with a comma"', "text").split(",")
    cells[position] = "/m/none"
    (shuffled / "predictions.csv").write_text("\n".join([header, *rows, ",".join(cells)]) + "\n")
    output = tmp_path / "result.json"
    assert main(arguments(shuffled, output)) == 2
    assert main([*arguments(shuffled, output), "--on-unknown-label", "skip"]) == 0
    check(json.loads(output.read_text()), expected["official"])
    assert "skipped 1 rows" in capsys.readouterr().out


def test_no_ground_truth_is_null(shuffled, tmp_path, capsys):
    for name in ("boxes.csv", "imagelabels.csv"):
        header = (shuffled / name).read_text().splitlines()[0]
        (shuffled / name).write_text(header + "\n")
    output = tmp_path / "result.json"
    assert main(arguments(shuffled, output)) == 0
    assert json.loads(output.read_text())["mAP"] is None
    assert "no ground truth" in capsys.readouterr().out
