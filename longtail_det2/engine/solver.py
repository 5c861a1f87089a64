"""Optimizers and learning-rate schedules, the same functions for YAML and lazy configs."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn
from torch.optim import Optimizer

from longtail_det2.data.samplers import Phase, parse_phases
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def optimizer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :func:`build_optimizer` that a YAML config holds in ``SOLVER``."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return {
        "name": cfg.SOLVER.OPTIMIZER,
        "base_lr": cfg.SOLVER.BASE_LR,
        "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
        "weight_decay_norm": cfg.SOLVER.WEIGHT_DECAY_NORM,
        "momentum": cfg.SOLVER.MOMENTUM,
        "nesterov": cfg.SOLVER.NESTEROV,
        "bias_lr_factor": cfg.SOLVER.BIAS_LR_FACTOR,
        "weight_decay_bias": cfg.SOLVER.WEIGHT_DECAY_BIAS,
        "clip_type": clip.CLIP_TYPE if clip.ENABLED else "",
        "clip_value": clip.CLIP_VALUE,
        "clip_norm_type": clip.NORM_TYPE,
    }


def build_optimizer(
    model: nn.Module,
    *,
    name: str = "SGD",
    base_lr: float,
    weight_decay: float = 1e-4,
    weight_decay_norm: float | None = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    clip_type: Literal["", "value", "norm", "full_model"] = "",
    clip_value: float = 1.0,
    clip_norm_type: float = 2.0,
) -> Optimizer:
    """Makes the optimizer of a model's trainable parameters.

    Args:
        model: parameters of normalisation layers get `weight_decay_norm`, all others `weight_decay`.
        name: "SGD" or "AdamW" (weight decay apart from the gradient, Loshchilov and Hutter 2019).
        base_lr: learning rate, > 0.
        weight_decay: per step, times the learning rate.
        weight_decay_norm: of normalisation layers; None is `weight_decay`.
        momentum: of SGD.
        nesterov: of SGD.
        bias_lr_factor: learning rate of biases in units of `base_lr`.
        weight_decay_bias: None is `weight_decay`.
        clip_type: "" clips nothing, "value" each gradient entry, "norm" the norm of each parameter's
            gradient, "full_model" the norm of all gradients together.
        clip_value: the bound.
        clip_norm_type: p of the p-norm.

    Raises:
        ConfigError: unknown `name` or `clip_type`.
    """
    params = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
    )
    if name == "SGD":
        optimizer: Optimizer = torch.optim.SGD(
            params, lr=base_lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    elif name == "AdamW":
        optimizer = torch.optim.AdamW(params, lr=base_lr, weight_decay=weight_decay)
    else:
        raise ConfigError(f"SOLVER.OPTIMIZER: there is no optimizer {name!r}; known: 'SGD', 'AdamW'")
    if clip_type:
        clip = _gradient_clipper(clip_type, clip_value, clip_norm_type)
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: clip(optimizer))
    return optimizer


def _gradient_clipper(clip_type: str, bound: float, norm_type: float) -> Callable[[Optimizer], None]:
    """A function that clips the gradients of an optimizer just before it steps.

    Under automatic mixed precision that is after the gradient scaler has unscaled them.
    """

    def clip(optimizer: Optimizer) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if clip_type == "value":
            nn.utils.clip_grad_value_(params, bound)
        elif clip_type == "full_model":
            nn.utils.clip_grad_norm_(params, bound, norm_type)
        else:
            for p in params:
                nn.utils.clip_grad_norm_([p], bound, norm_type)

    if clip_type not in ("value", "norm", "full_model"):
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip_type!r}; known: 'value', 'norm', 'full_model'"
        )
    return clip


def lr_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :func:`build_lr_multiplier` that a YAML config holds in ``SOLVER``."""
    return {
        "name": cfg.SOLVER.LR_SCHEDULER_NAME,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "steps": cfg.SOLVER.STEPS,
        "gamma": cfg.SOLVER.GAMMA,
        "end_factor": cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR,
        "warmup_iters": cfg.SOLVER.WARMUP_ITERS,
        "warmup_factor": cfg.SOLVER.WARMUP_FACTOR,
        "warmup_method": cfg.SOLVER.WARMUP_METHOD,
        "phases": cfg.DATALOADER.PHASES,
        "phase_restart": cfg.SOLVER.PHASE_RESTART,
        "phase_factor": cfg.SOLVER.PHASE_FACTOR,
    }


def build_lr_multiplier(
    *,
    name: str = "WarmupMultiStepLR",
    max_iter: int,
    steps: Sequence[int] | Sequence[Sequence[int]] = (),
    gamma: float = 0.1,
    end_factor: float = 0.0,
    warmup_iters: int = 1000,
    warmup_factor: float = 0.001,
    warmup_method: str = "linear",
    phases: Sequence[Any] = (),
    phase_restart: str = "none",
    phase_factor: float = 1.0,
) -> ParamScheduler:
    """Learning rate over training, in units of the base rate.

    All lengths are in iterations, so that a shorter training is a change of `max_iter` alone.

    Args:
        name: "WarmupMultiStepLR" or "WarmupCosineLR", Detectron2's names.
        max_iter: iterations of the whole training, > 0.
        steps: where the multi-step schedule multiplies by `gamma`; those at or beyond `max_iter` have no
            effect. With a restart they count from a phase's beginning and may be one list for each phase.
        gamma: see `steps`.
        end_factor: what the cosine schedule ends at.
        warmup_iters: iterations of the warm-up; cut at `max_iter`.
        warmup_factor: what the warm-up starts from, in units of the schedule's first value.
        warmup_method: "linear" or "constant".
        phases: of the samplers, see :func:`longtail_det2.data.samplers.parse_phases`.
        phase_restart: "none" has one schedule over the whole training. "with_warmup" and "without_warmup"
            begin it anew at each phase, as long as the phase is; the first phase has its warm-up in any case.
        phase_factor: with a restart, the learning rate of phase s = 0, 1, ... is multiplied by
            phase_factor ** s; positive.

    Raises:
        ConfigError: unknown `name`, `max_iter` not positive, `steps` not positive and increasing, or phases
            that do not fit `max_iter`, `steps` or a restart.
    """
    if max_iter < 1:
        raise ConfigError(f"SOLVER.MAX_ITER is {max_iter}; training needs at least one iteration")
    if warmup_iters >= max_iter:
        logger.warning(
            "the warm-up is %d iterations (SOLVER.WARMUP_ITERS, lr_multiplier.warmup_iters), training %d: "
            "the learning rate never reaches its full value",
            warmup_iters,
            max_iter,
        )
    shape: dict[str, Any] = {
        "name": name,
        "gamma": gamma,
        "end_factor": end_factor,
        "warmup_factor": warmup_factor,
        "warmup_method": warmup_method,
    }
    per_phase = any(isinstance(step, Sequence) for step in steps)
    if phase_restart == "none":
        if phase_factor != 1.0 or per_phase:
            raise ConfigError(
                "SOLVER.PHASE_FACTOR, or a list of SOLVER.STEPS for each phase, needs phases whose schedule "
                "begins anew: set SOLVER.PHASE_RESTART to 'with_warmup' or 'without_warmup'"
            )
        return _build_schedule(max_iter=max_iter, steps=steps, warmup_iters=warmup_iters, **shape)
    parsed = _phases_to_restart(phases, max_iter, phase_restart, phase_factor)
    if per_phase and len(steps) != len(parsed):
        raise ConfigError(
            f"SOLVER.STEPS has lists for {len(steps)} of {len(parsed)} phases (DATALOADER.PHASES): give one "
            "for each phase, or one list of numbers for all"
        )
    schedules = [
        _build_schedule(
            max_iter=phase.iterations,
            steps=steps[number] if per_phase else steps,
            warmup_iters=warmup_iters if number == 0 or phase_restart == "with_warmup" else 0,
            **shape,
        )
        for number, phase in enumerate(parsed)
    ]
    factors = [phase_factor**number for number in range(len(parsed))]
    return PhasedParamScheduler(schedules, [phase.iterations for phase in parsed], factors)


class PhasedParamScheduler(ParamScheduler):
    """Schedules one after the other, each over the iterations of its phase."""

    def __init__(
        self, schedules: Sequence[ParamScheduler], iterations: Sequence[int], factors: Sequence[float]
    ) -> None:
        """For at least one phase.

        Args:
            schedules: one a phase, from 0 at its beginning to 1 at its end.
            iterations: of each phase, positive.
            factors: what a phase's schedule is multiplied by.
        """
        self._schedules, self._factors = list(schedules), list(factors)
        self._iterations = list(iterations)
        self._begins = [0, *accumulate(iterations[:-1])]
        self._total = sum(iterations)

    def __call__(self, where: float) -> float:
        """The value at a point of the whole training, in [0, 1]."""
        # Which iteration that is, as a phase begins at a whole one and `where` may be the least bit below it.
        iteration = round(where * self._total)
        phase = bisect_right(self._begins, iteration) - 1
        within = (iteration - self._begins[phase]) / self._iterations[phase]
        return self._factors[phase] * self._schedules[phase](within)


def _phases_to_restart(
    phases: Sequence[Any], max_iter: int, restart: str, factor: float
) -> tuple[Phase, ...]:
    """The phases of a schedule that begins anew; see :func:`build_lr_multiplier`."""
    if restart not in ("with_warmup", "without_warmup"):
        raise ConfigError(
            f"SOLVER.PHASE_RESTART (lr_multiplier.phase_restart) is {restart!r}; known: 'none', "
            "'with_warmup', 'without_warmup'"
        )
    if not len(phases):
        raise ConfigError(
            f"SOLVER.PHASE_RESTART (lr_multiplier.phase_restart) is {restart!r}, but there are no phases at "
            "which the schedule could begin anew: DATALOADER.PHASES (dataloader.train.phases) is empty"
        )
    if not factor > 0:
        raise ConfigError(
            f"SOLVER.PHASE_FACTOR (lr_multiplier.phase_factor) is {factor}; it must be positive"
        )
    return parse_phases(phases, max_iter)


def _build_schedule(
    *,
    name: str,
    max_iter: int,
    steps: Any,
    gamma: float,
    end_factor: float,
    warmup_iters: int,
    warmup_factor: float,
    warmup_method: str,
) -> ParamScheduler:
    """One schedule without phases; see :func:`build_lr_multiplier`."""
    if name == "WarmupMultiStepLR":
        if list(steps) != sorted(set(steps)) or any(step < 1 for step in steps):
            raise ConfigError(f"SOLVER.STEPS is {list(steps)}; the steps must be positive and increase")
        reached = [step for step in steps if step < max_iter]
        schedule: ParamScheduler = MultiStepParamScheduler(
            values=[gamma**k for k in range(len(reached) + 1)],
            milestones=reached or None,
            num_updates=max_iter,
        )
    elif name == "WarmupCosineLR":
        schedule = CosineParamScheduler(1.0, end_factor)
    else:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME: there is no schedule {name!r}; known: 'WarmupMultiStepLR', "
            "'WarmupCosineLR'"
        )
    length = min(warmup_iters / max_iter, 1.0)
    return WarmupParamScheduler(schedule, warmup_factor, length, warmup_method)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """The scheduler that ``SOLVER`` describes, stepped once an iteration."""
    return LRMultiplier(optimizer, build_lr_multiplier(**lr_arguments(cfg)), cfg.SOLVER.MAX_ITER)
