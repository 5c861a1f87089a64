"""Several samplers one after the other in one run, such as natural and then soft-balance sampling.

Hybrid training (Peng et al., CVPR 2020) first shows the data as they are, so that every image of a frequent
class is seen, and then fine-tunes with the classes balanced.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
from typing_extensions import Self

from longtail_det2.data.samplers.base import SAMPLER_REGISTRY, TrainingSampler, make_sampler, sampler_class
from longtail_det2.utils.errors import ConfigError

_KEY = "DATALOADER.PHASES (dataloader.train.phases)"
_FORM = (
    '["UniformTrainingSampler", 90000], a sampler and its iterations (at least 1), or '
    '["SoftBalanceTrainingSampler", 90000, {"lambda_": 0.5}] with options of the sampler'
)


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        sampler: a name in `SAMPLER_REGISTRY`, or a class.
        iterations: how long it lasts, at least 1.
        options: keyword arguments of the sampler's `from_dataset`, such as {"lambda_": 0.5}.
    """

    sampler: str | type[TrainingSampler]
    iterations: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.sampler if isinstance(self.sampler, str) else self.sampler.__name__


def parse_phases(phases: Sequence[Any], max_iter: int | None = None) -> tuple[Phase, ...]:
    """Phases as configs write them: [sampler, iterations] each, or [sampler, iterations, options].

    Args:
        phases: at least one; `Phase`s are taken as they are.
        max_iter: iterations of the whole training, which the phases must add up to; None checks nothing.

    Raises:
        ConfigError: an entry is not of that form, a sampler is unknown, or the sum is another.
    """
    if isinstance(phases, str) or not isinstance(phases, Sequence) or len(phases) == 0:
        raise ConfigError(f"{_KEY} is {phases!r}; it must be a list of phases, each {_FORM}")
    parsed = tuple(_parse_phase(number, entry) for number, entry in enumerate(phases, 1))
    total = sum(phase.iterations for phase in parsed)
    if max_iter is not None and total != max_iter:
        terms = " + ".join(str(phase.iterations) for phase in parsed)
        raise ConfigError(
            f"{_KEY}: the phases last {terms}{f' = {total}' if len(parsed) > 1 else ''} iterations, but "
            f"SOLVER.MAX_ITER (train.max_iter) is {max_iter}; both must be the same"
        )
    return parsed


def phases_of_run(sampler: Any, phases: Sequence[Any], max_iter: int | None = None) -> tuple[Phase, ...]:
    """The phases of a run, checked against its sampler.

    Args:
        sampler: DATALOADER.SAMPLER_TRAIN, or what a lazy config has in its place.
        phases: see `parse_phases`; empty, as what is returned, for a run with one sampler.
        max_iter: see `parse_phases`.

    Raises:
        ConfigError: see `parse_phases`; or phases are given for a sampler that does not follow them.
    """
    if isinstance(sampler, (str, type)) and sampler_class(sampler) is PhasedTrainingSampler:
        return parse_phases(phases, max_iter)
    if len(phases):
        raise ConfigError(
            f"{_KEY} is set, but the sampler (DATALOADER.SAMPLER_TRAIN, dataloader.train.sampler) is "
            f"{sampler!r}: to train in phases set it to 'PhasedTrainingSampler', else make the phases empty"
        )
    return ()


@SAMPLER_REGISTRY.register()
class PhasedTrainingSampler(TrainingSampler):
    """The streams of several samplers, each up to its length; the last one goes on without end.

    A function of (seed, ids drawn) like all samplers: a boundary is a position of the stream. The first phase
    has the seed of the run, so it equals a run with that sampler alone; later ones have seeds made from it,
    as a sampler that is used twice should not repeat itself.

    Attributes:
        samplers: one a phase; their own `start`, `rank` and `world_size` have no effect.
    """

    def __init__(
        self,
        samplers: Sequence[TrainingSampler],
        lengths: Sequence[int],
        seed: int,
        start: int = 0,
        **ranks: Any,
    ) -> None:
        """For samplers and the images of their phases over all ranks; the rest as in `TrainingSampler`."""
        super().__init__(seed=seed, start=start, **ranks)
        self.samplers = tuple(samplers)
        self.boundaries = tuple(accumulate(lengths))  # with that of the last phase, which ends its batches
        # Epochs are counted through; the last of a phase is cut at the boundary.
        ended = zip(samplers[:-1], lengths[:-1], strict=True)
        last = [sampler.locate(length - 1) for sampler, length in ended]
        self._first_epochs = (0, *accumulate(epoch + 1 for epoch, _ in last))
        self._cut_sizes = {
            self._first_epochs[phase] + epoch: lengths[phase] - begin
            for phase, (epoch, begin) in enumerate(last)
        }

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, seed: int, phases: Sequence[Any], batch_size: int, start: int = 0
    ) -> Self:
        """Make the samplers of all phases.

        Args:
            dataset: what to sample from, the same in all phases.
            seed: of the run.
            phases: see `parse_phases`.
            batch_size: images per iteration over all ranks.
            start: see `TrainingSampler`.
        """
        parsed = parse_phases(phases)
        samplers = [
            make_sampler(phase.sampler, dataset, seed=_phase_seed(seed, number), **phase.options)
            for number, phase in enumerate(parsed)
        ]
        lengths = [phase.iterations * batch_size for phase in parsed]
        return cls(samplers, lengths, seed, start)

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """DATALOADER.PHASES, where a phase's own options come before those of other keys."""
        phases = [
            replace(one, options={**sampler_class(one.sampler).options_from_config(cfg), **one.options})
            for one in parse_phases(cfg.DATALOADER.PHASES)
        ]
        return {"phases": phases, "batch_size": cfg.SOLVER.IMS_PER_BATCH}

    def epoch_size(self, epoch: int) -> int:
        """Of the phase's sampler, cut at the end of the phase."""
        if epoch in self._cut_sizes:
            return self._cut_sizes[epoch]
        phase = bisect_right(self._first_epochs, epoch) - 1
        return self.samplers[phase].epoch_size(epoch - self._first_epochs[phase])

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Those of the phase's sampler, cut at the end of the phase."""
        phase = bisect_right(self._first_epochs, epoch) - 1
        indices = self.samplers[phase].epoch_indices(epoch - self._first_epochs[phase])
        return indices[: self._cut_sizes.get(epoch)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.samplers))})"


def _parse_phase(number: int, entry: Any) -> Phase:
    if isinstance(entry, Phase):
        return entry
    listed = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) in (2, 3)
    parts: tuple[Any, ...] = (*entry, {})[:3] if listed else (None, 0, {})
    sampler, iterations, options = parts
    if type(iterations) is not int or iterations < 1 or not isinstance(options, Mapping):
        raise ConfigError(f"{_KEY}: phase {number} is {entry!r}; a phase is {_FORM}")
    if sampler_class(sampler) is PhasedTrainingSampler:
        raise ConfigError(f"{_KEY}: phase {number} is PhasedTrainingSampler itself; name a single sampler")
    return Phase(sampler, iterations, {str(key): value for key, value in options.items()})


def _phase_seed(seed: int, phase: int) -> int:
    if phase == 0:
        return seed
    # The spawn key keeps these numbers apart from those of epochs, augmentations and training steps.
    return int(np.random.SeedSequence((seed, phase), spawn_key=(3,)).generate_state(1)[0])
