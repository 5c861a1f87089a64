"""Standard RoI heads for proposals with several labels, and the box branch that RoI heads are made of.

Shape shorthand: R RoIs over all images, Ri of image i, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_box_head
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from longtail_det2.utils.errors import ConfigError

from .fast_rcnn import MultiLabelFastRCNNOutputLayers

BOX_BRANCH_REGISTRY = Registry("BOX_BRANCH")
BOX_BRANCH_REGISTRY.__doc__ = """
Box branches by class name, the values of ``MODEL.ROI_BOX_HEAD.BRANCH``.
"""


@BOX_BRANCH_REGISTRY.register()
class BoxBranch(nn.Module):
    """Pool the proposals' features, run the box head on them, then the predictor.

    :class:`MultiLabelROIHeads` has one branch, :class:`MultiLabelCascadeROIHeads` one per stage. A method
    that needs more than one feature per proposal, a second head in training or losses of its own overrides
    methods here and works in both. What :meth:`forward` returns is handed to the other methods as it is.

    The three parts belong to the RoI heads, under Detectron2's names (``box_pooler``, ``box_head``,
    ``box_predictor``), so that Detectron2's checkpoints and code that replaces a part work; the heads
    :meth:`attach` them before each pass. Further modules of a subclass are its own and have names below
    ``box_branch``.

    Attributes:
        predictor_class: built by :func:`box_parts_from_config`.
        pooler, head, predictor: see :meth:`attach`.
    """

    predictor_class: type[nn.Module] = MultiLabelFastRCNNOutputLayers
    pooler: Any
    head: Any
    predictor: Any

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the constructor's arguments, none here, from the config and the pooled features' shape."""
        return {}

    def attach(self, pooler: nn.Module, head: nn.Module, predictor: nn.Module) -> BoxBranch:
        """Use these parts from now on, and return the branch.

        Args:
            pooler: called with features and boxes per image.
            head: called with the pooled features.
            predictor: :class:`MultiLabelFastRCNNOutputLayers` or a class with its methods.

        Raises:
            ConfigError: the predictor has no method ``detect``.
        """
        if not hasattr(predictor, "detect"):
            raise ConfigError(
                f"these RoI heads need a box_predictor such as {self.predictor_class.__name__}, got "
                f"{type(predictor).__name__}: set its _target_"
            )
        # Past nn.Module's own __setattr__, which would register them a second time.
        vars(self).update(pooler=pooler, head=head, predictor=predictor)
        return self

    def forward(self, features: list[Tensor], proposals: list[Instances]) -> Any:
        """Return predictions for the proposals, here those of the predictor.

        Args:
            features: per level, (N, C, H, W).
            proposals: of N images, with ``proposal_boxes``.
        """
        return self.predictor(self.head(self.pooler(features, [image.proposal_boxes for image in proposals])))

    def losses(self, predictions: Any, proposals: list[Instances]) -> dict[str, Tensor]:
        """Return scalars by name, which begin with "loss_"; see the predictor's method."""
        return self.predictor.losses(predictions, proposals)

    def scores(self, predictions: Any, proposals: list[Instances]) -> Sequence[Tensor]:
        """Return scores (Ri, K + 1) per image, background last."""
        return self.predictor.predict_probs(predictions, proposals)

    def boxes(self, predictions: Any, proposals: list[Instances]) -> Sequence[Tensor]:
        """Return boxes (Ri, 4) or (Ri, 4 K) per image, in pixels; (Ri, 4) in a cascade."""
        return self.predictor.predict_boxes(predictions, proposals)

    def detect(
        self, boxes: Sequence[Tensor], scores: Sequence[Tensor], proposals: Iterable[Instances]
    ) -> list[Instances]:
        """Return the detections per image; see :meth:`MultiLabelFastRCNNOutputLayers.detect`."""
        found, _ = self.predictor.detect(boxes, scores, [image.image_size for image in proposals])
        return found


def with_suffix(losses: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """Append a suffix to the names of losses, so that those of several heads can be logged side by side."""
    return {f"{name}{suffix}": value for name, value in losses.items()}


def box_parts_from_config(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], stages: Sequence[dict[str, Any]] = ({},)
) -> dict[str, Any]:
    """Build the parts of one or several box branches.

    Not by way of Detectron2's methods: they would build predictors of their own, which cost random numbers,
    and the same seed would give other weights than in a lazy config.

    Args:
        cfg: ``MODEL.ROI_HEADS.IN_FEATURES`` and ``MODEL.ROI_BOX_HEAD`` are read.
        input_shape: of the backbone's levels.
        stages: per branch the arguments that its predictor has besides the config's.

    Returns:
        ``box_in_features`` and ``box_pooler``, and per branch ``box_heads``, ``box_predictors`` and
        ``box_branches``.

    Raises:
        ConfigError: the levels have different numbers of channels, or there is no such branch.
    """
    keys = cfg.MODEL.ROI_BOX_HEAD
    features = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    channels = {input_shape[name].channels for name in features}
    if len(channels) != 1:
        raise ConfigError(f"MODEL.ROI_HEADS.IN_FEATURES {features} must have equal channels, got {channels}")
    if keys.BRANCH not in BOX_BRANCH_REGISTRY:
        known = ", ".join(sorted(name for name, _ in BOX_BRANCH_REGISTRY))
        raise ConfigError(f"MODEL.ROI_BOX_HEAD.BRANCH: there is no branch {keys.BRANCH!r}. Known: {known}.")
    branch: Any = BOX_BRANCH_REGISTRY.get(keys.BRANCH)
    pooler = ROIPooler(
        output_size=keys.POOLER_RESOLUTION,
        scales=tuple(1.0 / (input_shape[name].stride or 1) for name in features),
        sampling_ratio=keys.POOLER_SAMPLING_RATIO,
        pooler_type=keys.POOLER_TYPE,
    )
    size = keys.POOLER_RESOLUTION
    pooled = ShapeSpec(channels=channels.pop(), height=size, width=size)
    heads = [build_box_head(cfg, pooled) for _ in stages]
    return {
        "box_in_features": features,
        "box_pooler": pooler,
        "box_heads": heads,
        "box_predictors": [
            branch.predictor_class(cfg, head.output_shape, **options)
            for head, options in zip(heads, stages, strict=True)
        ],
        "box_branches": [branch(cfg, pooled) for _ in stages],
    }


@ROI_HEADS_REGISTRY.register()
class MultiLabelROIHeads(StandardROIHeads):
    """Box, mask and keypoint heads; a sampled proposal has the labels of the object that it matches.

    Objects have their labels in the field ``gt_labels`` (n, K) of the training instances, which Detectron2
    copies to the proposals like every ``gt_`` field. Without that field an object has the one label
    ``gt_classes``, so single-label data sets work unchanged.
    """

    @configurable
    def __init__(self, *, box_branch: BoxBranch | None = None, **kwargs: Any) -> None:
        """Make the heads.

        Args:
            box_branch: None for :class:`BoxBranch`.
            kwargs: the arguments of Detectron2's class.

        Raises:
            ConfigError: the predictor is not one for several labels, or masks are to train on its boxes.
        """
        super().__init__(**kwargs)
        if self.train_on_pred_boxes:
            raise ConfigError("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES must be False for MultiLabelROIHeads")
        self.box_branch = BoxBranch() if box_branch is None else box_branch
        self._attached_branch()

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = box_parts_from_config(cfg, input_shape)
        for plural, name in (("heads", "head"), ("predictors", "predictor"), ("branches", "branch")):
            parts[f"box_{name}"] = parts.pop(f"box_{plural}")[0]
        return parts

    def _attached_branch(self) -> BoxBranch:
        return self.box_branch.attach(self.box_pooler, self.box_head, self.box_predictor)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        branch = self._attached_branch()
        predictions = branch([features[name] for name in self.box_in_features], proposals)
        if not self.training:
            boxes, scores = branch.boxes(predictions, proposals), branch.scores(predictions, proposals)
            return branch.detect(boxes, scores, proposals)
        return branch.losses(predictions, proposals)
