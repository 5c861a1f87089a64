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


class SamplingLog(HookBase):
    """Log the phases and, at the end of each, how often images of each class were drawn.

    Frequencies are computed from the sampler, which is a function of (seed, ids drawn): they are of all ranks
    and the same after any number of restarts. With more than one phase, metrics.json has the scalar "phase"
    (1, 2, ...). Images that a mapper rejects count as drawn; what took their place does not.
    """

    def __init__(self, output_dir: str, phases: Sequence[Phase], max_iter: int, batch_size: int) -> None:
        """Touch no file; register it in all processes.

        Args:
            output_dir: folder of the run.
            phases: () for a run with one sampler.
            max_iter: iterations of the run.
            batch_size: images per iteration over all ranks.
        """
        self._samplers = [str(phase) for phase in phases] or ["the training data"]
        self._bounds = [0, *accumulate([phase.iterations for phase in phases] or [max_iter])]
        self._output_dir, self._batch_size = output_dir, batch_size
        self._drawn: tuple[Any, TrainingSampler] | None = None
        self._phase = -1

    def watch(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Note the sampler of a training loader, and return the loader."""
        stream = getattr(loader, "dataset", None)
        if isinstance(stream, TrainingStream) and isinstance(stream.sampler, TrainingSampler):
            self._drawn = stream.dataset, stream.sampler
            parts = getattr(stream.sampler, "samplers", (stream.sampler,))
            if len(parts) == len(self._samplers):
                self._samplers = [repr(one) for one in parts]
        else:
            logger.info("no class frequencies are written: the loader does not come from this project")
        return loader

    def before_step(self) -> None:
        """Log the beginning of a phase, and the scalar."""
        if len(self._samplers) == 1:
            return
        phase = bisect_right(self._bounds, self.trainer.iter) - 1
        if phase != self._phase:
            self._phase, span = phase, (self._bounds[phase], self._bounds[phase + 1] - 1)
            numbers = (phase + 1, len(self._samplers), *span)
            logger.info("Phase %d of %d, iterations %d to %d: %s", *numbers, self._samplers[phase])
        self.trainer.storage.put_scalar("phase", phase + 1, smoothing_hint=False)

    def after_step(self) -> None:
        """Write the frequencies at the end of a phase."""
        if self.trainer.iter + 1 in self._bounds and comm.is_main_process():
            self._write(self.trainer.iter + 1)

    def _write(self, done: int) -> None:
        """Write the phases that are over by now."""
        if self._drawn is None:
            return
        dataset, sampler = self._drawn
        names = list(getattr(dataset, "class_ids", ()))
        index = ClassIndex.build(*labels_per_image(dataset), num_classes=len(names))
        names = names or [str(c) for c in range(len(index.counts))]
        phases = []
        for number, (begin, end) in enumerate(pairwise(self._bounds)):
            if end > done:
                break
            images = sampler.draw_counts(begin * self._batch_size, end * self._batch_size, len(dataset))
            phases.append(
                {
                    "phase": number + 1,
                    "sampler": self._samplers[number],
                    "first_iteration": begin,
                    "iterations": end - begin,
                    "images_drawn": int(images.sum()),
                    "distinct_images": int(np.count_nonzero(images)),
                    "drawn_by_class": draws_by_class(index, images).tolist(),
                }
            )
        last, drawn = phases[-1], np.array(phases[-1]["drawn_by_class"])[index.counts > 0]
        logger.info(
            "Drawn in %d iterations by %s: %d images, %d different ones; a class %d to %d times, %d of %d "
            "never",
            *(last["iterations"], last["sampler"], last["images_drawn"], last["distinct_images"]),
            *(drawn.min(initial=0), drawn.max(initial=0), np.count_nonzero(drawn == 0), len(drawn)),
        )
        path = os.path.join(self._output_dir, SAMPLED_CLASSES_FILE)
        try:
            write_json(path, {"class_ids": names, "images_by_class": index.counts.tolist(), "phases": phases})
        except OSError as error:  # training goes on
            logger.error("%s cannot be written: %s", path, error)


def draws_by_class(index: ClassIndex, draws: np.ndarray) -> np.ndarray:
    """Count how often an image with class c was drawn; an image counts for each of its classes.

    Args:
        index: which images contain which class.
        draws: (n,) how often each image was drawn.

    Returns:
        (C,) int64.
    """
    sums = np.concatenate([[0], np.cumsum(draws[index.images], dtype=np.int64)])
    return np.diff(sums[index.offsets])
