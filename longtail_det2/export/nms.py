"""Non-maximum suppression within classes, in a form that an ONNX graph can hold.

Detectron2's ``batched_nms`` branches on the number of boxes. A tracer would record one branch: the one that
shifts the boxes of each class away from those of others and then runs once. In float32 and with hundreds of
classes that shift rounds coordinates to a sixteenth of a pixel, and other boxes survive than in eager mode,
which shifts few boxes only. So the arithmetic here branches on the boxes it is run with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms

SHIFTED_UP_TO = 1000
"""Number of boxes up to which torchvision, on a CPU, shifts boxes instead of looping over classes."""

_LOWEST = -3.0e38
"""Below every score. ONNX's operator leaves out scores that are not above a threshold, so it needs one."""

NMS = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(boxes (n, 4), scores (n,), classes (n,), IoU threshold) to indices of survivors, best score first."""


def onnx_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """One ``NonMaxSuppression`` with a row of scores for each class that occurs.

    Memory is (classes that occur) x (boxes); ``MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST`` bounds the second.

    Args:
        boxes: (n, 4) XYXY, n may be 0.
        scores: (n,).
        classes: (n,) int64.
        iou_threshold: of two boxes of a class that overlap more, the one with the lower score goes.

    Returns:
        Indices of the survivors, best score first.
    """
    boxes = boxes.float()
    # A maximum over no boxes would fail; coordinates are never below 0, so the extra 0 changes nothing.
    reach = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    few: Any = boxes.shape[0] <= SHIFTED_UP_TO
    shifted = few.to(boxes) if isinstance(few, Tensor) else float(few)  # recorded, a size is a tensor
    boxes = boxes + (classes.to(boxes) * (reach * shifted))[:, None]
    survivors: Tensor = _PerClassNMS.apply(boxes, scores, classes, iou_threshold)
    return survivors


class _PerClassNMS(torch.autograd.Function):
    """Suppression within classes that exports as standard ONNX operators."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
        """Run while the graph is recorded; the result only has to have the right type and shape."""
        return torchvision_batched_nms(boxes, scores, classes, iou_threshold)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, classes: Any, iou_threshold: float) -> Any:
        """Return the operators that stand for :meth:`forward` in an ONNX graph of opset 13 or later."""

        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        first, second = constant([0], torch.int64), constant([1], torch.int64)
        occurring = g.op("Unique", classes, sorted_i=1, outputs=4)[0]
        own = g.op("Equal", g.op("Unsqueeze", occurring, second), g.op("Unsqueeze", classes, first))
        scores = g.op("Cast", scores, to_i=torch.onnx.TensorProtoDataType.FLOAT)
        rows = g.op("Where", own, g.op("Unsqueeze", scores, first), constant(-float("inf"), torch.float32))
        selected = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, first),
            g.op("Unsqueeze", rows, first),
            constant([torch.iinfo(torch.int64).max], torch.int64),
            constant([iou_threshold], torch.float32),
            constant([_LOWEST], torch.float32),
        )
        kept = g.op("Gather", selected, constant(2, torch.int64), axis_i=1)
        kept_scores = g.op("Gather", scores, kept, axis_i=0)
        order = g.op("TopK", kept_scores, g.op("Shape", kept_scores), largest_i=1, sorted_i=1, outputs=2)[1]
        return g.op("Gather", kept, order, axis_i=0)
