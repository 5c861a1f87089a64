"""A backbone of half a million parameters that learns from scratch on a CPU in minutes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F


class TinyBackbone(Backbone):
    """Stem and three residual stages; the last two are summed into one level.

    ========  ======  ================================  ================
    level     stride  made by                           default channels
    ========  ======  ================================  ================
    stem      2       3x3 convolution                   16
    stage 1   4       3x3 convolution, residual block   32
    stage 2   8       3x3 convolution, residual block   64
    stage 3   16      3x3 convolution, residual block   128
    ``p3``    8       1x1 of stage 2 + 1x1 of stage 3   64
    ========  ======  ================================  ================

    For images of about 100 to 200 pixels.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem_channels: int = 16,
        stage_channels: Sequence[int] = (32, 64, 128),
        out_channels: int = 64,
        norm: str = "BN",
    ) -> None:
        """Make the layers.

        Args:
            in_channels: of the image.
            stem_channels: of the first convolution.
            stage_channels: of the three stages.
            out_channels: of ``p3``.
            norm: normalisation after each convolution, a name that Detectron2's ``get_norm`` knows.

        Raises:
            ValueError: not three stages.
        """
        super().__init__()
        if len(stage_channels) != 3:
            raise ValueError(f"the tiny backbone has three stages, got channels {list(stage_channels)}")
        widths = [stem_channels, *stage_channels]
        self.stem = _convolution(in_channels, stem_channels, norm, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(before, after, norm, stride=2), ResidualBlock(after, norm))
            for before, after in itertools.pairwise(widths)
        )
        self.laterals = nn.ModuleList(
            Conv2d(width, out_channels, kernel_size=1, bias=False, norm=get_norm(norm, out_channels))
            for width in stage_channels[1:]
        )
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                weight_init.c2_msra_fill(layer)
        self._shape = {"p3": ShapeSpec(channels=out_channels, stride=8)}

    @property
    def size_divisibility(self) -> int:
        """The largest stride: images are padded to a multiple of it, so that the summed levels align."""
        return 16

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the shape of ``p3``."""
        return dict(self._shape)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return ``p3`` (N, out_channels, ceil(H / 8), ceil(W / 8)) of normalised images (N, 3, H, W)."""
        stride4 = self.stages[0](self.stem(image))
        stride8 = self.stages[1](stride4)
        stride16 = self.stages[2](stride8)
        fine, coarse = self.laterals[0](stride8), self.laterals[1](stride16)
        return {"p3": F.relu(fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"))}


class ResidualBlock(nn.Module):
    """relu(x + f(x)) with two 3x3 convolutions in f; keeps the number of channels."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, channels, norm)
        self.conv2 = Conv2d(
            channels, channels, kernel_size=3, padding=1, bias=False, norm=get_norm(norm, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return F.relu(x + self.conv2(self.conv1(x)))


def _convolution(in_channels: int, out_channels: int, norm: str, stride: int = 1) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )


@BACKBONE_REGISTRY.register()
def build_tiny_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TinyBackbone:
    """Build the backbone that ``MODEL.TINY_BACKBONE`` describes."""
    keys = {name.lower(): value for name, value in cfg.MODEL.TINY_BACKBONE.items()}
    return TinyBackbone(in_channels=input_shape.channels or 3, **keys)
