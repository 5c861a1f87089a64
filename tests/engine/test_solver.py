import math

import pytest
import torch
from torch import nn

from longtail_det2.engine.solver import build_lr_multiplier, build_optimizer
from longtail_det2.utils.errors import ConfigError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_norm_layers_have_no_weight_decay():
    model = network()
    optimizer = build_optimizer(model, name="AdamW", base_lr=0.1, weight_decay=0.05)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[p] for p in model.parameters()] == [0.05, 0.05, 0.0, 0.0, 0.05, 0.05]


def test_parameters_that_are_frozen_or_without_gradient_are_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, base_lr=0.1, clip_type="full_model")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5
    before = model[0].bias.detach().clone()
    model[0](torch.randn(2, 3)).sum().backward()  # the others have no gradient
    optimizer.step()
    assert not torch.equal(model[0].bias, before)


@pytest.mark.parametrize(
    ("clip_type", "norm_of_all", "largest", "norm_of_one"),
    [
        ("", None, None, None),
        ("value", None, 0.1, None),
        ("norm", None, None, 0.1),
        ("full_model", 0.1, None, None),
    ],
)
def test_gradient_clipping(clip_type, norm_of_all, largest, norm_of_one):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(
        model, base_lr=1.0, momentum=0.0, weight_decay=0.0, clip_type=clip_type, clip_value=0.1
    )
    (100 * model(torch.randn(8, 3)).square().sum()).backward()
    optimizer.step()
    steps = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]  # lr 1: the gradients
    norms = torch.stack([step.norm() for step in steps])
    if norm_of_all:
        assert float(norms.norm()) == pytest.approx(norm_of_all, rel=1e-3)
    if largest:
        assert max(float(step.abs().max()) for step in steps) == pytest.approx(largest, rel=1e-4)
    if norm_of_one:
        assert norms.max() <= norm_of_one * 1.001 and (norms > 0.099).sum() >= 3
    if not clip_type:
        assert norms.max() > 1


def test_errors_name_the_key():
    for options, key in (
        ({"name": "Adam"}, "SOLVER.OPTIMIZER.*'AdamW'"),
        ({"clip_type": "all"}, "CLIP_TYPE"),
    ):
        with pytest.raises(ConfigError, match=key):
            build_optimizer(network(), base_lr=0.1, **options)
    for options, key in (
        ({"name": "Cosine"}, "LR_SCHEDULER_NAME"),
        ({"max_iter": 0}, "MAX_ITER"),
        *(({"steps": steps}, "SOLVER.STEPS") for steps in ([20, 10], [0, 10], [10, 10])),
    ):
        with pytest.raises(ConfigError, match=key):
            build_lr_multiplier(**{"max_iter": 30, **options})


def test_cosine_ends_at_the_end_factor():
    multiplier = build_lr_multiplier(
        name="WarmupCosineLR", max_iter=1000, end_factor=0.02, warmup_iters=50, warmup_factor=0.1
    )
    assert multiplier(0.0) == pytest.approx(0.1)
    expected = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert multiplier(0.5) == pytest.approx(expected)
    assert multiplier(0.999999) == pytest.approx(0.02, abs=1e-5)
    rising = [multiplier(i / 1000) for i in range(50)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
def test_trainings_shorter_than_warmup_and_steps(max_iter, name):
    multiplier = build_lr_multiplier(name=name, max_iter=max_iter, steps=[1, 2, 40], warmup_iters=50)
    assert all(0 <= multiplier(i / max_iter) <= 1 for i in range(max_iter))


@pytest.mark.parametrize(("warmup", "warned"), [(50, True), (30, True), (29, False)])
def test_a_schedule_that_is_all_warm_up_is_told(caplog, warmup, warned):
    with caplog.at_level("WARNING"):
        build_lr_multiplier(max_iter=30, warmup_iters=warmup)
    assert ("never reaches its full value" in caplog.text) == warned
