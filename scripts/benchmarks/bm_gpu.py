"""Time the classification losses of dense detectors on a GPU, forward and backward, and measure their memory.

python scripts/benchmarks/bm_gpu.py
TRITON_INTERPRET=1 python scripts/benchmarks/bm_gpu.py --dry-run    # few anchors on a CPU: does it run?

The anchors of an image of 800 x 1333 pixels, 100 of them positive. Times are medians, also as multiples of
what it takes to read the logits twice and to write their gradient at the speed of a copy; memory is what a
step allocates at most besides the logits, in multiples of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from longtail_det2.layers import background_loss_triton
from longtail_det2.modeling.losses import (
    ClassificationLoss,
    DistributionBalancedLoss,
    SigmoidBCELoss,
    SigmoidFocalLoss,
    background,
)
from longtail_det2.modeling.meta_arch.dense import dense_losses
from longtail_det2.structures.multi_label import DenseTargets, MultiLabelTargets

Step = Callable[[Tensor], Tensor]
BLOCKS = ((1024, 4), (2048, 4), (2048, 8), (4096, 8), (8192, 8))


def make_targets(rows: int, num_classes: int, device: str) -> DenseTargets:
    """One positive anchor in 2,000, and as many ignored ones."""
    classes = torch.full((rows,), num_classes, device=device)
    positive = torch.arange(0, rows, 2000, device=device)
    classes[positive] = positive % num_classes
    classes[1::2000] = -1
    return DenseTargets(classes, positive, MultiLabelTargets.from_classes(classes[positive], num_classes))


def make_losses(num_classes: int) -> dict[str, ClassificationLoss]:
    """The losses that have a kernel."""
    counts = {"image_counts": torch.arange(1, num_classes + 1).float(), "num_images": 5 * num_classes}
    return {
        "focal": SigmoidFocalLoss(num_classes=num_classes),
        "BCE": SigmoidBCELoss(num_classes=num_classes),
        "DB": DistributionBalancedLoss(num_classes=num_classes, **counts),
    }


@contextmanager
def all_at_once(device: str) -> Iterator[None]:
    """PyTorch's form with all its matrices."""
    before = dict(background.ENTRIES_AT_ONCE)
    background.ENTRIES_AT_ONCE[device] = 1 << 62
    try:
        yield
    finally:
        background.ENTRIES_AT_ONCE.clear()
        background.ENTRIES_AT_ONCE.update(before)


def measure(step: Callable[[], object], rounds: int, cuda: bool) -> tuple[float, int]:
    """Return the median of milliseconds, and the most bytes that were allocated in a step."""
    times = []
    for _ in range(rounds + 2):  # the first ones compile and fill the allocator's cache
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return statistics.median(times[2:]), peak


def compare(name: str, loss: ClassificationLoss, logits: Tensor, options: argparse.Namespace) -> None:
    """Print the rows of a loss; all forms must have equal gradients."""
    device = logits.device.type
    cuda, targets = device == "cuda", make_targets(len(logits), loss.num_classes, device)

    def total(logits: Tensor, kernels: str = "torch") -> Tensor:
        return sum(dense_losses(loss, logits, targets, kernels).values(), torch.zeros((), device=device))

    def step(form: Step) -> Tensor:
        (gradient,) = torch.autograd.grad(form(logits) / 100, logits)
        return gradient

    def at_once(form: Step, logits: Tensor) -> Tensor:
        with all_at_once(device):
            return form(logits)

    forms: dict[str, Step] = {
        "PyTorch, part by part": total,
        "PyTorch, all at once": partial(at_once, total),
        "torch.compile": torch.compile(total, backend="inductor" if cuda else "aot_eager"),
    }
    wanted = step(total)
    floor = 1.5 * measure(wanted.clone, options.rounds, cuda)[0]
    print(f"{name}, {tuple(logits.shape)} {logits.dtype}: {logits.nbytes / 1e6:.0f} MB, floor {floor:.3f} ms")

    def show(what: str, form: Step) -> None:
        torch.testing.assert_close(step(form), wanted, rtol=1e-2, atol=1e-6)
        elapsed, peak = measure(lambda: step(form), options.rounds, cuda)
        peaks = f"{peak / logits.nbytes:8.2f} x logits" if cuda else ""
        print(f"  {what:<28}{elapsed:>10.3f} ms {elapsed / floor:>9.2f} x floor{peaks}", flush=True)

    for what, form in forms.items():
        show(what, form)
    for block in options.blocks:
        background_loss_triton.BLOCK, background_loss_triton.NUM_WARPS = block
        show(f"Triton, {block[0]} entries, {block[1]} warps", partial(total, kernels="triton"))


def main() -> None:
    """Print times and memory of every loss and form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_700, help="anchors")
    parser.add_argument("--classes", type=int, nargs="+", default=[500, 1203])
    parser.add_argument("--losses", nargs="+", choices=list(make_losses(1)), default=list(make_losses(1)))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device, options.blocks = "cuda", BLOCKS
    if options.dry_run:
        device, options.rows, options.classes, options.rounds, options.blocks = "cpu", 20, [7], 1, BLOCKS[:1]
    for num_classes in options.classes:
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(options.rows, num_classes, device=device, generator=generator) - 4
        logits = logits.to(getattr(torch, options.dtype)).requires_grad_()
        for name in options.losses:
            compare(name, make_losses(num_classes)[name].to(device), logits, options)


if __name__ == "__main__":
    main()
