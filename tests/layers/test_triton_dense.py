"""The Triton kernel of background losses: interpreted, compiled for GPUs that are not there, run on one.

Triton decides at its import whether kernels are interpreted, so those tests run in a process of their own.
"""

import importlib.util
import os
import runpy
import subprocess
import sys

import pytest
import torch
from model_factories import make_loss, multi_label_targets

from longtail_det2.layers import FocalBackground, distribution_balanced_loss, focal_background_sum
from longtail_det2.modeling.meta_arch.dense import dense_losses
from longtail_det2.structures.multi_label import DenseTargets

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in test_interpreted")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="not interpreted")
OP = torch.ops.longtail_det2.focal_background_sum
HALF = (torch.float16, torch.bfloat16)


def make_case(rows, classes, dtype=torch.float32, gamma=2.0, per_class=False, device="cpu"):
    """Logits of around -2, a background mask that leaves out a fifth, the first rows that it leaves out."""
    generator = torch.Generator(device).manual_seed(rows + classes)
    options = {"generator": generator, "device": device}
    logits = (4 * torch.randn(rows, classes, **options) - 2).to(dtype).requires_grad_()
    background = torch.rand(rows, **options) > 0.2
    picked = (~background).nonzero()[:3, 0]
    form = FocalBackground(gamma, 0.75)
    if per_class:
        weight = 0.5 + torch.rand(classes, **options)
        form = FocalBackground(gamma, 0.75, 2.0, weight, torch.randn(classes, **options))
    return logits, background, picked, form


def reference(logits, background, form):
    """The sum by PyTorch in float64."""
    weight, bias = (0.0 if values is None else values.double() for values in (form.weight, form.bias))
    weight = 1.0 if form.weight is None else weight
    losses = distribution_balanced_loss(logits, None, weight, bias, form.scale, form.gamma)
    return form.factor * torch.where(background[:, None], losses, 0).sum()


def compare(logits, background, rows, form, upstream=3.0):
    """Value and gradient with the float64 reference on the same, possibly rounded, logits."""
    exact = logits.detach().double().requires_grad_()
    picked = torch.randn(len(rows), logits.shape[1], device=logits.device)
    wanted = reference(exact, background, form)
    (upstream * wanted + (exact[rows] * picked).sum()).backward()
    found, values = focal_background_sum(logits, background, rows, form)
    assert torch.equal(values, logits[rows])
    (upstream * found + (values * picked).sum()).backward()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-12)
    eps = torch.finfo(logits.dtype).eps
    close = {"rtol": max(eps, 5e-6), "atol": torch.finfo(logits.dtype).tiny * eps}
    torch.testing.assert_close(logits.grad.double(), exact.grad, **close)


@needs_triton
@not_interpreted
def test_interpreted():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not gpu",
        "-p",
        "no:cacheprovider",
        __file__,
    ]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


CASES = [
    (0, 3, torch.float32, 2.0, False),
    (1, 1, torch.float32, 0.0, False),
    (3, 1, torch.float32, 2.0, True),
    (101, 2, torch.float32, 0.5, True),
    (37, 501, torch.float32, 2.0, False),
    (37, 501, torch.float32, 0.0, True),
    (19, 501, torch.bfloat16, 2.0, False),
    (19, 501, torch.float16, 1.5, True),
]


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    compare(*make_case(*case))


@interpreted
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_and_tiny_logits(gamma):
    """Scores of exactly 0 and 1, and background so easy that 1 + exp(-|x|) would be 1."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [20.0, -20.0, -0.0], [90.0, -87.0, -15.0]]).requires_grad_()
    compare(
        logits, torch.tensor([True, True, True]), torch.tensor([], dtype=torch.int64), FocalBackground(gamma)
    )
    small = torch.full((1, 8), -17.5).requires_grad_()
    compare(small, torch.tensor([True]), torch.tensor([], dtype=torch.int64), FocalBackground(gamma))


@interpreted
def test_rows_that_are_not_background_do_not_count():
    logits, background, rows, form = make_case(9, 3)
    with torch.no_grad():
        logits[~background] = torch.nan
    total, _ = focal_background_sum(logits, background, rows, form)
    total.backward()
    assert total.isfinite() and not logits.grad[~background].any()
    nothing, _ = focal_background_sum(logits, torch.zeros_like(background), rows, form)
    assert nothing == 0 and not torch.autograd.grad(nothing, logits)[0].any()


@interpreted
def test_logits_need_not_be_contiguous():
    logits, _, _, form = make_case(3, 40)
    background, rows = torch.arange(40) > 2, torch.tensor([2, 0])
    turned = logits.detach().t().requires_grad_()
    compare(turned, background, rows, form)


@interpreted
@pytest.mark.parametrize("dtype", HALF)
def test_scaled_gradients_of_half_precision_do_not_vanish(dtype):
    """A gradient scaler's factor is in before the gradient is rounded."""
    logits = torch.full((2, 3), -7.0, dtype=dtype).requires_grad_()
    total, _ = focal_background_sum(
        logits, torch.tensor([True, True]), torch.tensor([0])[:0], FocalBackground(2.0)
    )
    exact = logits.detach().double().requires_grad_()
    reference(exact, torch.tensor([True, True]), FocalBackground(2.0)).backward()
    total.backward(torch.tensor(2.0**16))
    torch.testing.assert_close(logits.grad.double() / 2**16, exact.grad, rtol=1e-2, atol=0)


@interpreted
def test_the_op_keeps_the_rules_of_torch_library():
    logits, background, rows, form = make_case(5, 3, per_class=True)
    arguments = (logits, background, rows, form.weight, form.bias, form.gamma, form.factor, form.scale)
    torch.library.opcheck(OP, arguments)


@interpreted
def test_the_sum_can_be_used_twice_and_again():
    logits, background, rows, form = make_case(5, 3)
    exact = logits.detach().double().requires_grad_()
    losses = []
    for values, total in (
        (logits, focal_background_sum(logits, background, rows, form)[0]),
        (exact, reference(exact, background, form)),
    ):
        loss = total * total.detach() + total.square()
        first = torch.autograd.grad(loss, values, retain_graph=True)[0]
        losses.append((first + torch.autograd.grad(loss, values)[0]).double())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-9)


@interpreted
def test_it_is_part_of_compiled_graphs():
    logits, background, rows, form = make_case(5, 3, per_class=True)

    def function(logits):
        total, picked = focal_background_sum(logits * 2, background, rows, form)
        return total / 7 + picked.square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(run(logits), logits)[0] for run in (compiled, function))
    torch.testing.assert_close(found, wanted)


@interpreted
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SigmoidBCELoss", {}),
        ("SigmoidFocalLoss", {"alpha": -1.0}),
        ("SigmoidFocalLoss", {}),
        ("DistributionBalancedLoss", {}),
        ("DistributionBalancedLoss", {"weighting": "class_balanced", "bias_form": "paper", "gamma": 0.0}),
        ("AsymmetricLoss", {}),  # has no kernel, although it is a kind of SigmoidBCELoss
        ("SoftmaxCrossEntropyLoss", {}),
    ],
)
def test_dense_losses(name, options):
    """The kernel's losses are those of PyTorch, whole steps of a model that several processes train too."""
    loss, truth = make_loss(name, **options), multi_label_targets(40)
    rows = truth.foreground.nonzero()[:, 0]
    targets = DenseTargets(truth.classes, rows, type(truth)(truth.classes[rows], truth.labels[rows]))
    layer, features = torch.nn.Linear(6, loss.num_logits), torch.randn(40, 6)
    found = {}
    for kernels in ("torch", "triton"):
        layer.zero_grad()
        losses = dense_losses(loss, 3 * layer(features), targets, kernels)
        (sum(losses.values()) / 9).backward()
        found[kernels] = {**losses, "gradient": layer.weight.grad.clone()}
    torch.testing.assert_close(found["triton"], found["torch"])


@interpreted
def test_gradients_of_distributed_models(tmp_path):
    logits, background, rows, form = make_case(6, 4)
    layer, features = torch.nn.Linear(3, 4), torch.randn(6, 3)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(layer)
        gradients = []
        for one in (model, layer):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = one(features)
                assert logits.dtype == torch.bfloat16
                total, picked = focal_background_sum(logits, background, rows, form)
            (total + picked.sum()).backward()
            gradients.append(layer.weight.grad.clone())
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(*gradients)


@interpreted
def test_the_benchmark_runs(repository, monkeypatch, capsys):
    for name, value in (("BLOCK", 1024), ("NUM_WARPS", 4)):  # what it changes is put back
        monkeypatch.setattr(f"longtail_det2.layers.background_loss_triton.{name}", value)
    monkeypatch.setattr(sys, "argv", ["bm_gpu.py", "--dry-run", "--losses", "DB"])
    runpy.run_path(str(repository / "scripts/benchmarks/bm_gpu.py"), run_name="__main__")
    assert "Triton, 1024 entries" in capsys.readouterr().out


@needs_triton
@not_interpreted
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_compiles_for(capability, tmp_path, monkeypatch):
    """Machine code without spilled registers, that reads and writes 16 bytes at once."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from longtail_det2.layers.background_loss_triton import BLOCK, NUM_WARPS, focal_background_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for gradient in (False, True):
        pointers = {"logits": "*bf16", "background": "*u8", "weight": "*fp32", "bias": "*fp32"}
        pointers |= {"upstream": "*fp32", "result": "*bf16" if gradient else "*fp32"}
        signature = {**pointers, "total": "i64", "factor": "fp32", "scale": "fp32"}
        constants = {"K": 1203, "GAMMA": 2.0, "GRADIENT": gradient, "BLOCK": BLOCK}
        done = triton.compile(
            ASTSource(
                fn=focal_background_kernel,
                signature={**signature, **dict.fromkeys(constants, "constexpr")},
                constexprs=constants,
                attrs={(index,): [["tt.divisibility", 16]] for index in range(len(pointers))},
            ),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": NUM_WARPS},
        )
        assert done.asm["cubin"]
        assert "ld.global.v4" in done.asm["ptx"] and "ld.local" not in done.asm["ptx"]
        assert ("st.global.v4" in done.asm["ptx"]) == gradient


@not_interpreted
def test_nothing_needs_triton():
    """Without the package, the losses are PyTorch's, and asking for the kernel says what is missing."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from longtail_det2.layers import checked_kernels, distribution_balanced_loss
from longtail_det2.utils.errors import ConfigError
assert distribution_balanced_loss(torch.zeros(2, 3), None).sum() > 0
assert checked_kernels("torch") == "torch"
for name, message in (("triton", "pip install triton"), ("cuda", "one of torch, triton")):
    try:
        checked_kernels(name)
    except ConfigError as error:
        assert message in str(error)
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_triton
@not_interpreted
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(("gamma", "per_class"), [(2.0, False), (0.0, False), (2.0, True), (1.5, True)])
def test_on_a_gpu(dtype, gamma, per_class):
    """The anchors of an image."""
    compare(*make_case(200_700, 80, dtype, gamma, per_class, device="cuda"))
