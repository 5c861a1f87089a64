"""The real command with real trainings, as short as they can be."""

import json
import os
import subprocess
import sys

import pytest
import yaml

SHORT = {
    **{"SOLVER.MAX_ITER": 4, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.CHECKPOINT_PERIOD": 2},
    **{"MODEL.DEVICE": "cpu", "MODEL.TINY_BACKBONE.STAGE_CHANNELS": [4, 8, 8]},
}
SPECIFICATION = {
    "title": "Two losses, hardly trained",
    "seeds": [1, 2],
    "metrics": {"mAP50_leaves": "leaves", "mAP50_tail": "tail", "mAP50": "all"},
    "data": {
        "shapes": {
            **{"train_images": 48, "validation_images": 6, "image_size": 64, "num_leaves": 4},
            **{"min_objects": 1, "co_label_rate": 0.0, "formats": ["openimages"]},
        }
    },
    "rows": [
        {
            "name": "softmax",
            "config": "shapes/faster_rcnn_tiny_softmax_shapes.yaml",
            "overrides": SHORT,
            "evaluate": [{"name": "ten", "overrides": {"TEST.DETECTIONS_PER_IMAGE": 10}}],
        },
        {
            "name": "tuned",
            "config": "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml",
            "start_from": "softmax",
            "overrides": {**SHORT, "MODEL.RESET_WEIGHTS": ["roi_heads.box_predictor"]},
        },
        {
            "name": "lazy",
            "config": "shapes/faster_rcnn_tiny_sigmoid_shapes.py",
            "overrides": {
                **{"train.max_iter": 2, "train.device": "cpu", "dataloader.train.total_batch_size": 2},
                "model.backbone.stage_channels": [4, 8, 8],
            },
        },
    ],
}


def command(repository, tmp_path, output, specification):
    """Function that runs the command with further arguments."""
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(specification, sort_keys=False))
    script = str(repository / "scripts/run_ablation.py")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, script, str(path), "--output", str(output), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.mark.slow
def test_trainings_and_evaluations_end_in_a_table(repository, tmp_path):
    output = tmp_path / "out put"
    run = command(repository, tmp_path, output, SPECIFICATION)
    done = run("--seeds", "1", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    results = json.loads((output / "results.json").read_text())["results"]
    assert [one["line"] for one in results] == ["softmax", "softmax@ten", "tuned", "lazy"]
    for one in results:
        assert set(SPECIFICATION["metrics"]) < set(one["metrics"]) and one["cpu_seconds"] > 1
    runs = output / "runs" / "shapes"
    assert "Loading from" in (runs / "softmax@ten/seed1/job.log").read_text()
    log = (runs / "tuned/seed1/job.log").read_text()
    assert "softmax/seed1/run/model_final.pth" in log and "Starting training from iteration 0" in log
    assert sorted(one.name for one in (runs / "softmax/seed1/run").glob("*.pth")) == ["model_final.pth"]
    table = (output / "table.md").read_text()
    assert "| lazy | 1 |" in table and "3 trainings and 1 further evaluations" in table
    again = run("--seeds", "1")
    assert again.returncode == 0 and "train " not in again.stdout


@pytest.mark.slow
def test_shapes_in_lvis_form(repository, tmp_path):
    """The names of the configs' data sets find the stores, in YAML and lazy form."""
    data = {**SPECIFICATION["data"]["shapes"], "formats": ["lvis"], "lvis_thresholds": [8, 16]}
    prepare = ["category_statistics.py --store {data}/stores/train --output {data}/statistics"]
    metrics = {"lvis_bbox/AP": "box", "lvis_segm/AP": "mask", "lvis_segm_fixed/AP": "mask, fixed"}
    lazy = SPECIFICATION["rows"][2]["overrides"]
    specification = {
        "seeds": [1],
        "metrics": metrics,
        "data": {"lvis": {**data, "prepare": prepare}},
        "rows": [
            {
                "name": "yaml",
                "config": "shapes/mask_rcnn_tiny_softmax_shapes_lvis.yaml",
                "overrides": {**SHORT, "SOLVER.MAX_ITER": 2},
            },
            {"name": "lazy", "config": "shapes/mask_rcnn_tiny_softmax_shapes_lvis.py", "overrides": lazy},
        ],
    }
    output = tmp_path / "out"
    done = command(repository, tmp_path, output, specification)("--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((output / "results.json").read_text())["results"]
    assert [one["line"] for one in results] == ["yaml", "lazy"]
    for one in results:
        assert set(metrics) < set(one["metrics"]) and "mAP50" not in one["metrics"]
        assert "coco_bbox/AP" not in one["metrics"] and 0 <= one["metrics"]["lvis_segm/AP"] <= 100
    assert (output / "data/lvis/shapes_lvis/statistics/statistics.json").is_file()
