#!/usr/bin/env python
"""Times whole training steps with different classification losses, side by side, on one synthetic batch.

A step is forward, backward and optimizer. The losses take turns, so that other jobs on the machine slow all
of them down alike; figures are medians of CPU seconds of all threads, and of the ratio to the first loss
within each round. The batch has random pixels, and objects of which a third bears two labels and a third
three.

Examples:
    OMP_NUM_THREADS=1 python scripts/benchmarks/bm_training_step.py
    OMP_NUM_THREADS=1 python scripts/benchmarks/bm_training_step.py --classes 1203 --only softmax,seesaw
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

# PyTorch warns of what Detectron2 uses.
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

import torch  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from torch import Tensor  # noqa: E402

from longtail_det2 import model_zoo  # noqa: E402
from longtail_det2.engine.build import build_model  # noqa: E402
from longtail_det2.engine.solver import build_optimizer, optimizer_arguments  # noqa: E402
from longtail_det2.modeling.losses import ClassificationLoss  # noqa: E402

LOSS, CLASSIFIER = "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "MODEL.ROI_BOX_HEAD.CLASSIFIER"
LABELS = "MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS"
VARIANTS: dict[str, tuple[str, ...]] = {
    "softmax": (LOSS, "SoftmaxCrossEntropyLoss"),
    "sigmoid": (LOSS, "SigmoidBCELoss"),
    "concurrent": (LOSS, "ConcurrentSoftmaxLoss"),
    "seesaw": (LOSS, "SeesawLoss", LABELS, "most_specific"),
    "seesaw_multi_label": (LOSS, "SeesawLoss", LABELS, "all"),
    "seesaw_normalised": (LOSS, "SeesawLoss", LABELS, "most_specific", CLASSIFIER, "NormalizedLinear"),
}
"""Name -> config options."""


def make_batch(num_classes: int, images: int = 8, side: int = 128) -> list[dict[str, Any]]:
    """Images of random pixels with four objects each."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    batch = []
    for _ in range(images):
        truth = Instances((side, side))
        corners = draw(4, 2, low=0, high=side // 2).float()
        sizes = draw(4, 2, low=side // 6, high=side // 2).float()
        truth.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
        labels = torch.zeros(4, num_classes, dtype=torch.int8)
        classes = draw(4, 3, low=0, high=num_classes)
        for row, of_object in enumerate(classes):
            labels[row, of_object[: 1 + row % 3]] = 1
        truth.gt_labels, truth.gt_classes = labels, classes[:, 0]
        pixels = draw(3, side, side, low=0, high=256).to(torch.uint8)
        batch.append({"image": pixels, "instances": truth, "height": side, "width": side})
    return batch


def make_step(args: argparse.Namespace, options: tuple[str, ...], batch: list[Any]) -> Callable[[], None]:
    """A function that trains one iteration on the batch."""
    cfg = model_zoo.get_config(args.config)
    cfg.defrost()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", args.classes, "MODEL.DEVICE", args.device, *options])
    torch.manual_seed(0)
    model = build_model(cfg)
    for part in model.modules():
        if isinstance(part, ClassificationLoss) and hasattr(part, "rates"):
            rates = torch.rand(args.classes, args.classes) * (torch.rand(args.classes, 1) < 0.1)
            part.hold("rates", rates, rates.shape)
    optimizer = build_optimizer(model, **optimizer_arguments(cfg))

    def step() -> None:
        optimizer.zero_grad()
        losses = model(batch)
        torch.stack([value.sum() for value in losses.values()]).sum().backward()
        optimizer.step()

    return step


def clock(device: str) -> float:
    """CPU seconds of this process, or on a GPU wall seconds when its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="shapes/faster_rcnn_tiny_softmax_shapes.yaml", help="two-stage")
    parser.add_argument("--only", default=",".join(VARIANTS), metavar="LOSS,...", help="of %(default)s")
    parser.add_argument("--classes", type=int, default=78, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="of each loss (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    batch = make_batch(args.classes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with EventStorage():
        steps = {name: make_step(args, VARIANTS[name], batch) for name in names}
        for turn in range(args.steps + 3):
            for name in names:
                start = clock(args.device)
                steps[name]()
                if turn >= 3:  # the first ones allocate
                    seconds[name].append(clock(args.device) - start)
    first = seconds[names[0]]
    print(f"{args.config}, {args.classes} classes, {args.steps} steps each\n")
    print(f"  {'loss':22}{'ms a step':>10}{'ratio to ' + names[0]:>22}")
    for name in names:
        ratios = [one / other for one, other in zip(seconds[name], first, strict=True)]
        print(f"  {name:22}{1e3 * statistics.median(seconds[name]):10.1f}{statistics.median(ratios):22.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
