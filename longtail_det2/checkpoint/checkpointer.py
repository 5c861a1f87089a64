"""A checkpointer that refuses weights of other classes and writes files atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from longtail_det2.model_zoo.weights import read_weights
from longtail_det2.utils.errors import ConfigError

CLASS_IDS_KEY = "class_ids"
"""Where a checkpoint keeps the identifiers of the classes that its weights are for."""

_RESET_HINT = (
    "To start from these weights on purpose, with a new predictor: MODEL.RESET_WEIGHTS "
    "roi_heads.box_predictor (in a lazy config train.reset_weights=[roi_heads.box_predictor])"
)


_Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name of a parameter, its shape in the checkpoint and in the model."""


class ClassAwareCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with three differences.

    A checkpoint carries its class identifiers; weights whose shapes differ from the model's, or whose classes
    do, are an error instead of a warning, unless those weights are reset on purpose; and a file appears under
    its name only when it is complete.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_ids: Sequence[str] = (),
        reset_weights: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Prepares saving and loading; touches no file.

        Args:
            model: may be wrapped for distributed training.
            save_dir: folder of the checkpoints.
            class_ids: classes of the model in index order; () checks and saves none.
            reset_weights: parameters whose names begin with one of these are not loaded by :meth:`load` (they
                are when training resumes).
            kwargs: see Detectron2; further objects with state, saved and loaded along.
        """
        super().__init__(model, save_dir, **kwargs)
        self.class_ids = list(class_ids)
        self.reset_weights = tuple(reset_weights)
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<name>.pth`` and points ``last_checkpoint`` at it.

        Raises:
            OSError: the disk is full or the folder cannot be written; an older file of that name stays whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict(), CLASS_IDS_KEY: self.class_ids}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with _replacing(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes a file of the folder the one that training resumes from."""
        with _replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """The newest checkpoint of the folder if `resume` and there is one, else the weights at `path`."""
        self._resuming = resume and self.has_checkpoint()
        try:
            loaded: dict[str, Any] = super().resume_or_load(path, resume=resume)
            return loaded
        finally:
            self._resuming = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint; see Detectron2.

        Raises:
            ConfigError: the file does not exist, or its weights are of other classes or shapes.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise ConfigError(f"MODEL.WEIGHTS: there is no checkpoint {path}")
        self._path = path
        extra: dict[str, Any] = super().load(path, checkpointables)
        return extra

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            return read_weights(filename).as_checkpoint()
        loaded: dict[str, Any] = super()._load_file(filename)
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        reset = () if self._resuming else self.reset_weights
        weights = checkpoint["model"]
        skipped = (
            [name for name in weights if name.removeprefix("module.").startswith(reset)] if reset else []
        )
        for name in skipped:
            del weights[name]
        if skipped:
            self.logger.info("Not loaded, starting afresh: %s", ", ".join(skipped))
        class_ids = checkpoint.get(CLASS_IDS_KEY)
        self._check_shapes(weights, class_ids)
        if not skipped:
            self._check_classes(class_ids)
        return super()._load_model(checkpoint)

    def _check_shapes(self, weights: Mapping[str, Any], class_ids: Sequence[str] | None) -> None:
        own = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        wrong = [
            (name, tuple(value.shape), own[name.removeprefix("module.")])
            for name, value in weights.items()
            if own.get(name.removeprefix("module."), tuple(value.shape)) != tuple(value.shape)
        ]
        if not wrong:
            return
        lines = [
            f"  {name}: {found} in the checkpoint, {wanted} in the model" for name, found, wanted in wrong
        ]
        raise ConfigError(
            f"{self._path} does not fit the model{self._class_counts(class_ids, wrong)}:\n"
            + "\n".join(lines)
            + f"\n{_RESET_HINT}"
        )

    def _class_counts(self, class_ids: Sequence[str] | None, wrong: Sequence[_Mismatch]) -> str:
        """The two numbers of classes, or of logits where the checkpoint does not know its classes."""
        if class_ids and self.class_ids and len(class_ids) != len(self.class_ids):
            return f": it is for {len(class_ids)} classes, the model for {len(self.class_ids)}"
        for name, found, wanted in wrong:
            if name.endswith("cls_score.weight"):
                return f": its classifier has {found[0]} logits, the model's {wanted[0]}"
        return ""

    def _check_classes(self, class_ids: Sequence[str] | None) -> None:
        if not class_ids or not self.class_ids:
            return
        for index, (found, wanted) in enumerate(zip(class_ids, self.class_ids, strict=False)):
            if found != wanted:
                raise ConfigError(
                    f"{self._path} is for other classes: class {index} is {found!r} there and {wanted!r} "
                    f"in the data set.\n{_RESET_HINT}"
                )


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` when it is complete, and vanishes if it never is."""
    temporary = f"{path}.partial-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
