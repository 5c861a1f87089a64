"""Non-maximum suppression within classes, as one operator of an exported graph.

Detectron2's ``batched_nms`` branches on the number of boxes: few are shifted away from those of other classes
and suppressed at once, many class by class. In float32 and with hundreds of classes that shift rounds
coordinates to a sixteenth of a pixel, and other boxes survive. A graph must not hold one branch for all
images, so the arithmetic here branches on the boxes it is run with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms

SHIFTED_UP_TO = 1000
"""Number of boxes up to which torchvision, on a CPU, shifts boxes instead of looping over classes."""

_LOWEST = -3.0e38
"""Below every score. ONNX's operator leaves out scores that are not above a threshold, so it needs one."""


@torch.library.custom_op("longtail_det2::batched_nms", mutates_args=())
def _operator(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    return torchvision_batched_nms(boxes, scores, classes, iou_threshold)


@_operator.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Detectron2's function of this name, as an operator that :func:`translations` turns into ONNX.

    Args:
        boxes: (n, 4) XYXY, n may be 0.
        scores: (n,).
        classes: (n,) int64.
        iou_threshold: of two boxes of a class that overlap more, the one with the lower score goes.

    Returns:
        Indices of the survivors, best score first.
    """
    return _operator(boxes.float(), scores, classes, iou_threshold)


def translations() -> dict[Any, Any]:
    """Return the ONNX form of the operator, as ``torch.onnx.export`` takes it.

    It is one ``NonMaxSuppression`` with a row of scores for each class that occurs. Memory is (classes that
    occur) x (boxes); ``MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST`` bounds the second.

    Raises:
        ImportError: onnxscript is not installed.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def onnx_nms(boxes: Any, scores: Any, classes: Any, iou_threshold: float) -> Any:
        first, second = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
        # A maximum over no boxes would fail; coordinates are never below 0, so the extra 0 changes nothing.
        coordinates = op.Reshape(boxes, op.Constant(value_ints=[-1]))
        highest = op.ReduceMax(op.Concat(coordinates, op.Constant(value_floats=[0.0]), axis=0))
        reach = op.Add(highest, op.Constant(value_float=1.0))
        few = op.LessOrEqual(op.Shape(scores), op.Constant(value_ints=[SHIFTED_UP_TO]))
        shifts = op.Mul(op.CastLike(classes, boxes), op.Mul(reach, op.CastLike(few, boxes)))
        boxes = op.Add(boxes, op.Unsqueeze(shifts, second))
        occurring, _, _, _ = op.Unique(classes, sorted=1)
        own = op.Equal(op.Unsqueeze(occurring, second), op.Unsqueeze(classes, first))
        rows = op.Where(own, op.Unsqueeze(scores, first), op.Constant(value_float=-float("inf")))
        selected = op.NonMaxSuppression(
            op.Unsqueeze(boxes, first),
            op.Unsqueeze(rows, first),
            op.Constant(value_ints=[torch.iinfo(torch.int64).max]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[_LOWEST]),
        )
        kept = op.Gather(selected, op.Constant(value_int=2), axis=1)
        kept_scores = op.Gather(scores, kept, axis=0)
        _, order = op.TopK(kept_scores, op.Shape(kept_scores), largest=1, sorted=1)
        return op.Gather(kept, order, axis=0)

    return {torch.ops.longtail_det2.batched_nms.default: onnx_nms}
