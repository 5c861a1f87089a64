"""Convert a checkpoint of TSD's released code (mmdetection 1.x) to weights of this project.

python scripts/convert_tsd_checkpoint.py tsd_r50.pth weights.pth

The result is MODEL.WEIGHTS of projects/TSD/configs/coco/faster_rcnn_R_50_FPN_tsd_official.yaml. Background is
the first class there and the last one here; offsets have the same order in both.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from longtail_det2.checkpoint.files import read_checkpoint
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer

logger = logging.getLogger("convert_tsd_checkpoint")

HEADS, BRANCH = "roi_heads.", "roi_heads.box_branch."
RENAMED = (
    (r"backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.", r"backbone.bottom_up.res<\1>.\2.conv\3."),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.", r"backbone.bottom_up.res<\1>.\2.conv\3.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.", r"backbone.bottom_up.res<\1>.\2.shortcut."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.", r"backbone.bottom_up.res<\1>.\2.shortcut.norm."),
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn_lateral<<\1>>."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn_output<<\1>>."),
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"bbox_head\.shared_fc\.0\.", f"{BRANCH}shared_fc."),
    (r"bbox_head\.(delta_[cr]\.\d)\.", rf"{BRANCH}\1."),
    (r"bbox_head\.TSD_pc_fcs\.(\d)\.", rf"{HEADS}box_head.fc<\1>."),
    (r"bbox_head\.TSD_pr_fcs\.(\d)\.", rf"{BRANCH}regression_head.fc<\1>."),
    (r"bbox_head\.TSD_fc_cls\.", f"{HEADS}box_predictor.cls_score."),
    (r"bbox_head\.TSD_fc_reg\.", f"{HEADS}box_predictor.bbox_pred."),
    (r"bbox_head\.shared_fcs\.(\d)\.", rf"{BRANCH}sibling.head.fc<\1>."),
    (r"bbox_head\.fc_cls\.", f"{BRANCH}sibling.predictor.cls_score."),
    (r"bbox_head\.fc_reg\.", f"{BRANCH}sibling.predictor.bbox_pred."),
    (r"mask_head\.convs\.(\d)\.conv\.", rf"{HEADS}mask_head.mask_fcn<\1>."),
    (r"mask_head\.upsample\.", f"{HEADS}mask_head.deconv."),
    (r"mask_head\.conv_logits\.", f"{HEADS}mask_head.predictor."),
)
"""Names there and here; <n> is n + 1, <<n>> is n + 2."""


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under this project's names, background last.

    Args:
        state_dict: of mmdetection 1.x, for K classes and background.

    Raises:
        ConfigError: a name is unknown, as in a cascade, whose class-specific boxes have no counterpart here.
    """
    converted, unknown = {}, []
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        new = _new_name(name)
        if new is None:
            unknown.append(name)
            continue
        if "cls_score." in new:
            value = torch.cat([value[1:], value[:1]])
        elif "bbox_pred." in new and len(value) > 4:
            value = value[4:]
        elif "mask_head.predictor." in new and len(value) > 1:
            value = value[1:]
        converted[new] = value
    if unknown or f"{BRANCH}shared_fc.weight" not in converted:
        names = ", ".join(unknown[:3]) or "no bbox_head.shared_fc"
        raise ConfigError(f"this is no Faster or Mask R-CNN of TSD's released code: {names}")
    return converted


def _new_name(name: str) -> str | None:
    for pattern, replacement in RENAMED:
        if match := re.match(pattern, name):
            new = match.expand(replacement)
            new = re.sub(r"<<(\d+)>>", lambda found: str(int(found[1]) + 2), new)
            return re.sub(r"<(\d+)>", lambda found: str(int(found[1]) + 1), new) + name[match.end() :]
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Read one file and write the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of the released code, .pth")
    parser.add_argument("output", type=Path, help="file to write, .pth")
    arguments = parser.parse_args(argv)
    try:
        data = read_checkpoint(str(arguments.checkpoint))
        weights = convert(data["model"])
    except ConfigError as error:
        sys.exit(f"{arguments.checkpoint}: {error}")
    with atomic_writer(str(arguments.output), "wb") as file:
        torch.save({"model": weights}, file)


if __name__ == "__main__":
    main()
