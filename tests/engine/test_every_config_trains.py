"""Configs of each kind, YAML and lazy, train 20 iterations on small images and evaluate."""

import math

import pytest
import torch

from longtail_det2 import model_zoo
from longtail_det2.engine import lazy, trainer

pytestmark = pytest.mark.slow
ITERATIONS = 20
LIKE_ANOTHER = (
    *("R_101", "X_101", "2x_LVIS", "OpenImages_sigmoid", "R_50_FPN_concurrent", "seesaw_rfs.py"),
    *("R_50_FPN_tsd.", "tsd_concurrent", "R_50_FPN_sampling_free", "OpenImages_distribution_balanced"),
    *("VOC-MLT", "voc_mlt", "COCO-MLT"),
)
"""Parts of names of configs that have nothing but what others have: those are only built."""
NAMES = [name for name in model_zoo.list_configs() if not any(one in name for one in LIKE_ANOTHER)]
PHASES = [["UniformTrainingSampler", ITERATIONS - 8], ["SoftBalanceTrainingSampler", 8, {"lambda_": 0.7}]]


def yaml_options(name):
    options = [
        *("MODEL.ROI_HEADS.NUM_CLASSES", "-1", "MODEL.WEIGHTS", "", "SEED", "1"),
        *("SOLVER.WARMUP_ITERS", "5", "SOLVER.BASE_LR", "0.0001", "SOLVER.STEPS", "()"),
        *("DATALOADER.NUM_WORKERS", "0"),
    ]
    if "lvis" in name.lower():  # the small store is not in LVIS's form
        options += ["TEST.METRICS", "('lvis',)"]
    if "hybrid" in name:
        options += ["DATALOADER.PHASES", str(PHASES)]
    if "R_50" in name:  # frozen normalisation without trained weights diverges
        options += ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"]
        # Masks of hundreds of regions take a minute.
        options += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "TEST.DETECTIONS_PER_IMAGE", "30"]
    return options


def lazy_options(name):
    options = [
        f"model.{'roi_heads.' if 'rcnn' in name else ''}num_classes=-1",
        *("train.init_checkpoint=''", "train.seed=1"),
        *("dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        *("lr_multiplier.warmup_iters=5", "optimizer.base_lr=0.0001"),
    ]
    if "lvis" in name.lower():
        options.append("dataloader.evaluator.metrics=[lvis]")
    if "hybrid" in name:
        phases = str(PHASES).replace("'lambda_'", "lambda_")  # in Hydra's syntax keys have no quotes
        options.append(f"dataloader.train.phases={phases}")
    if "R_50" in name:
        resnet = "model.backbone" + ("" if "classifier" in name else ".bottom_up")
        options += [
            *(f"{resnet}.stem.norm=BN", f"{resnet}.freeze_at=0"),
            "lr_multiplier.steps=[]",
            *(["model.roi_heads.batch_size_per_image=64"] if "rcnn" in name else []),
        ]
    return options


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_evaluates(name, yaml_args, lazy_args, tmp_path):
    if name.endswith(".yaml"):
        results = trainer.main(yaml_args(*yaml_options(name), config=name, max_iter=ITERATIONS))
    else:
        args = lazy_args(*lazy_options(name), config=name, max_iter=ITERATIONS, tiny=False)
        results = lazy.main(args)
    masks = "mask_rcnn" in name
    if "classifier" in name:
        assert 0 <= results["image_labels"]["mAP"] <= 100
    elif "lvis" in name.lower():
        assert "bbox" not in results and not any(key.startswith("coco") for key in results)
        assert ("lvis_segm" in results) == masks
        assert 0 <= results["lvis_segm" if masks else "lvis_bbox"]["AP"] <= 100
    else:
        assert 0 <= results["bbox"]["mAP50"] <= 100
        assert ("coco_segm" in results) == masks
        assert not masks or 0 <= results["coco_segm"]["AP"] <= 100
    checkpoint = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == ITERATIONS - 1
    assert all(math.isfinite(value.float().sum()) for value in checkpoint["model"].values())
