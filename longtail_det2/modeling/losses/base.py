"""The contract between a head and its classification loss.

Shape shorthand in this package:

    R: number of rows (RoIs, anchors or images), concatenated over the minibatch; may be 0
    K: number of foreground classes; class index K and the last column mean background (Detectron2's order)
    L: number of logits: K + 1 for softmax, K for sigmoid, whatever the loss needs

A head asks its loss how many logits to produce, how they become scores, which bias to start from and what
each row costs. The head samples the rows, sums the losses (:func:`reduce_losses`) and divides them
(:class:`LossNormalizer`), so a loss serves RoI heads, dense heads and image classifiers alike.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.config import own_arguments
from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import FocalBackground, at_least_float32
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


class ClassificationLoss(nn.Module, ABC):
    """Row-wise losses of a classifier, and how its logits are read.

    State (counts, rates, frequencies) lives in buffers. A subclass reads no file, computes in at least
    float32, never synchronizes with the host, returns the same keys for every batch, and keeps its results
    attached to the graph also when there are no rows or no positives.

    Attributes:
        num_classes: K.
        num_logits: L, the width of the classifier.
        config_node: node of ``MODEL.CLASSIFICATION_LOSS`` whose keys, in lower case, are arguments.
    """

    config_node: str | None = None

    def __init__(self, num_classes: int, num_logits: int) -> None:
        """Set K and L; raises ConfigError where K is not positive."""
        super().__init__()
        if num_classes < 1:
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; a loss needs at least one class. The train "
                "scripts replace -1 by the number of classes of DATASETS.TRAIN; elsewhere set it yourself"
            )
        self.num_classes, self.num_logits = num_classes, num_logits
        self._unset: dict[str, bool] = {}

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Return the constructor's arguments: K and, from `cfg`, the keys of `config_node`.

        A subclass adds what it takes from other keys or from the `statistics` of the training data.
        """
        if cls.config_node is None:
            return {"num_classes": num_classes}
        node, key = cfg.MODEL.CLASSIFICATION_LOSS[cls.config_node], f"CLASSIFICATION_LOSS.{cls.config_node}"
        return {"num_classes": num_classes, **own_arguments(cls, node, f"MODEL.{key}")}

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Turn logits into scores; differentiable, and allowed in training.

        Args:
            logits: (R, L), any floating type.

        Returns:
            (R, K + 1) in [0, 1], at least float32, background in the last column. A loss that scores each
            class independently has no background score and puts 0 there.
        """

    @abstractmethod
    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute the losses per row.

        Args:
            logits: (R, L), any floating type.
            targets: of the same R rows, on the same device.

        Returns:
            (R,) each, at least float32, by name; the names begin with "loss_". Ignored rows have 0.
        """

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute the losses per row as if every row were background; keys and values as `unreduced`.

        Dense heads call this for all anchors. The default makes an (R, K) label matrix; a loss for dense
        heads overrides it without one, and a subclass that changes `unreduced` changes this as well.
        """
        rows = torch.full((len(logits),), self.num_classes, device=logits.device)
        return self.unreduced(logits, MultiLabelTargets.from_classes(rows, self.num_classes))

    def focal_background(self) -> FocalBackground | None:
        """Return what :meth:`background` computes in the form of a kernel; None where it has another form.

        A class with such a form has L = K and the one loss ``loss_cls``. A subclass that overrides
        :meth:`background` has none, unless it overrides this as well.
        """
        return None

    def bias(self, prior: float | Tensor | None = None) -> Tensor | None:
        """Return the bias (L,) that the classifier starts from, or None to leave the layer's own.

        Args:
            prior: probability of foreground before training: a scalar (the score of every class for sigmoid
                losses, shared equally among the classes for softmax losses), or (K,) measured per class.
                None: the loss's default for RoI heads.

        Raises:
            ConfigError: `prior` is no probability.
        """
        return None

    def update(self, targets: MultiLabelTargets) -> None:
        """Count the rows of a training step; the head calls this once per step, before `unreduced`."""

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ConfigError where K is not a head's number of classes."""
        if num_classes != self.num_classes:
            name = type(self).__name__
            raise ConfigError(
                f"{name} was made for {self.num_classes} classes, but its head has {num_classes}"
            )

    def checked(self, logits: Tensor, targets: MultiLabelTargets | None = None) -> Tensor:
        """Return the logits in at least float32.

        Raises:
            TypeError: `targets` are no :class:`MultiLabelTargets`.
            ValueError: the logits are not (R, L), or the targets are not of R rows and K classes.
        """
        name = type(self).__name__
        if targets is not None and not isinstance(targets, MultiLabelTargets):
            kind = type(targets).__name__
            raise TypeError(f"{name} needs MultiLabelTargets (such as from_classes makes), got {kind}")
        if logits.ndim != 2 or logits.shape[1] != self.num_logits:
            wanted, found = f"(R, {self.num_logits})", tuple(logits.shape)
            raise ValueError(f"{name} of {self.num_classes} classes needs logits {wanted}, got {found}")
        if targets is not None and targets.labels.shape != (len(logits), self.num_classes + 1):
            wanted, found = (len(logits), self.num_classes + 1), tuple(targets.labels.shape)
            raise ValueError(f"{name} needs labels {wanted} beside logits of {len(logits)} rows, got {found}")
        return at_least_float32(logits)

    def hold(
        self, name: str, values: np.ndarray | Tensor | None, shape: tuple[int, ...], at_most: float = math.inf
    ) -> None:
        """Keep an array of statistics as a buffer; None leaves it unset until a checkpoint brings it.

        Raises:
            ConfigError: `values` has another shape, or a value outside [0, `at_most`].
        """
        held = torch.full(shape, -1.0)
        if values is not None:
            held = torch.as_tensor(values, device="cpu", dtype=torch.float32).detach().clone()
            if held.shape != shape or not ((held >= 0) & (held <= at_most)).all():
                raise ConfigError(
                    f"{type(self).__name__} needs {name} of shape {shape}, numbers in [0, {at_most}], got "
                    f"shape {tuple(held.shape)} with numbers from {held.min():g} to {held.max():g}"
                )
        self.register_buffer(name, held)
        self._unset[name] = values is None

    def held(self, name: str) -> Tensor:
        """Return an array of statistics; raises ConfigError where neither data nor weights brought it."""
        if self._unset[name]:
            raise ConfigError(
                f"{type(self).__name__} has no {name}: name a file of class statistics "
                "(DATASETS.STATISTICS), or load weights that were trained with this loss"
            )
        return self.get_buffer(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, unset in self._unset.items():
            own, found = self.get_buffer(name), state_dict.get(prefix + name)
            if found is None or found.shape != own.shape:
                continue
            if bool((found < 0).any()):  # saved while unset
                state_dict[prefix + name] = own
                continue
            if not unset and not torch.equal(found.to(own), own):
                logger.warning(
                    "The loaded weights bring other %s than the training data, and theirs are used. For the "
                    "data's, add the name of this loss (%s) to MODEL.RESET_WEIGHTS",
                    name,
                    prefix.rstrip("."),
                )
            self._unset[name] = False
        super()._load_from_state_dict(state_dict, prefix, *args)


def class_priors(prior: float | Tensor, num_classes: int, shared: bool) -> Tensor:
    """Expand and check a prior of :meth:`ClassificationLoss.bias`.

    Args:
        prior: scalar, or (K,).
        num_classes: K.
        shared: the classes exclude each other: they share a scalar, and their sum must be below 1.

    Returns:
        (K,) float64 in (0, 1).

    Raises:
        ConfigError: a value is outside (0, 1), or the sum is, or there are not K values.
    """
    priors = torch.as_tensor(prior, device="cpu", dtype=torch.float64).detach()
    if priors.ndim == 0:
        priors = (priors / num_classes if shared else priors).repeat(num_classes)
    if priors.shape != (num_classes,) or not ((priors > 0) & (priors < 1)).all():
        raise ConfigError(f"a prior must be in (0, 1), one number or {num_classes}, got {prior}")
    if shared and float(priors.sum()) >= 1:
        raise ConfigError(f"priors of classes that exclude each other must sum to less than 1, got {prior}")
    return priors


def reduce_losses(
    unreduced: Mapping[str, Tensor], normalizer: float | Tensor, weights: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Sum the losses of all rows, divide them by the head's normalizer and weight them.

    Args:
        unreduced: tensors of any shape by name.
        normalizer: positive scalar without gradient.
        weights: by key; a key without one takes that of ``loss_cls``, else 1.

    Returns:
        Scalars with the same keys.
    """
    weights = weights or {}
    default = weights.get("loss_cls", 1.0)
    return {
        name: values.sum() / normalizer * weights.get(name, default) for name, values in unreduced.items()
    }


def is_recomputed() -> bool:
    """Whether this is a second forward pass, for the gradient of checkpointed activations."""
    return torch._C._current_graph_task_id() >= 0


NORMALIZERS = ("regions", "foreground", "foreground_average", "elements")


class LossNormalizer(nn.Module):
    """The number that a head divides the sum of its losses over regions by, always at least 1.

    ======================  ===========================================================================
    ``regions``             all sampled regions of this process (Fast R-CNN)
    ``foreground``          foreground regions of all processes, divided by the number of processes
    ``foreground_average``  a moving average of that (RetinaNet, FCOS)
    ``elements``            regions times classes, which makes the classification loss a mean over its
                            elements; a box loss, which has no classes, is divided by the regions
    ======================  ===========================================================================

    The average is ``average <- momentum * average + (1 - momentum) * max(foreground, 1)`` as in Detectron2,
    but a buffer, so that a resumed run continues it, and over all processes, so that several of them with a
    part of the batch each train as one with the whole.
    """

    average: Tensor | None

    def __init__(self, kind: str = "regions", *, initial: float = 100.0, momentum: float = 0.9) -> None:
        """Make the normalizer; `initial` and `momentum` in [0, 1) are those of the moving average.

        Raises:
            ConfigError: unknown `kind`.
        """
        super().__init__()
        if kind not in NORMALIZERS:
            raise ConfigError(f"LOSS_NORMALIZER is {kind!r}; it must be one of {', '.join(NORMALIZERS)}")
        self.kind, self.momentum = kind, momentum
        start = torch.tensor(float(initial)) if kind == "foreground_average" else None
        self.register_buffer("average", start)

    @torch.no_grad()
    def forward(
        self, regions: int, foreground: Tensor, num_classes: int = 1
    ) -> tuple[Tensor | float, Tensor | float]:
        """Count a batch of K classes; `regions` and `foreground`, a scalar, are those of this process.

        Returns:
            Two numbers: the divisor of the classification losses, and that of the box loss.
        """
        if not self.kind.startswith("foreground"):
            count = float(max(regions, 1))
            return (count * num_classes if self.kind == "elements" else count), count
        processes, average = comm.get_world_size(), self.average
        if average is not None and (is_recomputed() or not self.training):
            return average / processes, average / processes
        count = foreground.to(torch.float32, copy=True)
        if processes > 1:
            torch.distributed.all_reduce(count)
        count = count.clamp(min=1)
        if average is not None:
            count = average.mul_(self.momentum).add_(count, alpha=1 - self.momentum)
        return count / processes, count / processes
