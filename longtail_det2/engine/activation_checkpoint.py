"""Activation checkpointing by configuration: memory for time, with equal losses (Chen et al., 2016)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def checkpoint_activations(model: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Make parts of a model recompute their activations for the gradient instead of keeping them.

    Each part is one segment: the smaller the parts, the less memory. Names of parameters do not change.

    Args:
        model: changed in place, before it is wrapped for distributed training.
        prefixes: beginnings of module names, such as "backbone.bottom_up.res" for each stage of a ResNet or
            "roi_heads.box_head"; of modules within each other the outermost is taken.

    Returns:
        Names of the modules.

    Raises:
        ConfigError: no module has such a name.
    """
    chosen: list[str] = []
    for prefix in prefixes:
        found = [name for name, _ in model.named_modules() if name and name.startswith(prefix)]
        if not found:
            raise ConfigError(
                f"MODEL.ACTIVATION_CHECKPOINT: no module's name begins with {prefix!r}; those of the model "
                f"begin with {', '.join(name for name, _ in model.named_children())}"
            )
        for name in found:  # parents come before their children
            if not any(name == other or name.startswith(f"{other}.") for other in chosen):
                chosen.append(name)
    for name in chosen:
        module = model.get_submodule(name)
        module.forward = _checkpointed(module, module.forward)
    if chosen:
        logger.info("Activations are computed again for the gradient in: %s", ", ".join(chosen))
    return chosen


def _checkpointed(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _statistics_kept(module)),
            **kwargs,
        )

    return run


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Freeze BN running statistics, and stop heads from updating counters, during recomputation."""
    heads: list[Any] = [part for part in module.modules() if hasattr(part, "counting")]
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    tracked = [one for layer in layers if (one := layer.num_batches_tracked) is not None]
    counts = [one.clone() for one in tracked]
    for layer in layers:
        layer.momentum = 0.0
    for head in heads:
        head.counting = False
    try:
        yield
    finally:
        for head in heads:
            head.counting = True
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for one, count in zip(tracked, counts, strict=True):
            one.copy_(count)
