"""Optimizers and learning-rate schedules, the same functions for YAML and lazy configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn
from torch.optim import Optimizer

from longtail_det2.utils.errors import ConfigError


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
    }


def build_lr_multiplier(
    *,
    name: str = "WarmupMultiStepLR",
    max_iter: int,
    steps: Sequence[int] = (),
    gamma: float = 0.1,
    end_factor: float = 0.0,
    warmup_iters: int = 1000,
    warmup_factor: float = 0.001,
    warmup_method: str = "linear",
) -> ParamScheduler:
    """Learning rate over training, in units of the base rate.

    All lengths are in iterations, so that a shorter training is a change of `max_iter` alone.

    Args:
        name: "WarmupMultiStepLR" or "WarmupCosineLR", Detectron2's names.
        max_iter: iterations of the whole training, > 0.
        steps: where the multi-step schedule multiplies by `gamma`; those at or beyond `max_iter` have no
            effect.
        gamma: see `steps`.
        end_factor: what the cosine schedule ends at.
        warmup_iters: iterations of the warm-up; cut at `max_iter`.
        warmup_factor: what the warm-up starts from, in units of the schedule's first value.
        warmup_method: "linear" or "constant".

    Raises:
        ConfigError: unknown `name`, `max_iter` not positive, or `steps` not positive and increasing.
    """
    if max_iter < 1:
        raise ConfigError(f"SOLVER.MAX_ITER is {max_iter}; training needs at least one iteration")
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
