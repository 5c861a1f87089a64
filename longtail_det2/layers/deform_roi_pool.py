"""Deformable RoI pooling: bins of a region that move, with gradients to the features and the offsets.

Shape shorthand in this module:

    R: number of RoIs; P: bins of a RoI along each side; S: samples of a bin along each side
    N, C: images of the minibatch and channels; H, W: height and width of a feature map
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import at_least_float32

MODES = ("aligned", "legacy")


def deform_roi_pool(
    features: Tensor | Sequence[Tensor],
    rois: Tensor,
    offsets: Tensor | None = None,
    output_size: int = 7,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 4,
    gamma: float = 0.1,
    mode: str = "aligned",
    levels: Tensor | None = None,
) -> Tensor:
    """Pool each bin of a RoI from where its offset moves it.

    A bin is the mean of S x S bilinear samples, moved by ``gamma * offset * (width, height)`` of its RoI.

    ``"aligned"``: continuous coordinates, samples in the middle of their share of the bin, 0 outside of the
    map; with offsets of zero this is RoIAlign (``aligned=True``) with the same `sampling_ratio`.
    ``"legacy"``: the operator that the released weights of TSD were trained with (Dai et al. 2017). Corners
    are rounded to whole pixels, which they include, samples are at the upper left of their share, and those
    outside of the map do not count.

    The result is a weighted sum of rows of the feature maps, so that memory for R x P x P x S x S samples of
    C channels is never needed.

    Args:
        features: (N, C, H, W), or one such map per level.
        rois: (R, 5), the index of the image and XYXY in pixels of the image. A RoI may lie outside of the
            image. Without area it is a point ("legacy": at least 0.1 of a feature pixel), and one whose
            corners are swapped is mirrored ("legacy": as small).
        offsets: (R, 2, P, P) per bin or (R, 2) per RoI, x before y, before `gamma`; None moves nothing. Where
            one is NaN, so are its bins.
        output_size: P.
        spatial_scale: 1 / stride of the map, or of each level.
        sampling_ratio: S, at least 1.
        gamma: see above.
        mode: "aligned" or "legacy".
        levels: (R,) int64, the level of each RoI; None for the first one.

    Returns:
        (R, C, P, P) in the type of the features. It is computed in at least float32.

    Raises:
        ValueError: an argument has another shape or value.
    """
    maps = [features] if isinstance(features, Tensor) else list(features)
    scales = [spatial_scale] if isinstance(spatial_scale, (int, float)) else list(spatial_scale)
    _check(maps, scales, rois, offsets, output_size, sampling_ratio, mode)
    if levels is None:
        levels = torch.zeros(rois.shape[0], dtype=torch.int64, device=rois.device)
    rows = torch.cat([at_least_float32(one).permute(0, 2, 3, 1).flatten(0, 2) for one in maps])
    starts = [0]
    for one in maps[:-1]:
        starts.append(starts[-1] + one.shape[0] * one.shape[2] * one.shape[3])

    moved = rois.new_zeros(1, 2, 1, 1) if offsets is None else gamma * at_least_float32(offsets)
    boxes = at_least_float32(rois[:, 1:]).to(torch.promote_types(rois.dtype, moved.dtype))
    scale = _of_level(scales, levels, boxes)
    height, width = (_of_level([one.shape[dim] for one in maps], levels, levels) for dim in (2, 3))
    along = torch.arange(output_size, dtype=boxes.dtype, device=rois.device) / output_size
    axes = []
    for axis, place, size in ((1, along[:, None], height), (0, along, width)):
        bins = place + (moved[:, axis] if moved.ndim == 4 else moved[:, axis, None, None])
        low, high, size = boxes[:, axis], boxes[:, axis + 2], size.to(boxes.dtype)
        axes.append(_samples_along(low, high, scale, size, bins, output_size, sampling_ratio, mode))
    (y, weights_y), (x, weights_x) = axes

    first = _of_level(starts, levels, levels) + rois[:, 0].long() * height * width
    first, width = (one.view(-1, 1, 1, 1, 1) for one in (first, width))
    index = first + y[..., None] * width + x[..., None, :]
    weights = weights_y[..., None] * weights_x[..., None, :]
    entries = (rois.shape[0] * output_size * output_size, 4 * sampling_ratio * sampling_ratio)
    pooled = _weighted_sum(rows, index.reshape(entries), weights.reshape(entries).to(rows.dtype))
    pooled = pooled.view(rois.shape[0], output_size, output_size, rows.shape[1])
    return pooled.permute(0, 3, 1, 2).to(maps[0].dtype)


def _weighted_sum(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return (B, C), of rows (., C) the sums that indices and weights (B, E) say."""
    if not torch.compiler.is_exporting():
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
    total = torch.zeros_like(weights[:, :1])  # ONNX would loop over the bags instead of the entries
    for entry in range(index.shape[1]):
        total = total + rows.index_select(0, index[:, entry]) * weights[:, entry, None]
    return total


def _of_level(values: Sequence[float], levels: Tensor, like: Tensor) -> Tensor:
    """Return (R,): the value of each RoI's level, in the type of `like`, without a copy from the host."""
    found = torch.full_like(levels, 0, dtype=like.dtype) + values[0]
    for level, value in enumerate(values[1:], start=1):
        found = torch.where(levels == level, value, found)
    return found


def _samples_along(
    low: Tensor,
    high: Tensor,
    scale: Tensor,
    size: Tensor,
    bins: Tensor,
    output_size: int,
    sampling_ratio: int,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Place the samples of every bin along one axis.

    Args:
        low: (R,) smaller coordinates in pixels.
        high: (R,) larger ones.
        scale: (R,) 1 / stride.
        size: (R,) of the feature map along the axis.
        bins: (R or 1, P or 1, P or 1) starts of the bins, as shares of the RoI.
        output_size: P.
        sampling_ratio: S.
        mode: see :func:`deform_roi_pool`.

    Returns:
        Indices (R, P, P, 2 S) of the pixels on both sides of each sample, and their weights, which sum to 1
        where all samples of the bin count.
    """
    legacy = mode == "legacy"
    if legacy:  # half pixels away from zero, which torch.round does not
        low, high = ((one.abs() + 0.5).floor() * one.sign() for one in (low, high))
        high = high + 1
    low, extent = low * scale - 0.5, (high - low) * scale
    if legacy:
        extent = extent.clamp(min=0.1)
    low, extent, size = (one.view(-1, 1, 1, 1) for one in (low, extent, size))
    shares = torch.arange(sampling_ratio, dtype=low.dtype, device=low.device) + (0.0 if legacy else 0.5)
    places = low + extent * (bins[..., None] + shares / (sampling_ratio * output_size))
    places = places.expand(-1, output_size, output_size, -1)

    margin = 0.5 if legacy else 1.0
    inside = ~((places < -margin) | (places > size - 1 + margin))
    places = torch.minimum(places.clamp(min=0), size - 1)
    before = places.detach().floor()
    after = places.detach().ceil() if legacy else torch.minimum(before + 1, size - 1)
    share = places - before
    counted = inside.sum(dim=-1, keepdim=True).clamp(min=1) if legacy else sampling_ratio
    weights = torch.stack([1 - share, share], dim=-1) * (inside.to(share) / counted)[..., None]
    index = torch.stack([before, after], dim=-1).nan_to_num().long()
    return index.flatten(-2), weights.flatten(-2)


def _check(
    maps: Sequence[Tensor],
    scales: Sequence[Any],
    rois: Tensor,
    offsets: Tensor | None,
    output_size: int,
    sampling_ratio: int,
    mode: str,
) -> None:
    name = "deform_roi_pool"
    if mode not in MODES:
        raise ValueError(f"{name}: mode is {mode!r}; it must be one of {', '.join(MODES)}")
    for key, number in (("sampling_ratio", sampling_ratio), ("output_size", output_size)):
        if number < 1:
            raise ValueError(f"{name}: {key} must be at least 1, got {number}")
    if len(maps) != len(scales) or len({one.shape[:2] for one in maps}) != 1:
        shapes = [tuple(one.shape) for one in maps]
        raise ValueError(
            f"{name} needs a scale per level and levels of equal N and C, got {scales}, {shapes}"
        )
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"{name} needs RoIs (R, 5), got {tuple(rois.shape)}")
    wanted = [(rois.shape[0], 2), (rois.shape[0], 2, output_size, output_size)]
    if offsets is not None and tuple(offsets.shape) not in wanted:
        raise ValueError(f"{name} needs offsets {wanted[0]} or {wanted[1]}, got {tuple(offsets.shape)}")
