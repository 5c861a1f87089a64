"""Optimizers and learning-rate schedules, the same functions for YAML and lazy configs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn
from torch.optim import Optimizer

from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def optimizer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :func:`build_optimizer` that a YAML config holds in ``SOLVER``."""
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    return {
        **{name: solver[name.upper()] for name in ("base_lr", "momentum", "nesterov", "bias_lr_factor")},
        **{name: solver[name.upper()] for name in ("weight_decay", "weight_decay_norm", "weight_decay_bias")},
        "name": solver.OPTIMIZER,
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
    momentum: float = 0.9,
    nesterov: bool = False,
    clip_type: str = "",
    clip_value: float = 1.0,
    clip_norm_type: float = 2.0,
    weight_decay_norm: float | None = 0.0,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
) -> Optimizer:
    """Build the optimizer of a model's trainable parameters.

    Args:
        model: its parameters are those of the optimizer.
        name: "SGD" or "AdamW" (Loshchilov and Hutter 2019).
        base_lr: learning rate, > 0.
        weight_decay: per step, times the learning rate.
        momentum: of SGD.
        nesterov: of SGD.
        clip_type: "" clips nothing, "value" each gradient entry, "norm" the norm of each parameter's
            gradient, "full_model" the norm of all gradients together. Under automatic mixed precision this is
            after the gradients are unscaled.
        clip_value: the bound.
        clip_norm_type: p of the p-norm.
        weight_decay_norm: of normalisation layers; None is `weight_decay`.
        weight_decay_bias: of biases; None is `weight_decay`.
        bias_lr_factor: learning rate of biases in units of `base_lr`.

    Raises:
        ConfigError: unknown `name` or `clip_type`.
    """
    groups = get_default_optimizer_params(
        model, base_lr, weight_decay, weight_decay_norm, bias_lr_factor, weight_decay_bias
    )
    if name == "SGD":
        optimizer: Optimizer = torch.optim.SGD(
            groups, lr=base_lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    elif name == "AdamW":
        optimizer = torch.optim.AdamW(groups, lr=base_lr, weight_decay=weight_decay)
    else:
        raise ConfigError(f"SOLVER.OPTIMIZER: there is no optimizer {name!r}; known: 'SGD', 'AdamW'")
    if clip_type not in ("", "value", "norm", "full_model"):
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip_type!r}; known: 'value', 'norm', 'full_model'"
        )
    if clip_type:
        optimizer.register_step_pre_hook(partial(_clip, clip_type, clip_value, clip_norm_type))
    return optimizer


def _clip(clip_type: str, bound: float, norm_type: float, optimizer: Optimizer, *_: Any) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if clip_type == "value":
        nn.utils.clip_grad_value_(params, bound)
        return
    for together in [params] if clip_type == "full_model" else [[p] for p in params]:
        nn.utils.clip_grad_norm_(together, bound, norm_type)


def lr_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :func:`build_lr_multiplier` that a YAML config holds in ``SOLVER``."""
    names = ("max_iter", "steps", "gamma", "warmup_iters", "warmup_factor", "warmup_method")
    return {
        **{name: cfg.SOLVER[name.upper()] for name in names},
        "name": cfg.SOLVER.LR_SCHEDULER_NAME,
        "end_factor": cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR,
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
    """Build the learning rate over training, in units of the base rate.

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
    if warmup_iters >= max_iter:
        logger.warning(
            "the warm-up is %d iterations (SOLVER.WARMUP_ITERS, lr_multiplier.warmup_iters), training %d: "
            "the learning rate never reaches its full value",
            warmup_iters,
            max_iter,
        )
    if name == "WarmupMultiStepLR":
        if list(steps) != sorted(set(steps)) or any(step < 1 for step in steps):
            raise ConfigError(f"SOLVER.STEPS is {list(steps)}; the steps must be positive and increase")
        reached = [step for step in steps if step < max_iter]
        values = [gamma**k for k in range(len(reached) + 1)]
        schedule: ParamScheduler = MultiStepParamScheduler(values, max_iter, milestones=reached or None)
    elif name == "WarmupCosineLR":
        schedule = CosineParamScheduler(1.0, end_factor)
    else:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME: there is no schedule {name!r}; known: 'WarmupMultiStepLR', "
            "'WarmupCosineLR'"
        )
    return WarmupParamScheduler(schedule, warmup_factor, min(warmup_iters / max_iter, 1.0), warmup_method)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """Build the scheduler that ``SOLVER`` describes, stepped once per iteration."""
    return LRMultiplier(optimizer, build_lr_multiplier(**lr_arguments(cfg)), cfg.SOLVER.MAX_ITER)
