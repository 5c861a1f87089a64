"""Parts of Detectron2's inference, for one image and without branches on what is in it.

``torch.export`` records what Python does with symbols for the image's size and for the numbers of boxes, so
Python must not branch on them. Each function here does what Detectron2's of the same name does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.modeling import poolers
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.modeling.meta_arch.dense import MultiLabelDenseDetector

from .nms import batched_nms

Size = tuple[int, int]


@contextmanager
def recordable() -> Iterator[None]:
    """While it lasts, the models of Detectron2 and of this package run the functions of this module."""
    replaced: list[tuple[Any, str, Any]] = [
        (ImageList, "from_tensors", _from_tensors),
        (DenseDetector, "_decode_per_level_predictions", _decode_level),
        (MultiLabelDenseDetector, "_decode_per_level_predictions", _decode_level),
    ]
    functions: dict[Any, Any] = {
        poolers.convert_boxes_to_pooler_format: _boxes_for_pooler,
        proposal_utils.find_top_rpn_proposals: _find_top_rpn_proposals,
        fast_rcnn.batched_nms: _some_of_nms,
        fast_rcnn.fast_rcnn_inference_single_image: _fast_rcnn_inference_single_image,
    }
    for name, module in list(sys.modules.items()):
        if name.startswith(("detectron2.modeling.", "longtail_det2.modeling.")):
            replaced += [
                (module, original.__name__, other)
                for original, other in functions.items()
                if getattr(module, original.__name__, None) is original
            ]
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def _some(indices: Tensor) -> Tensor:
    """Record the branches for at least one index; ONNX's operators take them for none, too."""
    torch._check(indices.shape[0] > 0)
    return indices


def _from_tensors(
    images: list[Tensor], size_divisibility: int = 0, pad_value: float = 0.0, **_: Any
) -> ImageList:
    (image,) = images
    height, width = image.shape[-2:]
    step = max(size_divisibility, 1)
    padded = F.pad(image, [0, -width % step, 0, -height % step], value=pad_value)
    return ImageList(padded[None], [(height, width)])


def _clipped(boxes: Tensor, image_size: Size) -> Tensor:
    clipped = Boxes(boxes)
    clipped.clip(image_size)
    return clipped.tensor


def _boxes_for_pooler(box_lists: list[Boxes]) -> Tensor:
    (boxes,) = box_lists
    return F.pad(boxes.tensor, [1, 0])  # the first column is the number of the image


def _some_of_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    return _some(batched_nms(boxes, scores, classes, iou_threshold))


def _find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[Size],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    best = [logits[0].topk(torch.sym_min(logits.shape[1], pre_nms_topk)) for logits in pred_objectness_logits]
    scores = torch.cat([values for values, _ in best])
    boxes = torch.cat([of_level[0, places] for of_level, (_, places) in zip(proposals, best, strict=True)])
    levels = torch.cat([torch.full_like(places, level) for level, (_, places) in enumerate(best)])
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    boxes = _clipped(boxes, image_sizes[0])
    valid = _some((finite & Boxes(boxes).nonempty(threshold=min_box_size)).nonzero()[:, 0])
    boxes, scores = boxes[valid], scores[valid]
    keep = _some_of_nms(boxes, scores, levels[valid], nms_thresh)[:post_nms_topk]
    return [Instances(image_sizes[0], proposal_boxes=Boxes(boxes[keep]), objectness_logits=scores[keep])]


def _fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: Size,
    score_thresh: Tensor | float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    rows, classes = _some(((scores[:, :-1] > score_thresh) & finite[:, None]).nonzero()).unbind(dim=1)
    per_class = boxes.shape[1] > 4
    boxes = boxes.unflatten(1, (-1, 4))[rows, classes if per_class else torch.zeros_like(classes)]
    boxes, scores = _clipped(boxes, image_shape), scores[rows, classes]
    keep = _some_of_nms(boxes, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    found = Instances(
        image_shape, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep]
    )
    return found, rows[keep]


def _decode_level(
    detector: Any,
    anchors: Boxes,
    pred_scores: Tensor,
    pred_deltas: Tensor,
    score_thresh: Tensor | float,
    topk_candidates: int,
    image_size: Size,
) -> Instances:
    rows, classes = _some((pred_scores > score_thresh).nonzero()).unbind(dim=1)
    scores, best = pred_scores[rows, classes].topk(torch.sym_min(rows.shape[0], topk_candidates))
    rows, classes = rows[best], classes[best]
    boxes = detector.box2box_transform.apply_deltas(pred_deltas[rows], anchors.tensor[rows])
    return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
