"""Time deformable RoI pooling beside RoIAlign and beside pooling by grid_sample, forward and backward.

OMP_NUM_THREADS=1 python scripts/benchmarks/bm_deform_roi_pool.py

512 RoIs of 16 to 112 pixels on a map of 256 x 200 x 304 at stride 4, 7 x 7 bins. The target is
to take no longer than RoIAlign with 2 x 2 samples.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import row
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from longtail_det2.layers import deform_roi_pool

SIZE, SCALE, BINS, SAMPLES, GAMMA = (200, 304), 0.25, 7, 4, 0.1


def by_grid_sample(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Pool RoIs within one image as points of grid_sample, with all samples in memory."""
    steps = (torch.arange(BINS * SAMPLES) + 0.5) / (BINS * SAMPLES)
    low, extent = rois[:, 1:3] * SCALE - 0.5, (rois[:, 3:] - rois[:, 1:3]) * SCALE
    moved = GAMMA * offsets.repeat_interleave(SAMPLES, 2).repeat_interleave(SAMPLES, 3)
    x = low[:, 0, None, None] + extent[:, 0, None, None] * (steps + moved[:, 0])
    y = low[:, 1, None, None] + extent[:, 1, None, None] * (steps[:, None] + moved[:, 1])
    grid = torch.stack([2 * x / (SIZE[1] - 1) - 1, 2 * y / (SIZE[0] - 1) - 1], dim=-1)
    sampled = F.grid_sample(features, grid.flatten(0, 1)[None], padding_mode="border", align_corners=True)
    sampled = sampled[0].unflatten(1, (len(rois), -1)).transpose(0, 1)
    return F.avg_pool2d(sampled, SAMPLES)


def main() -> None:
    """Print medians of CPU time in milliseconds and multiples of RoIAlign's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    features = torch.randn(1, 256, *SIZE, requires_grad=True)
    sides, places = 16 + 96 * torch.rand(512, 2), torch.rand(512, 2)
    low = 60 + places * (torch.tensor([SIZE[1], SIZE[0]]) / SCALE - sides - 120)
    rois = torch.cat([torch.zeros(512, 1), low, low + sides], dim=1)
    offsets = torch.randn(512, 2, BINS, BINS, requires_grad=True)
    shape = (BINS, SCALE, SAMPLES, GAMMA)
    forms: dict[str, Callable[[], Tensor]] = {
        "RoIAlign, 2 x 2 samples": lambda: roi_align(features, rois, BINS, SCALE, 2, aligned=True),
        "deform_roi_pool, 4 x 4": lambda: deform_roi_pool(features, rois, offsets, *shape),
        "grid_sample, 4 x 4": lambda: by_grid_sample(features, rois, offsets),
    }
    torch.testing.assert_close(*(list(forms.values())[one]() for one in (1, 2)), rtol=1e-3, atol=1e-3)
    for what in ("forward", "forward and backward"):
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(rounds):
            for name, form in forms.items():
                start = time.process_time()
                pooled = form()
                if "backward" in what:
                    pooled.backward(torch.ones_like(pooled))
                seconds[name].append(time.process_time() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(what)
        for name, median in medians.items():
            row(name, 1000 * median, "ms")
        unit = medians["RoIAlign, 2 x 2 samples"]
        row("deform_roi_pool / RoIAlign", medians["deform_roi_pool, 4 x 4"] / unit, "", 1.0)


if __name__ == "__main__":
    main()
