"""Any feature model of the package timm as the bottom of Detectron2's feature pyramid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from longtail_det2.checkpoint.weights import read_weights
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """Levels ``stride4``, ``stride8`` ... of a timm model, for RGB images."""

    def __init__(
        self,
        name: str,
        levels: Sequence[str],
        *,
        freeze_stride: int = 0,
        freeze_norm: bool = True,
        weights: str = "",
    ) -> None:
        """Make the model, deep enough for the levels and no deeper.

        Args:
            name: as ``timm.create_model`` takes it.
            levels: those to return, finest first.
            freeze_stride: the layers that make the level of this stride are not trained; 0: all are.
            freeze_norm: batch normalisation keeps its statistics and its weights. That of frozen layers
                always does.
            weights: ``.pth`` or ``.safetensors`` file of the whole model, by timm's names or, as in ports of
                the model, by others in the same order; "": random ones.

        Raises:
            ConfigError: timm is missing or does not know the model, which has other levels, or the file does
                not fit.
        """
        super().__init__()
        with torch.device("meta"):
            strides = _create(name, features_only=True).feature_info.reduction()
        known = {f"stride{stride}": index for index, stride in enumerate(strides)}
        wanted = [*levels, f"stride{freeze_stride}"] if freeze_stride else list(levels)
        if len(known) < len(strides) or not levels or not set(wanted) <= set(known):
            raise ConfigError(f"timm's {name} has levels of strides {strides}, asked for {wanted}")
        self.body = _create(name, features_only=True, out_indices=sorted({known[one] for one in wanted}))
        info = self.body.feature_info
        self._names = [f"stride{stride}" for stride in info.reduction()]
        shapes = [
            ShapeSpec(channels=c, stride=s) for c, s in zip(info.channels(), info.reduction(), strict=True)
        ]
        self._shapes = {level: shapes[self._names.index(level)] for level in levels}
        if weights:
            _load(self.body, name, weights)
        if freeze_stride:
            # The layers that make a level are those that its gradient reaches.
            image, own = torch.zeros(1, 3, 224, 224), list(self.parameters())
            level = self.body.eval()(image)[self._names.index(wanted[-1])]
            for one, gradient in zip(
                own, torch.autograd.grad(level.sum(), own, allow_unused=True), strict=True
            ):
                one.requires_grad_(gradient is None)
        self._norms = [layer for layer in self.modules() if isinstance(layer, _BatchNorm)]
        if freeze_norm:
            for norm in self._norms:
                norm.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode of all layers but frozen batch normalisation, which stays in evaluation."""
        super().train(mode)
        for norm in self._norms:
            norm.train(mode and any(one.requires_grad for one in norm.parameters()))
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each level."""
        return dict(self._shapes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the levels, (N, C, H / stride, W / stride) each, of normalised images (N, 3, H, W)."""
        outputs = dict(zip(self._names, self.body(image), strict=True))
        if str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC"):
            outputs = {level: output.permute(0, 3, 1, 2).contiguous() for level, output in outputs.items()}
        return {level: outputs[level] for level in self._shapes}


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the pyramid of ``MODEL.TIMM`` and ``MODEL.FPN``, with one pooled level on top.

    ``MODEL.TIMM.WEIGHTS`` are not read where ``MODEL.WEIGHTS`` names a file, which has the backbone's too.
    """
    fpn = cfg.MODEL.FPN
    body, top = _body(cfg, fpn.IN_FEATURES), LastLevelMaxPool()
    return FPN(body, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, top_block=top, fuse_type=fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the levels ``MODEL.TIMM.OUT_FEATURES`` of a timm model; see :func:`build_timm_fpn_backbone`."""
    return _body(cfg, cfg.MODEL.TIMM.OUT_FEATURES)


def _body(cfg: CfgNode, levels: Sequence[str]) -> TimmBackbone:
    node, weights = cfg.MODEL.TIMM, cfg.MODEL.WEIGHTS
    frozen = {"freeze_stride": node.FREEZE_STRIDE, "freeze_norm": node.FREEZE_NORM}
    body = TimmBackbone(node.NAME, levels, **frozen, weights="" if weights else node.WEIGHTS)
    mean, std = timm_pixels(node.NAME)
    given = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD]
    close = len(given) == 6 and all(abs(a - b) < 2 for a, b in zip(given, mean + std, strict=True))
    if node.WEIGHTS and not (close and cfg.INPUT.FORMAT == "RGB"):
        settings = f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN {mean} MODEL.PIXEL_STD {std}"
        logger.warning("%s was trained with %s", node.NAME, settings)
    return body


def timm_pixels(name: str) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation, of pixels 0..255 in RGB, that a timm model was trained with."""
    with torch.device("meta"):
        settings = _create(name).pretrained_cfg
    mean, std = ([round(255 * value, 3) for value in settings[key]] for key in ("mean", "std"))
    return mean, std


def _create(name: str, **options: Any) -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError("backbones of timm need a package: pip install timm") from None
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(f"MODEL.TIMM.NAME {name!r}: {str(error).splitlines()[0]}") from error


def _load(features: nn.Module, name: str, path: str) -> None:
    given, own = read_weights(path).tensors, features.state_dict()
    whole, shapes = _create(name).state_dict(), [value.shape for value in given.values()]
    if not given.keys() & whole.keys() and shapes == [value.shape for value in whole.values()]:
        logger.info("%s: names differ from timm's, all %d shapes agree; loaded by order", path, len(whole))
        given = dict(zip(whole, given.values(), strict=True))
    # Feature models join some names by another sign: stages.0 is stages_0.
    found = {key.replace(".", "_"): value for key, value in given.items()}
    plain = {key: key.removeprefix("model.").replace(".", "_") for key in own}
    wrong = [
        key for key, value in own.items() if getattr(found.get(plain[key]), "shape", None) != value.shape
    ]
    if wrong:
        raise ConfigError(
            f"{path} does not fit timm's {name}: {len(wrong)} of {len(own)} tensors are missing or of "
            f"another shape, such as {wrong[0]}; the file begins with {next(iter(given), 'nothing')}"
        )
    features.load_state_dict({key: found[plain[key]] for key in own})
