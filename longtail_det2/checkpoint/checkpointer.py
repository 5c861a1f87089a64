"""A checkpointer that refuses weights of other classes, writes files atomically and survives damaged ones."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import nn

from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer
from longtail_det2.utils.wording import pluralize

from .files import LAST_CHECKPOINT, CheckpointError, read_checkpoint, remove_partial_files, resume_candidates
from .weights import TRAINING_ONLY_KEY, read_weights, training_only_parts

CLASS_IDS_KEY = "class_ids"
"""Where a checkpoint keeps the identifiers of the classes that its weights are for."""

_RESET_HINT = (
    "To start from these weights on purpose, with a new predictor: MODEL.RESET_WEIGHTS "
    "roi_heads.box_predictor (in a lazy config train.reset_weights=[roi_heads.box_predictor])"
)
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class ClassAwareCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with these differences.

    A checkpoint carries its class identifiers; weights whose shapes differ from the model's, or whose classes
    do, are an error instead of a warning, unless those weights are reset on purpose; a file appears under its
    name only when it is complete; training resumes from the newest checkpoint that can be read; and no file
    can run code.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_ids: Sequence[str] = (),
        reset_weights: Sequence[str] = (),
        complete: bool = False,
        **kwargs: Any,
    ) -> None:
        """Prepare saving and loading; touch no file.

        Args:
            model: may be wrapped for distributed training.
            save_dir: folder of the checkpoints.
            class_ids: classes of the model in index order; () checks and saves none.
            reset_weights: parameters whose names begin with one of these are not loaded by :meth:`load` (they
                are when training resumes).
            complete: weights that lack a parameter of the model are an error, except those that only training
                needs.
            kwargs: see Detectron2; further objects with state, saved and loaded along.
        """
        super().__init__(model, save_dir, **kwargs)
        self.class_ids = list(class_ids)
        self.reset_weights = tuple(reset_weights)
        self.complete = complete
        self._resuming = False
        self._path = ""
        self._read: dict[str, Any] = {}

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and point ``last_checkpoint`` at it.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; older files stay whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict(), CLASS_IDS_KEY: self.class_ids}
        if parts := training_only_parts(self.model):
            data[TRAINING_ONLY_KEY] = list(parts)
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with self._written(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of the folder the one that training resumes from."""
        with self._written(os.path.join(self.save_dir, LAST_CHECKPOINT)) as file:
            file.write(last_filename_basename.encode())

    @contextmanager
    def _written(self, path: str) -> Iterator[IO[bytes]]:
        try:
            with atomic_writer(path, "wb") as file:
                yield file
        except (OSError, RuntimeError) as error:
            # PyTorch's archive writer may report the operating system's error as one of its own.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise CheckpointError(
                f"{path} cannot be written: {cause.strerror or cause}. Older checkpoints are intact. Make "
                "room or permissions for the folder (OUTPUT_DIR, or train.output_dir) and go on with --resume"
            ) from error

    def has_checkpoint(self) -> bool:
        """Return whether the folder holds something to resume from."""
        return bool(self.save_dir) and bool(resume_candidates(self.save_dir))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest readable checkpoint of the folder if `resume`, else the weights at `path`.

        A damaged checkpoint is named in a warning, and the one before it is taken. Without any, `path` is.

        Raises:
            CheckpointError: there are checkpoints, but none can be read, or processes see different ones.
            ConfigError: see :meth:`load`.
        """
        if self.save_dir and self.save_to_disk:
            remove_partial_files(self.save_dir)
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        self._resuming = True
        try:
            return self.load(self._read_newest())
        finally:
            self._resuming = False
            self._read = {}

    def _read_newest(self) -> str:
        """The path of the newest readable checkpoint, its content kept for :meth:`load`."""
        candidates = resume_candidates(self.save_dir)
        chosen = ""
        for candidate in candidates:
            try:
                self._read = {candidate: read_checkpoint(candidate)}
                chosen = candidate
                break
            except CheckpointError as error:
                self.logger.warning(
                    "Cannot resume from the newest checkpoint, trying the one before: %s", error
                )
        names = comm.all_gather(os.path.basename(chosen))
        if len(set(names)) > 1:
            raise CheckpointError(
                f"the processes would resume from different checkpoints of {self.save_dir}: {names}. Each "
                "machine needs the same files there"
            )
        if not chosen:
            raise CheckpointError(
                f"none of the checkpoints of {self.save_dir} can be read ({len(candidates)} tried, see the "
                "warnings): remove them to start again, or leave --resume out"
            )
        return chosen

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see Detectron2.

        Raises:
            ConfigError: the file does not exist or cannot be fetched, is damaged, holds more than weights, or
                its weights are of other classes, shapes or another model.
        """
        self._path = path
        if "://" in path:
            try:
                path = self.path_manager.get_local_path(path)
            except Exception as error:  # of whichever library fetches it
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise ConfigError(
                    f"MODEL.WEIGHTS: {path} cannot be fetched ({reason}). Fetch it on a machine with network "
                    'and name the file, or start from random weights with MODEL.WEIGHTS ""'
                ) from error
        elif path and not os.path.isfile(path):
            raise ConfigError(f"MODEL.WEIGHTS: there is no checkpoint {path}")
        extra: dict[str, Any] = super().load(path, checkpointables)
        return extra

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename in self._read:
            return self._read.pop(filename)
        if filename.endswith(".safetensors"):
            return read_weights(filename).as_checkpoint()
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        reset = () if self._resuming else self.reset_weights
        weights = checkpoint["model"]
        skipped = [name for name in weights if name.removeprefix("module.").startswith(reset)]
        for name in skipped:
            del weights[name]
        if skipped:
            self.logger.info("Not loaded, starting afresh: %s", ", ".join(skipped))
        class_ids = checkpoint.get(CLASS_IDS_KEY)
        self._check_shapes(weights, class_ids)
        if not skipped:
            self._check_classes(class_ids)
        num_found = len(weights)
        incompatible = super()._load_model(checkpoint)
        self._check_coverage(num_found, set(incompatible.missing_keys))
        return incompatible

    def _check_coverage(self, num_found: int, missing: set[str]) -> None:
        """Refuse weights of which none fits the model, and, if asked, those that are not all of it."""
        own = [name for name, _ in self.model.named_parameters()]
        lacking = [name for name in own if name in missing]
        if own and len(lacking) == len(own):
            raise ConfigError(
                f"{self._path} has no weights of this model: none of its {pluralize(num_found, 'name')} is "
                f"one of the model's, such as {own[0]}. It is of another model, or of another library"
            )
        lacking = [name for name in lacking if not name.startswith(training_only_parts(self.model))]
        if self.complete and lacking:
            raise ConfigError(
                f"{self._path} lacks {len(lacking)} parameters of the model, such as {lacking[0]}, so "
                "that random ones would be evaluated. Name the weights of a trained detector"
            )

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
        counts = ""
        if class_ids and self.class_ids and len(class_ids) != len(self.class_ids):
            counts = f": it is for {pluralize(len(class_ids), 'class', 'classes')}, the model for "
            counts += str(len(self.class_ids))
        raise ConfigError("\n".join([f"{self._path} does not fit the model{counts}:", *lines, _RESET_HINT]))

    def _check_classes(self, class_ids: Sequence[str] | None) -> None:
        if not class_ids or not self.class_ids:
            return
        for index, (found, wanted) in enumerate(zip(class_ids, self.class_ids, strict=False)):
            if found != wanted:
                raise ConfigError(
                    f"{self._path} is for other classes: class {index} is {found!r} there and {wanted!r} "
                    f"in the data set.\n{_RESET_HINT}"
                )


class PeriodicCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also removes old checkpoints that the run wrote before it was resumed.

    ``model_final.pth`` is always kept. A run that begins again in a used folder leaves what is there.
    """

    def __init__(self, checkpointer: ClassAwareCheckpointer, period: int, max_to_keep: int = 0) -> None:
        """Check the numbers; touch no file.

        Args:
            checkpointer: of the run's folder.
            period: iterations between checkpoints.
            max_to_keep: older checkpoints are removed; 0 keeps all.

        Raises:
            ConfigError: a number is out of range.
        """
        for key, lazy_key, value, least in (
            ("SOLVER.CHECKPOINT_PERIOD", "period", period, 1),
            ("SOLVER.CHECKPOINT_MAX_TO_KEEP", "max_to_keep", max_to_keep, 0),
        ):
            if value < least:
                raise ConfigError(
                    f"{key} (train.checkpointer.{lazy_key} in a lazy config) is {value}; it must be at least "
                    f"{least}"
                )
        super().__init__(checkpointer, period, max_to_keep=max_to_keep or None)

    def before_train(self) -> None:
        """Remove a resumed run's checkpoints that are too many, or of iterations that will be done again."""
        super().before_train()
        start, folder = self.trainer.start_iter, self.checkpointer.save_dir
        if not start or self.max_to_keep is None:
            return
        found = {
            int(match[1]): match[0] for name in os.listdir(folder) if (match := _NUMBERED.fullmatch(name))
        }
        kept = sorted(iteration for iteration in found if iteration < start)[-self.max_to_keep :]
        for iteration, name in found.items():
            if iteration not in kept:
                os.remove(os.path.join(folder, name))
        self.recent_checkpoints = [os.path.join(folder, found[iteration]) for iteration in kept]
