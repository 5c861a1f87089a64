"""What a run draws: which phase it is in, and how often it drew images of each class."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm

from longtail_det2.data.build import TrainingStream
from longtail_det2.data.datasets.dataset import labels_per_image
from longtail_det2.data.samplers import ClassIndex, Phase, TrainingSampler
from longtail_det2.utils.io import write_json

logger = logging.getLogger(__name__)

SAMPLED_CLASSES_FILE = "sampled_classes.json"
"""File of a run's folder with the realised class frequencies."""


class SamplingLog(HookBase):
    """Logs the phases and, at the end of each, how often images of each class were drawn.

    Frequencies are not counted while training but computed from the sampler, which is a function of (seed,
    ids drawn): they are of all ranks, the same after any number of restarts, and cost the main process some
    seconds for each phase. With more than one phase, metrics.json has the scalar "phase" (1, 2, ...).

    Images that a mapper rejects count as drawn; what took their place does not. In a run with one sampler and
    DATALOADER.ASPECT_RATIO_GROUPING, so do images that wait for a partner when training ends, less than a
    batch on each process.
    """

    def __init__(self, output_dir: str, phases: Sequence[Phase], max_iter: int, batch_size: int) -> None:
        """Registered in all processes; it writes in the main one.

        Args:
            output_dir: folder of the run.
            phases: () for a run with one sampler.
            max_iter: iterations of the run.
            batch_size: images of an iteration over all ranks.
        """
        lengths = [phase.iterations for phase in phases] or [max_iter]
        self._names = [str(phase) for phase in phases] or ["the training data"]
        self._bounds = [0, *accumulate(lengths)]
        self._output_dir, self._batch_size = output_dir, batch_size
        self._drawn: tuple[Any, TrainingSampler] | None = None
        self._phase = -1
        self._found: list[dict[str, Any]] = []

    def watch(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Takes note of the training loader when it is built, and hands it back."""
        stream = getattr(loader, "dataset", None)
        sampler = stream.sampler if isinstance(stream, TrainingStream) else None
        if isinstance(stream, TrainingStream) and isinstance(sampler, TrainingSampler):
            self._drawn = stream.dataset, sampler
            parts = getattr(sampler, "samplers", (sampler,))
            if len(parts) == len(self._names):
                self._names = [repr(one) for one in parts]
        else:
            logger.info("no class frequencies are written: the training data come from a loader of one's own")
        self._log_phase()
        return loader

    def before_step(self) -> None:
        """A line in the log where a phase begins, and the scalar."""
        if len(self._names) == 1:
            return
        phase = self._phase_of(self.trainer.iter)
        if self._phase >= 0 and phase != self._phase:  # the first phase is logged with the loader
            self._log_phase()
        self.trainer.storage.put_scalar("phase", phase + 1, smoothing_hint=False)

    def after_step(self) -> None:
        """Writes the frequencies at the end of a phase."""
        if self.trainer.iter + 1 in self._bounds and comm.is_main_process():
            self._write(self.trainer.iter + 1)

    def _phase_of(self, iteration: int) -> int:
        return min(bisect_right(self._bounds, iteration), len(self._names)) - 1

    def _log_phase(self) -> None:
        self._phase = phase = self._phase_of(getattr(self.trainer, "iter", 0))
        if len(self._names) == 1:
            return
        logger.info(
            "Phase %d of %d, iterations %d to %d: %s",
            *(phase + 1, len(self._names), self._bounds[phase], self._bounds[phase + 1] - 1),
            self._names[phase],
        )

    def _write(self, done: int) -> None:
        """Adds the phases that are over by now to the file."""
        if self._drawn is None:
            return
        dataset, sampler = self._drawn
        names = list(getattr(dataset, "class_ids", ()))
        index = ClassIndex.build(*labels_per_image(dataset), num_classes=len(names))
        names = names or [str(c) for c in range(len(index.counts))]
        ended = [pair for pair in pairwise(self._bounds) if pair[1] <= done]
        for number, (begin, end) in list(enumerate(ended))[len(self._found) :]:
            images = sampler.draw_counts(begin * self._batch_size, end * self._batch_size, len(dataset))
            self._found.append(
                {
                    "phase": number + 1,
                    "sampler": self._names[number],
                    "first_iteration": begin,
                    "iterations": end - begin,
                    "images_drawn": int(images.sum()),
                    "distinct_images": int(np.count_nonzero(images)),
                    "drawn_by_class": draws_by_class(index, images).tolist(),
                }
            )
        logger.info("%s", describe(self._found[-1], names, index.counts))
        path = os.path.join(self._output_dir, SAMPLED_CLASSES_FILE)
        content = {"class_ids": names, "images_by_class": index.counts.tolist(), "phases": self._found}
        try:
            write_json(path, content)
        except OSError as error:  # training goes on
            logger.error("%s cannot be written: %s", path, error)


def draws_by_class(index: ClassIndex, draws: np.ndarray) -> np.ndarray:
    """How often an image with class c was drawn; an image counts for each of its classes.

    Args:
        index: which images contain which class.
        draws: (n,) how often each image was drawn.

    Returns:
        (C,) int64.
    """
    sums = np.zeros(len(index.images) + 1, dtype=np.int64)
    np.cumsum(draws[index.images], out=sums[1:])
    return np.diff(sums[index.offsets])


def describe(phase: dict[str, Any], names: Sequence[str], images_by_class: np.ndarray) -> str:
    """One line about the frequencies of a phase.

    Args:
        phase: an entry of the file.
        names: of the classes.
        images_by_class: (C,) images of the data set with the class.
    """
    drawn = np.array(phase["drawn_by_class"])
    occurring = np.flatnonzero(images_by_class)
    line = (
        f"Drawn in {phase['iterations']} iterations by {phase['sampler']}: {phase['images_drawn']} images, "
        f"{phase['distinct_images']} different ones"
    )
    if len(occurring) == 0 or not drawn.any():
        return line
    order = occurring[np.argsort(images_by_class[occurring], kind="stable")]
    thirds = [part for part in np.array_split(order, 3) if len(part)]
    shares = "/".join(f"{drawn[part].sum() / drawn.sum():.1%}" for part in thirds)
    before = "/".join(f"{images_by_class[part].sum() / images_by_class.sum():.1%}" for part in thirds)
    least, most = occurring[np.argmin(drawn[occurring])], occurring[np.argmax(drawn[occurring])]
    never = int(np.count_nonzero(drawn[occurring] == 0))
    return (
        f"{line}; rarest to most frequent third of the classes {shares} (in the data {before}); a class "
        f"{drawn[least]} ({names[least]}) to {drawn[most]} ({names[most]}) times"
        + (f", {never} of {len(occurring)} never" if never else "")
    )
