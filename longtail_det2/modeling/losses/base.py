"""The contract between a classifier and its loss.

Shape shorthand in this package:

    R: number of rows (RoIs, anchors or images), concatenated over the minibatch; may be 0
    K: number of foreground classes; class index K and the last column mean background (Detectron2's order)
    L: number of logits: K + 1 for softmax, K for sigmoid, whatever the loss needs

A head asks its loss how many logits to produce, how they become scores, which bias to start from and what
each row costs. The head samples the rows, sums the losses and divides them (:func:`.reduce_losses`), so a
loss serves RoI heads, dense heads and image classifiers alike. A loss reads no file and no catalog.
"""

from __future__ import annotations

import difflib
import logging
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from longtail_det2.data.statistics import read_statistics
from longtail_det2.layers import at_least_float32
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")
CLASSIFICATION_LOSS_REGISTRY.__doc__ = """
Classification losses by class name, the values of ``MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS``.

A registered class is a :class:`ClassificationLoss` whose ``__init__`` is decorated with Detectron2's
``configurable`` and whose ``from_config(cls, cfg, num_classes, statistics)`` returns its arguments.
"""


class ClassificationLoss(nn.Module, ABC):
    """Row-wise losses of a classifier, and how its logits are read.

    State (counts, rates, frequencies) lives in buffers. A subclass computes in at least float32, never
    synchronizes with the host, returns the same keys for every batch, and keeps its results attached to the
    graph also when there are no rows or no positives.

    Attributes:
        num_classes: K.
        num_logits: L, the width of the classifier.
    """

    def __init__(self, num_classes: int, num_logits: int) -> None:
        """Set K and L.

        Raises:
            ConfigError: K is not positive.
        """
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"a loss needs at least one class, got num_classes={num_classes}")
        self.num_classes, self.num_logits = num_classes, num_logits
        self._unset: dict[str, bool] = {}

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

    def bias(self, prior: float | Tensor | None = None) -> Tensor | None:
        """Return the bias that the classifier starts from.

        Args:
            prior: probability of foreground before training: a scalar (the score of every class for sigmoid
                losses, shared equally among the classes for softmax losses), or (K,) measured per class.
                None: the loss's default for RoI heads.

        Returns:
            (L,), or None to leave the layer's own initialization.

        Raises:
            ConfigError: `prior` is no probability.
        """
        return None

    def update(self, targets: MultiLabelTargets) -> None:
        """Count the rows of a training step; the head calls this once per step, before `unreduced`."""

    def check_num_classes(self, num_classes: int) -> None:
        """Compare K with a head's number of classes.

        Raises:
            ConfigError: they differ.
        """
        if num_classes != self.num_classes:
            raise ConfigError(
                f"{type(self).__name__} was made for {self.num_classes} classes, but its head has "
                f"{num_classes}"
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
        self,
        name: str,
        values: np.ndarray | Tensor | None,
        shape: tuple[int, ...],
        at_most: float = math.inf,
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
        """Return an array of statistics.

        Raises:
            ConfigError: none was given, and no checkpoint has brought it.
        """
        if self._unset[name]:
            raise ConfigError(
                f"{type(self).__name__} has no {name}: name a file of class statistics "
                "(DATASETS.STATISTICS), or load weights that were trained with this loss"
            )
        return self.get_buffer(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._unset:
            own, found = self.get_buffer(name), state_dict.get(prefix + name)
            if found is None or found.shape != own.shape:
                continue
            if bool((found < 0).any()):  # saved while unset
                state_dict[prefix + name] = own
                continue
            if not self._unset[name] and not torch.equal(found.to(own), own):
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


def build_classification_loss(
    cfg: CfgNode, num_classes: int, key: str = "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS"
) -> ClassificationLoss:
    """Build the loss that the config names.

    Args:
        cfg: Detectron2's config with this project's keys.
        num_classes: K.
        key: where in `cfg` the name of the loss is.

    Raises:
        ConfigError: no loss has that name, `num_classes` is not positive, or ``DATASETS.STATISTICS`` has
            another number of classes.
        DataError: ``DATASETS.STATISTICS`` cannot be read, or lacks what the loss needs.
    """
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    name = str(node)
    if num_classes < 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; a model needs at least one class. The train "
            "scripts replace -1 by the number of classes of DATASETS.TRAIN; elsewhere set the key yourself."
        )
    if name not in CLASSIFICATION_LOSS_REGISTRY:
        known = sorted(key for key, _ in CLASSIFICATION_LOSS_REGISTRY)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: there is no loss {name!r}.{hint} Known: {', '.join(known)}.")
    path = cfg.DATASETS.STATISTICS
    statistics = read_statistics(path) if path else None
    if statistics and len(statistics.class_ids) != num_classes:
        raise ConfigError(
            f"DATASETS.STATISTICS: {path} has {len(statistics.class_ids)} classes, the model {num_classes}"
        )
    return CLASSIFICATION_LOSS_REGISTRY.get(name)(cfg, num_classes=num_classes, statistics=statistics)
