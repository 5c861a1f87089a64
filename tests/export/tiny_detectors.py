"""Images, and detectors with random weights that detect something in them."""

import numpy as np
import torch
from torch import nn

from longtail_det2.config_files import load_cfg
from longtail_det2.engine.build import build_model
from longtail_det2.export.source import to_input


def drawn_picture(height=240, width=320):
    """Draw rectangles and discs in colours on noise, (height, width, 3) uint8, always the same."""
    generator = np.random.default_rng(0)
    picture = generator.integers(90, 160, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for index in range(12):
        x, y = generator.integers(0, width), generator.integers(0, height)
        side = int(generator.integers(20, 100))
        inside = (columns >= x) & (columns < x + side) & (rows >= y) & (rows < y + side)
        if index % 2:
            inside = (columns - x) ** 2 + (rows - y) ** 2 < (side / 2) ** 2
        picture[inside] = generator.integers(0, 255, 3)
    return picture


NUM_CLASSES = 9
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES)),
    *("MODEL.TINY_BACKBONE.STAGE_CHANNELS", "8,8,8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160", "OUTPUT_DIR", "/somewhere/on/this/machine"),
]
SPREADS = {
    "delta_c.2": 1.0,
    "delta_r.2": 1.0,
    "cls_score": 1.0,
    "bbox_pred": 0.5,
    "objectness_logits": 1.0,
    "anchor_deltas": 0.2,
    "ctrness": 1.0,
    "mask_head.predictor": 1.0,
}
"""Standard deviations that the last layers' outputs are given, by part of the layers' names."""


def calibrate(model, image):
    """Settles batch norm on a picture, and gives the last layers' outputs the spread of a trained model's.

    Random weights make activations that explode and scores that are all 0 or 1: then rounding decides which
    hundred detections are the best.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        model.backbone.train()
        for _ in range(8):
            model.backbone(model.preprocess_image([{"image": image}]).tensor)
        model.eval()
        for part, spread in SPREADS.items():
            for layer in [layer for name, layer in model.named_modules() if name.endswith(part)]:
                seen = []
                handle = layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.std()))
                model([{"image": image}])
                handle.remove()
                if seen:  # on several levels; not at all for what only training uses
                    layer.weight.mul_(spread / max(seen))
    return model


def tiny_detector(loss="sigmoid", *options):
    """(model, config) of the tiny detector on drawn pictures."""
    torch.manual_seed(0)
    cfg = load_cfg(f"shapes/faster_rcnn_tiny_{loss}_shapes.yaml", [*TINY, *options])
    return calibrate(build_model(cfg), to_input(drawn_picture(), 96, 160)), cfg
