"""Fine-tuning from a checkpoint in the layout of Detectron2's COCO models, as .pkl and as .pth."""

import pickle

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.modeling import build_model as build_detectron2_model

from longtail_det2.config_files import load_cfg
from longtail_det2.engine.run import Run
from longtail_det2.engine.trainer import Trainer

CONFIG = "own_data/faster_rcnn_R_50_FPN.yaml"


@pytest.mark.slow
def test_all_but_the_predictor_is_loaded_and_trains(yaml_args, tmp_path):
    cfg = detectron2_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    state = build_detectron2_model(cfg).state_dict()
    pixels = ("pixel_mean", "pixel_std")  # Detectron2's files have no such buffers
    arrays = {name: value.numpy() for name, value in state.items() if name not in pixels}
    with (tmp_path / "coco.pkl").open("wb") as file:
        zoo = {"__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
        pickle.dump({"model": arrays, **zoo}, file)
    torch.save({"model": state}, tmp_path / "coco.pth")
    for name in ("coco.pkl", "coco.pth"):
        options = [
            *("MODEL.WEIGHTS", str(tmp_path / name), "OUTPUT_DIR", str(tmp_path / name.replace(".", "_"))),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "1024", "SOLVER.IMS_PER_BATCH", "1"),
        ]
        run: Run = Trainer(load_cfg(CONFIG, yaml_args(*options, max_iter=2).opts))
        run.resume_or_load(resume=False)
        own = run.model.state_dict()
        for key in own:
            if not key.startswith("roi_heads.box_predictor") and key not in pixels:
                assert torch.equal(own[key], state[key]), key
        assert own["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4
        assert 0 <= run.train()["bbox"]["mAP50"] <= 100
