import json

import numpy as np

from longtail_det2.visualization.run_data import read_evaluation, read_log


def test_evaluation_with_masks(masked_run, caplog):
    evaluation = read_evaluation(masked_run)
    folder = masked_run / "inference" / "masked"
    assert evaluation.document == json.loads((folder / "results.json").read_text())
    assert set(evaluation.summary) == {"bbox", "coco_bbox", "coco_segm"}
    assert evaluation.ap_key == "AP"
    assert [evaluation.group_of(one) == "inner" for one in evaluation.classes] == [False] * 3 + [True] * 2
    assert evaluation.predictions == folder / "coco_instances_results.json"
    (folder / "coco_instances_results.json").unlink()
    assert read_evaluation(masked_run).predictions == folder / "predictions.csv"
    for damage in ("{", "[]", '{"summary": 3, "classes": []}', '{"summary": {"bbox": 3}, "classes": []}'):
        (folder / "results.json").write_text(damage)
        assert read_evaluation(masked_run) is None
    assert caplog.text.count("results.json cannot be read") == 4


def test_chooses_the_evaluation_by_name(run):
    other = run / "inference" / "another"
    other.mkdir()
    (other / "results.json").write_text('{"summary": {"bbox": {"mAP50": null}}, "classes": []}')
    assert read_evaluation(run).folder.name == "another"
    assert read_evaluation(run, "tiny").predictions.name == "predictions.csv"
    assert read_evaluation(run, "absent") is None


def test_log_of_a_stopped_run(run):
    log = read_log(run / "metrics.json")
    assert log["iteration"][-1] == 199  # the half-written line is left out
    assert {"total_loss", "loss_cls", "lr", "time"} <= set(log)
    assert read_log(run / "absent.json") == {}


def test_resumed_runs_replace_what_they_repeat(tmp_path):
    rows = [{"iteration": i, "total_loss": 3.0, "time": 0.5} for i in (19, 39, 59, 79)]
    rows += [{"iteration": 49, "total_loss": 42.0}, {"iteration": 49, "bbox/mAP50": 1.0}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(tmp_path / "metrics.json")
    assert log["iteration"].tolist() == [19, 39, 49]
    assert log["total_loss"][-1] == 42
    assert np.isnan(log["time"][-1])


def test_damaged_log(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\nnonsense\n[1]\n{"iteration": 2, "total_loss": NaN}\n')
    assert np.isnan(read_log(path)["total_loss"]).all()
    assert ":2: not JSON" in caplog.text
