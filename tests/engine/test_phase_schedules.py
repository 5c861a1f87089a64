"""The learning rate over the phases of a run."""

import math

import pytest
import torch
from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from omegaconf import OmegaConf

from longtail_det2 import model_zoo
from longtail_det2.config import get_cfg
from longtail_det2.config_files import load_cfg
from longtail_det2.engine.solver import build_lr_multiplier, build_lr_scheduler, lr_arguments
from longtail_det2.utils.errors import ConfigError

PHASES = [["UniformTrainingSampler", 60], ["SoftBalanceTrainingSampler", 40]]
WARMUP = {"warmup_iters": 5, "warmup_factor": 0.1}


def rates(max_iter=100, **options):
    """The rate of each iteration, as the scheduler of a run asks for it."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    multiplier = build_lr_multiplier(**{"max_iter": max_iter, **WARMUP, **options})
    scheduler = LRMultiplier(optimizer, multiplier, max_iter)
    found = []
    for _ in range(max_iter):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # also after the last iteration
    return found


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
def test_without_restart_phases_change_nothing(name):
    options = {"name": name, "steps": [70, 90]}
    assert rates(**options, phases=PHASES) == rates(**options)


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
def test_a_restart_is_the_schedule_of_a_run_as_long_as_the_phase(name):
    options = {"name": name, "steps": [20, 30], "end_factor": 0.05}
    found = rates(**options, phases=PHASES, phase_restart="with_warmup", phase_factor=0.5)
    assert found[:60] == rates(60, **options)
    assert found[60:] == [0.5 * rate for rate in rates(40, **options)]
    found = rates(**options, phases=PHASES, phase_restart="without_warmup")
    assert found[:60] == rates(60, **options)
    assert found[60:] == rates(40, **options, warmup_iters=0)
    assert found[60] == 1.0 != found[0]


def test_values_of_a_restarted_schedule():
    found = rates(steps=[20, 30], phases=PHASES, phase_restart="with_warmup", phase_factor=0.2)
    assert [found[i] for i in (0, 5, 19, 20, 29, 30, 59)] == pytest.approx([0.1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [found[60 + i] for i in (0, 5, 19, 20, 30, 39)] == pytest.approx(
        [0.02, 0.2, 0.2, 0.02, 0.002, 0.002]
    )
    cosine = rates(name="WarmupCosineLR", phases=PHASES, phase_restart="without_warmup")
    assert cosine[59] < 0.01 and cosine[60] == 1.0
    assert cosine[80] == pytest.approx(0.5) and cosine[30] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_steps_of_each_phase():
    options = {"phases": PHASES, "phase_restart": "with_warmup"}
    found = rates(steps=[[50], [10, 30]], **options)
    assert found[:60] == rates(60, steps=[50]) and found[60:] == rates(40, steps=[10, 30])
    found = rates(steps=[[], [10]], **options)
    assert found[59] == 1.0 and found[70] == pytest.approx(0.1)


@pytest.mark.parametrize("lengths", [(7, 3), (1, 1, 1), (33, 33, 34), (89999, 3), (12345, 54321, 22222)])
def test_boundaries_of_any_length_fall_on_their_iteration(lengths):
    """The scheduler hands over iteration / max_iter, which may be the least bit below a boundary."""
    phases = [["UniformTrainingSampler", length] for length in lengths]
    options = {"phases": phases, "phase_restart": "without_warmup", "phase_factor": 0.5}
    total = sum(lengths)
    multiplier = build_lr_multiplier(max_iter=total, warmup_iters=0, **options)
    found = [multiplier(iteration / total) for iteration in range(total + 1)]
    expected = [0.5**number for number, length in enumerate(lengths) for _ in range(length)]
    assert found == [*expected, expected[-1]]


def test_phases_shorter_than_warmup_and_steps():
    phases = [["UniformTrainingSampler", 97], ["UniformTrainingSampler", 3]]
    for name in ("WarmupCosineLR", "WarmupMultiStepLR"):
        found = rates(name=name, steps=[20], phases=phases, phase_restart="with_warmup", warmup_iters=50)
        assert all(0 <= rate <= 1 for rate in found) and found[97] == pytest.approx(0.1)


def test_the_scheduler_resumes_inside_a_phase():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 100, (10, 30), 5
    cfg.DATALOADER.PHASES, cfg.SOLVER.PHASE_RESTART, cfg.SOLVER.PHASE_FACTOR = (
        tuple(PHASES),
        "with_warmup",
        0.1,
    )

    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
        return optimizer, build_lr_scheduler(cfg, optimizer)

    optimizer, scheduler = make()
    found, states = [], []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        states.append((scheduler.state_dict(), optimizer.state_dict()))
    for done in (59, 60, 61, 63, 75, 99):
        resumed, again = make()
        again.load_state_dict(states[done - 1][0])
        resumed.load_state_dict(states[done - 1][1])
        rest = []
        for _ in range(100 - done):
            rest.append(resumed.param_groups[0]["lr"])
            resumed.step()
            again.step()
        assert rest == found[done:]


def test_yaml_and_lazy_build_the_same_schedule(tmp_path):
    path = tmp_path / "hybrid.yaml"
    path.write_text(
        "SOLVER: {MAX_ITER: 100, WARMUP_ITERS: 5, STEPS: [[50], [10, 30]], PHASE_RESTART: without_warmup,\n"
        "  PHASE_FACTOR: 0.1, LR_SCHEDULER_NAME: WarmupMultiStepLR}\n"
        "DATALOADER:\n"
        "  SAMPLER_TRAIN: PhasedTrainingSampler\n"
        "  PHASES:\n"
        "    - [UniformTrainingSampler, 60]\n"
        "    - [SoftBalanceTrainingSampler, 40, {lambda_: 0.5}]\n"
    )
    ours = build_lr_multiplier(**lr_arguments(load_cfg(path)))
    lazy = model_zoo.get_config("openimages/faster_rcnn_R_50_FPN_OpenImages.py")
    lazy.train.max_iter = 100
    lazy.dataloader.train.sampler = "PhasedTrainingSampler"
    lazy.dataloader.train.phases = [PHASES[0], [*PHASES[1], {"lambda_": 0.5}]]
    lazy.lr_multiplier.update(steps=[[50], [10, 30]], phase_restart="without_warmup", phase_factor=0.1)
    lazy.lr_multiplier.update(warmup_iters=5, warmup_factor=0.001)
    theirs = instantiate(lazy.lr_multiplier)  # takes the phases of the data loader
    assert [ours(i / 100) for i in range(100)] == [theirs(i / 100) for i in range(100)]
    assert ours(0.7) == pytest.approx(0.1 * 0.1)
    del lazy.dataloader.train.phases  # a loader of one's own has none
    lazy.lr_multiplier.update(steps=[50], phase_restart="none", phase_factor=1.0)
    assert instantiate(lazy.lr_multiplier)(0.7) == pytest.approx(0.1)
    assert OmegaConf.select(lazy, "lr_multiplier.phases") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"phases": PHASES, "phase_restart": "yes"},
            "SOLVER.PHASE_RESTART (lr_multiplier.phase_restart) is 'yes'; known: 'none', 'with_warmup', "
            "'without_warmup'",
        ),
        ({"phase_restart": "with_warmup"}, "DATALOADER.PHASES (dataloader.train.phases) is empty"),
        (
            {"phases": PHASES, "phase_restart": "with_warmup", "phase_factor": 0.0},
            "SOLVER.PHASE_FACTOR (lr_multiplier.phase_factor) is 0.0; it must be positive",
        ),
        (
            {"phases": PHASES, "phase_factor": 0.1},
            "set SOLVER.PHASE_RESTART to 'with_warmup' or 'without_warmup'",
        ),
        (
            {"phases": PHASES, "steps": [[10], [10]]},
            "set SOLVER.PHASE_RESTART to 'with_warmup' or 'without_warmup'",
        ),
        (
            {"phases": PHASES, "steps": [[10]], "phase_restart": "with_warmup"},
            "SOLVER.STEPS has lists for 1 of 2 phases (DATALOADER.PHASES): give one for each phase, or one "
            "list of numbers for all",
        ),
        (
            {"phases": PHASES, "steps": [[20, 10], []], "phase_restart": "with_warmup"},
            "SOLVER.STEPS is [20, 10]; the steps must be positive and increase",
        ),
        (
            {"phases": PHASES[:1], "phase_restart": "with_warmup"},
            "DATALOADER.PHASES (dataloader.train.phases): the phases last 60 iterations, but SOLVER.MAX_ITER "
            "(train.max_iter) is 100; both must be the same",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigError) as caught:
        build_lr_multiplier(**{"max_iter": 100, **options})
    assert message in str(caught.value)
