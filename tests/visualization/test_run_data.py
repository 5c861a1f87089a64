import json
import math

import numpy as np

from longtail_det2.visualization.run_data import read_run


def test_reads_a_run(run):
    data = read_run(run)
    assert data.problems == ()
    assert data.log is not None and data.evaluation is not None
    assert data.log.iteration[-1] == 199  # the half-written line is passed over
    assert data.log.losses == ["total_loss", "loss_cls"]
    assert math.isclose(data.log.seconds, 0.5 * 200)
    assert data.evaluation.dataset == "tiny"
    assert [one.is_leaf for one in data.evaluation.classes] == [True, True, True, False, False]
    assert data.evaluation.predictions is not None
    assert data.setting("SOLVER.BASE_LR") == 0.125
    assert data.setting("SOLVER.NOTHING", 3) == 3


def test_reads_coco_metric_and_masks(masked_run, caplog):
    evaluation = read_run(masked_run).evaluation
    folder = masked_run / "inference" / "masked"
    document = json.loads((folder / "results.json").read_text())
    assert set(evaluation.coco) == {"coco_bbox", "coco_segm"}
    for task, means in evaluation.coco.items():
        for name, value in means.items():
            written = document["summary"][task][name]
            assert math.isnan(value) if written is None else value == written
    (first, *_) = document["classes"]
    assert evaluation.classes[0].id == str(first["id"])
    assert evaluation.classes[0].coco == {task: first[task] for task in evaluation.coco}
    assert evaluation.predictions == folder / "coco_instances_results.json"
    (folder / "coco_instances_results.json").unlink()
    assert read_run(masked_run).evaluation.predictions == folder / "predictions.csv"
    for damage in ("{", "[]", '{"summary": 3, "classes": []}', '{"summary": {}, "classes": [{}]}'):
        (folder / "results.json").write_text(damage)
        assert read_run(masked_run).evaluation is None
    assert caplog.text.count("results.json cannot be read") == 4


def test_coco_metric_of_boxes_only(masked_run):
    path = masked_run / "inference" / "masked" / "results.json"
    document = json.loads(path.read_text())
    del document["summary"]["coco_segm"]
    path.write_text(json.dumps(document))
    evaluation = read_run(masked_run).evaluation
    assert set(evaluation.coco) == {"coco_bbox"} == set(evaluation.classes[0].coco)
    assert evaluation.predictions.name == "predictions.csv"


def test_resumed_runs_replace_what_they_repeat(tmp_path, write_log):
    write_log(tmp_path / "metrics.json", [19, 39, 59, 79])
    with open(tmp_path / "metrics.json", "a") as stream:
        stream.write(json.dumps({"iteration": 49, "total_loss": 42.0}) + "\n")
        stream.write(json.dumps({"iteration": 49, "bbox/mAP50": 1.0}) + "\n")
    log = read_run(tmp_path).log
    assert log.iteration.tolist() == [19, 39, 49]
    assert log.values["total_loss"][-1] == 42
    assert np.isnan(log.values["time"][-1])


def test_missing_and_damaged_pieces(tmp_path, caplog):
    data = read_run(tmp_path)
    assert data.log is None and data.evaluation is None and data.config == {}
    assert len(data.problems) == 2
    folder = tmp_path / "inference" / "some"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"classes": [{"name":')
    (tmp_path / "config.yaml").write_text("a: [1")
    (tmp_path / "metrics.json").write_text(
        '{"iteration": 1}\nnonsense\n[1]\n{"iteration": 2, "total_loss": NaN}\n'
    )
    data = read_run(tmp_path)
    assert data.evaluation is None and data.config == {}
    assert data.log is not None and np.isnan(data.log.values["total_loss"]).all()
    assert "cannot be read" in caplog.text and ":2: not JSON" in caplog.text


def test_chooses_the_evaluation_by_name(run):
    other = run / "inference" / "another"
    other.mkdir()
    (other / "results.json").write_text('{"summary": {"bbox": {"mAP50": null}}, "classes": []}')
    assert read_run(run).evaluation.dataset == "another"
    assert math.isnan(read_run(run).evaluation.summary["mAP50"])
    assert read_run(run, "tiny").evaluation.dataset == "tiny"
    missing = read_run(run, "absent")
    assert missing.evaluation is None and "absent" in missing.problems[0]


def test_lazy_configs_are_read_as_plain_data(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model:\n  _target_: a.B\n  size: !!python/tuple [1, 2]\n  f: !!python/name:os.getcwd ''\n"
    )
    assert read_run(tmp_path).config["model"] == {"_target_": "a.B", "size": [1, 2], "f": "os.getcwd"}
