import math

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from longtail_det2.layers import deform_roi_pool

OWN = ("aligned_interior_7x7_s4", "legacy_edge_5x5_s2", "legacy_interior_7x7_s4")
SHARED = (
    *("aligned_notrans_7x7_s2", "aligned_pc_7x7_s2", "aligned_pr_7x7_s2"),
    *("legacy_edge_7x7_s4", "legacy_notrans_7x7_s4", "legacy_pc_7x7_s4", "legacy_pr_7x7_s4"),
)


@pytest.fixture(params=[*OWN, *SHARED])
def golden(request, golden_dir):
    own = request.param in OWN
    folder = golden_dir / "tsd" if own else request.getfixturevalue("shared_dir") / "golden/deform_roi_pool"
    with np.load(folder / f"{request.param}.npz") as file:
        return dict(file)


def make_rois(number=12, images=2, dtype=torch.float64, seed=0):
    """Within, across and beyond the borders of an image of 120 x 80 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=generator, dtype=dtype) * torch.tensor([160, 120]) - 20
    corners = corners.sort(dim=1).values.flatten(1)
    index = torch.randint(0, images, (number, 1), generator=generator)
    return torch.cat([index.to(dtype), corners], dim=1)


def make_features(dtype=torch.float64, images=2, size=(20, 30)):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, 3, *size, generator=generator, dtype=torch.float64)
    return features.to(dtype).requires_grad_()


def make_offsets(rois, bins=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    offsets = torch.randn(len(rois), 2, bins, bins, generator=generator, dtype=torch.float64)
    return offsets.to(dtype).requires_grad_()


def test_recorded_values_and_gradients(golden):
    values = {key: torch.from_numpy(value) for key, value in golden.items() if value.ndim}
    features = values["features"].requires_grad_()
    offsets = values["offset"].requires_grad_() if "offset" in values else None
    pooled = deform_roi_pool(
        features,
        values["rois"],
        offsets,
        output_size=int(golden["out_size"]),
        spatial_scale=float(golden["spatial_scale"]),
        sampling_ratio=int(golden["sample_per_part"]),
        gamma=float(golden["trans_std"]),
        mode=str(golden["mode"]),
    )
    pooled.backward(values["grad_output"])
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(pooled, values["output"], **close)
    torch.testing.assert_close(features.grad, values["grad_features"], **close)
    if offsets is not None:
        torch.testing.assert_close(offsets.grad, values["grad_offset"], **close)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_without_offsets_it_is_roi_align(sampling_ratio):
    features, rois = make_features(), make_rois()
    expected = roi_align(features, rois, 4, 0.25, sampling_ratio, aligned=True)
    for offsets in (None, torch.zeros(len(rois), 2), torch.zeros(len(rois), 2, 4, 4)):
        pooled = deform_roi_pool(features, rois, offsets, 4, 0.25, sampling_ratio)
        torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("mode", ["aligned", "legacy"])
def test_an_offset_per_roi_is_that_of_all_its_bins(mode):
    features, rois = make_features(), make_rois()
    moves = make_offsets(rois, 1)[:, :, 0, 0]
    one = deform_roi_pool(features, rois, moves, 4, 0.25, mode=mode)
    each = deform_roi_pool(features, rois, moves[:, :, None, None].expand(-1, -1, 4, 4), 4, 0.25, mode=mode)
    assert torch.equal(one, each)


def test_moving_all_bins_is_moving_the_roi():
    features, rois = make_features(), make_rois()
    moves = make_offsets(rois, 1)[:, :, 0, 0].detach()
    shift = 0.1 * moves * (rois[:, 3:] - rois[:, 1:3])
    moved = torch.cat([rois[:, :1], rois[:, 1:3] + shift, rois[:, 3:] + shift], dim=1)
    pooled = deform_roi_pool(features, rois, moves, 4, 0.25)
    torch.testing.assert_close(pooled, deform_roi_pool(features, moved, None, 4, 0.25))


@pytest.mark.parametrize("mode", ["aligned", "legacy"])
def test_gradcheck(mode):
    rois = make_rois(5)
    features, offsets = make_features(size=(6, 7)), make_offsets(rois, 2)

    def pool(features, offsets):
        return deform_roi_pool(features, rois, offsets, 2, 0.06, sampling_ratio=2, mode=mode)

    assert torch.autograd.gradcheck(pool, (features, offsets), eps=1e-7)


@pytest.mark.parametrize("mode", ["aligned", "legacy"])
def test_levels_are_pooled_as_each_by_itself(mode):
    rois = make_rois()
    maps = [make_features(size=size) for size in ((20, 30), (10, 15), (5, 7))]
    scales, levels = (0.25, 0.125, 0.0625), torch.arange(len(rois)) % 3
    offsets = make_offsets(rois)
    pooled = deform_roi_pool(maps, rois, offsets, 4, scales, mode=mode, levels=levels)
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = levels == level
        alone = deform_roi_pool(features, rois[rows], offsets[rows], 4, scale, mode=mode)
        torch.testing.assert_close(pooled[rows], alone)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_types(dtype, tolerance):
    rois = make_rois()
    expected = deform_roi_pool(make_features(), rois, make_offsets(rois), 4, 0.25)
    features, offsets = make_features(dtype), make_offsets(rois, dtype=torch.float32)
    pooled = deform_roi_pool(features, rois.float(), offsets, 4, 0.25)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), expected, rtol=tolerance, atol=tolerance)
    pooled.sum().backward()
    assert features.grad.dtype == dtype and features.grad.isfinite().all() and offsets.grad.isfinite().all()


def test_no_rois():
    features, rois = make_features(), make_rois(0)
    offsets = make_offsets(rois)
    pooled = deform_roi_pool(features, rois, offsets, 4, 0.25)
    assert pooled.shape == (0, 3, 4, 4)
    pooled.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("mode", ["aligned", "legacy"])
def test_odd_rois(mode):
    """A point, swapped corners, far outside."""
    rois = torch.tensor([[0, 20.0, 20, 20, 20], [0, 40, 40, 20, 20], [1, 900, 900, 950, 950]])
    offsets = torch.zeros(3, 2, 4, 4, requires_grad=True)
    features = make_features(torch.float32)
    pooled = deform_roi_pool(features, rois, offsets, 4, 0.25, mode=mode)
    (pooled.sum()).backward()
    assert pooled.isfinite().all() and offsets.grad.isfinite().all()
    assert not pooled[2].any() and not offsets.grad[2].any()
    if mode == "aligned":
        mirrored = deform_roi_pool(features, rois[1:2, [0, 3, 4, 1, 2]], None, 4, 0.25)
        torch.testing.assert_close(pooled[1:2], mirrored.flip(2, 3))
        torch.testing.assert_close(pooled[0], pooled[0, :, :1, :1].expand(3, 4, 4))


def test_offsets_that_are_not_numbers_show_in_their_bins_only():
    rois = make_rois(3, dtype=torch.float32)
    offsets = torch.zeros(3, 2, 4, 4)
    offsets[1, 0, 2, 3], offsets[2, 1, 0, 0] = math.nan, math.inf
    pooled = deform_roi_pool(make_features(torch.float32), rois, offsets, 4, 0.25)
    bad = torch.zeros(3, 4, 4, dtype=torch.bool)
    bad[1, 2, 3] = True
    assert torch.equal(pooled.isnan().all(dim=1), bad) and torch.equal(pooled.isnan().any(dim=1), bad)
    assert not pooled[2, :, 0, 0].any()


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("mode", {"mode": "round"}),
        ("sampling_ratio", {"sampling_ratio": 0}),
        ("RoIs", {"rois": torch.zeros(2, 4)}),
        ("offsets", {"offsets": torch.zeros(2, 2, 3, 3)}),
        ("levels", {"spatial_scale": [0.5, 0.25]}),
    ],
)
def test_wrong_arguments(key, arguments):
    given = {"features": torch.zeros(1, 3, 8, 8), "rois": torch.zeros(2, 5), "output_size": 4} | arguments
    with pytest.raises(ValueError, match=key):
        deform_roi_pool(**given)
