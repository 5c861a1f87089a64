"""An image, and the folder of a run of a detector with random weights that detects something."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import NUM_CLASSES, drawn_picture, tiny_detector

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.config_names import config_root
from longtail_det2.engine.run_record import write_run_record


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """What a training run leaves behind: checkpoint with optimizer, config, metrics, log, an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model, cfg = tiny_detector()
    ids = [f"/m/{index}" for index in range(NUM_CLASSES)]
    optimizer = torch.optim.AdamW(model.parameters())
    folder.mkdir()
    checkpointer = ClassAwareCheckpointer(model, str(folder), class_ids=ids, trainer=optimizer)
    checkpointer.save("model_0000009", iteration=9)
    checkpointer.save("model_final", iteration=19)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": 9, "total_loss": 2.0},
        {"iteration": 19, "total_loss": 1.0},
        {"iteration": 20, "bbox/mAP50": 12.5, "bbox/mAP50_tail": float("nan")},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iterat')
    config = config_root() / "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
    write_run_record(str(folder), config_file=str(config), seed=1)
    evaluation = folder / "inference/shapes_validation"
    evaluation.mkdir(parents=True)
    classes = [{"id": one, "name": one.upper(), "AP": 0.1} for one in ids]
    (evaluation / "results.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.fixture(scope="session")
def picture():
    """(H, W, 3) uint8."""
    return drawn_picture()


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory, picture):
    """The image on disk, without loss."""
    path = tmp_path_factory.mktemp("images") / "picture.png"
    Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1])).save(path)
    return path
