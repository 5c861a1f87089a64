"""The gradients of a classifier in training: for each class, those that raised its logit and lowered it.

In a long tail a rare class's logit is pushed down by the objects of all other classes far more than it is
pushed up by its own few (Wang et al. 2021, figure 1, plot the ratio of the two over the classes). A loss
for long tails should bring the ratios nearer to each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.modeling.roi_heads import MultiLabelFastRCNNOutputLayers
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import write_json

logger = logging.getLogger(__name__)

CLASS_GRADIENTS_FILE = "class_gradients.json"


class ClassGradients(HookBase):
    """Sum the gradients of each class's logit over a training and write class_gradients.json at its end.

    With z_rj the logit of class j for region r, what is summed over all regions of all steps is

        positive_j = sum_r max(-dL/dz_rj, 0)    negative_j = sum_r max(dL/dz_rj, 0)

    In softmax, sigmoid and Seesaw losses the first sum is over the regions with class j and the second over
    those without. Labels are not used. Only rank 0 accumulates, over its own proposals; checkpoints keep the
    sums. Gradients are those of the loss before clipping; under mixed precision they contain the scale of
    each step, which does not change the ratio of the two sums.

    The file: {"class_ids": [...], "iterations": n, "predictors": {name: {"positive": [...], "negative":
    [...]}}}, one predictor, or one for each stage of a cascade.
    """

    def __init__(self, model: nn.Module, class_ids: Sequence[str], output_dir: str) -> None:
        """Listen to the classifiers of a model.

        Args:
            model: before it is wrapped for distributed training.
            class_ids: of the K classes.
            output_dir: folder of the run.

        Raises:
            ConfigError: the model has no classifier of regions.
        """
        self._class_ids, self._output_dir = list(class_ids), output_dir
        self._sums: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, MultiLabelFastRCNNOutputLayers):
                self._sums[name] = torch.zeros(2, len(self._class_ids), dtype=torch.float64)
                module.cls_score.register_forward_hook(partial(self._listen, name))
        if not self._sums:
            raise ConfigError(
                "the log of class gradients (MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS, or "
                "train.log_class_gradients in a lazy config) needs a detector with ROI heads"
            )

    def _listen(self, name: str, _module: nn.Module, _inputs: object, logits: Tensor) -> None:
        if logits.requires_grad and torch.is_grad_enabled() and comm.is_main_process():
            logits.register_hook(partial(self.add, name))

    def add(self, name: str, gradient: Tensor) -> None:
        """Add the gradient (R, L) of a predictor's logits to its sums; L may exceed K."""
        of_classes = gradient.detach()[:, : len(self._class_ids)].double()
        self._sums[name] = sums = self._sums[name].to(of_classes.device)
        sums[0] -= of_classes.clamp(max=0).sum(dim=0)
        sums[1] += of_classes.clamp(min=0).sum(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"sums": {name: sums.tolist() for name, sums in self._sums.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with saved sums."""
        for name, sums in state_dict["sums"].items():
            if name in self._sums:
                self._sums[name].copy_(torch.tensor(sums, dtype=torch.float64))

    def after_step(self) -> None:
        """Write the file after the last step."""
        if self.trainer.iter + 1 < self.trainer.max_iter or not comm.is_main_process():
            return
        predictors = {
            name: {"positive": raised, "negative": lowered}
            for name, (raised, lowered) in ((name, sums.tolist()) for name, sums in self._sums.items())
        }
        content = {
            "class_ids": self._class_ids,
            "iterations": self.trainer.max_iter,
            "predictors": predictors,
        }
        path = os.path.join(self._output_dir, CLASS_GRADIENTS_FILE)
        try:
            write_json(path, content)
        except OSError as error:  # training is over
            logger.error("%s cannot be written: %s", path, error)
