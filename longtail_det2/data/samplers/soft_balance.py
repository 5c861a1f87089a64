"""Soft-balance and class-aware sampling: a class is drawn first, then one of its images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from longtail_det2.data.datasets.dataset import labels_per_image
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.samplers.base import SAMPLER_REGISTRY, TrainingSampler
from longtail_det2.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 16
"""Draws are independent, so an epoch is any fixed number of them; a small one makes `start` cheap."""


@dataclass(frozen=True)
class ClassIndex:
    """Distinct (class, image) pairs, class by class.

    Attributes:
        offsets: (C + 1,) int64; class c is in the images `images[offsets[c]:offsets[c + 1]]`. C is one more
            than the highest class that occurs, or `num_classes`.
        images: int32 image positions, ascending within a class.
        with_ancestors: an image with a class also has its ancestors.
    """

    offsets: np.ndarray
    images: np.ndarray
    with_ancestors: bool = False

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, images per class."""
        return np.diff(self.offsets)

    @staticmethod
    def build(label_offsets: np.ndarray, labels: np.ndarray, num_classes: int = 0) -> ClassIndex:
        """Sort the pairs.

        Args:
            label_offsets: (n + 1,); image i has `labels[label_offsets[i]:label_offsets[i + 1]]`.
            labels: class indices, which may repeat within an image.
            num_classes: lower bound of the number of classes C.
        """
        labels = labels[label_offsets[0] : label_offsets[-1]]
        num_images = len(label_offsets) - 1
        images = np.repeat(np.arange(num_images, dtype=np.int32), np.diff(label_offsets))
        highest = int(labels.max()) + 1 if len(labels) else 0
        return ClassIndex(*_sorted_pairs(images, labels, num_images, max(num_classes, highest)))

    def expanded(self, hierarchy: LabelHierarchy) -> ClassIndex:
        """The same images with the ancestors of their classes too; `hierarchy` is that of all classes."""
        classes = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        images, classes = hierarchy.expand(self.images, classes)
        num_images = int(images.max()) + 1 if len(images) else 0
        pairs = _sorted_pairs(images, classes, num_images, hierarchy.num_classes)
        return ClassIndex(*pairs, with_ancestors=True)


def _sorted_pairs(
    images: np.ndarray, classes: np.ndarray, num_images: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """`offsets` and `images` of an index, from pairs in any order, which may repeat."""
    # One integer per pair, so that one sort groups and de-duplicates; 32 bits sort twice as fast.
    dtype = np.int32 if num_classes * num_images < 2**31 else np.int64
    keys = classes.astype(dtype)
    keys *= dtype(num_images)
    keys += images
    keys.sort()
    keys = keys[np.diff(keys, prepend=dtype(-1)) > 0]
    offsets = np.searchsorted(keys, np.arange(num_classes + 1, dtype=np.int64) * num_images)
    return offsets, (keys % max(num_images, 1)).astype(np.int32)


def soft_balance_probabilities(counts: np.ndarray, lambda_: float) -> np.ndarray:
    """How often each class is drawn.

    P_s(c) is proportional to P_n(c)^(1 - lambda) P_b(c)^lambda with P_n(c) = N_c / sum_j N_j, the natural
    frequency, and P_b(c) = 1 / C, the balanced one: so to N_c^(1 - lambda).

    Args:
        counts: (C,) N_c, images that contain class c; at least one is positive.
        lambda_: in [0, 2].

    Returns:
        (C,) float64 with sum 1; classes without images have 0.
    """
    shares = np.zeros(len(counts))
    occurring = counts > 0
    shares[occurring] = counts[occurring].astype(np.float64) ** (1.0 - lambda_)
    return shares / shares.sum()


@SAMPLER_REGISTRY.register()
class SoftBalanceTrainingSampler(TrainingSampler):
    """Draws a class with probability P_s, then one of its images uniformly (Peng et al., CVPR 2020).

    An image is drawn with probability sum_c P_s(c) / N_c over its distinct classes, proportional to
    sum_c N_c^(-lambda). lambda = 0 draws classes as often as images have them, which is not uniform sampling:
    an image counts once per class. lambda = 1 draws all classes equally often
    (`ClassAwareTrainingSampler`), lambda > 1 rare classes more often than frequent ones. Classes without
    images are never drawn, nor are images without objects.

    Labels count as annotated, so that an inner class has only the images that show it without a more specific
    label; with `ancestors`, the images of its descendants are its own too.

    Attributes:
        lambda_: in [0, 2].
    """

    def __init__(
        self, index: ClassIndex, seed: int, start: int = 0, *, lambda_: float = 0.7, **ranks: Any
    ) -> None:
        """For an index of images by class; a `lambda_` above 1 warns, the rest as in `TrainingSampler`.

        Raises:
            ConfigError: `lambda_` is out of range.
            DataError: no image has an object.
        """
        super().__init__(seed=seed, start=start, **ranks)
        number = isinstance(lambda_, (int, float)) and not isinstance(lambda_, bool)
        if not number or not 0 <= lambda_ <= 2:
            raise ConfigError(
                f"DATALOADER.SOFT_BALANCE.LAMBDA (lambda_) is {lambda_!r}; it must be a number from 0 "
                "(classes as in the data) over 1 (all equally often) to 2 (rare classes more often)"
            )
        if lambda_ > 1:
            logger.warning("lambda %g, above 1, draws rare classes more often than frequent ones", lambda_)
        self.lambda_ = float(lambda_)
        self._with_ancestors = index.with_ancestors
        occurring = np.flatnonzero(index.counts)
        if len(occurring) == 0:
            raise DataError(
                f"{type(self).__name__} needs objects, but no image of the training data set has one"
            )
        self._images = index.images
        self._first = index.offsets[occurring]
        self._counts = index.counts[occurring]
        self._probabilities = soft_balance_probabilities(self._counts, self.lambda_)

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, seed: int, start: int = 0, lambda_: float = 0.7, ancestors: bool = False
    ) -> Self:
        """Make the sampler for a dataset or a store; `ancestors` as in `index_classes`."""
        return cls(index_classes(dataset, ancestors), seed, start, lambda_=lambda_)

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """`lambda_` and `ancestors` from DATALOADER.SOFT_BALANCE."""
        keys = cfg.DATALOADER.SOFT_BALANCE
        return {"lambda_": keys.LAMBDA, "ancestors": keys.ANCESTORS}

    def epoch_size(self, epoch: int) -> int:
        """A fixed number of draws."""
        return _BLOCK

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Independent draws."""
        generator = self.generator(epoch)
        if self.lambda_ == 1:  # equal shares; also the stream that class-aware sampling has always had
            classes = generator.integers(0, len(self._counts), size=_BLOCK)
            return self._images[self._first[classes] + generator.integers(0, self._counts[classes])]
        # How often each class is drawn, then the images, then their order: the same distribution as one draw
        # after the other, twice as fast.
        times = generator.multinomial(_BLOCK, self._probabilities)
        within = generator.integers(0, np.repeat(self._counts, times))
        images = self._images[np.repeat(self._first, times) + within]
        generator.shuffle(images)
        return images

    def __repr__(self) -> str:
        ancestors = ", ancestors=True" if self._with_ancestors else ""
        return f"{type(self).__name__}(lambda_={self.lambda_:g}{ancestors})"


@SAMPLER_REGISTRY.register()
class ClassAwareTrainingSampler(SoftBalanceTrainingSampler):
    """Draws classes equally often, and images of a class equally often.

    Class-aware sampling of Shen et al., Relay Backpropagation, ECCV 2016. By default a class is drawn
    uniformly, then one of its images uniformly: soft-balance sampling with lambda = 1.

    With `num_samples_per_class` s it is the sampler of the released code of Distribution-Balanced loss (Wu et
    al. 2020): classes come in a shuffled order, a new one after each pass, and each brings the next s images
    of its own cycle, shuffled anew after each. An epoch has max_c N_c * C / `reduce` images, with C the
    number of classes with images, and is made at once, with some 70 bytes an image: choose a larger `reduce`
    where that is many millions. It is a function of (seed, epoch) alone, so that passes and cycles begin
    again with every epoch.

    Attributes:
        num_samples_per_class: s; 0: independent draws.
        reduce: divides the length of an epoch; not used by independent draws.
    """

    def __init__(
        self,
        index: ClassIndex,
        seed: int,
        start: int = 0,
        *,
        num_samples_per_class: int = 0,
        reduce: int = 4,
        **ranks: Any,
    ) -> None:
        """For an index of images by class; see `SoftBalanceTrainingSampler`.

        Raises:
            ConfigError: an option is out of range.
            DataError: no image has an object.
        """
        super().__init__(index, seed, start, lambda_=1.0, **ranks)
        for name, value, least in (
            ("num_samples_per_class", num_samples_per_class, 0),
            ("reduce", reduce, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                key = f"DATALOADER.CLASS_AWARE.{name.upper()} ({name})"
                raise ConfigError(f"{key} is {value!r}; it must be a whole number, at least {least}")
        self.num_samples_per_class, self.reduce = num_samples_per_class, reduce

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, seed: int, start: int = 0, num_samples_per_class: int = 0, reduce: int = 4
    ) -> Self:
        """Make the sampler for a dataset or an annotation store."""
        options = {"num_samples_per_class": num_samples_per_class, "reduce": reduce}
        return cls(index_classes(dataset), seed, start, **options)

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """`num_samples_per_class` and `reduce` from DATALOADER.CLASS_AWARE."""
        return {name.lower(): value for name, value in cfg.DATALOADER.CLASS_AWARE.items()}

    def epoch_size(self, epoch: int) -> int:
        """A fixed number of independent draws, or what `reduce` makes of the number of images."""
        if self.num_samples_per_class == 0:
            return super().epoch_size(epoch)
        return max(1, int(self._counts.max()) * len(self._counts) // self.reduce)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Independent draws, or passes through the classes."""
        if self.num_samples_per_class == 0:
            return super().epoch_indices(epoch)
        generator, size = self.generator(epoch), self.epoch_size(epoch)
        times, classes = self.num_samples_per_class, np.arange(len(self._counts))
        passes = -(-size // (len(classes) * times))
        # Whole cycles of each class, one after the other; random keys shuffle the images within a cycle.
        lengths = -(-passes * times // self._counts) * self._counts
        begins = np.cumsum(lengths) - lengths
        begin, count, first = (np.repeat(each, lengths) for each in (begins, self._counts, self._first))
        cycle = np.cumsum((np.arange(len(begin)) - begin) % count == 0)
        shuffled = np.lexsort((generator.random(len(begin)), cycle))
        images = self._images[first + (shuffled - begin) % count]
        # In each pass a class is visited once: its visit of pass p begins at place p * times of its images.
        orders = generator.permuted(np.tile(classes, (passes, 1)), axis=1)
        places = begins[orders] + times * np.arange(passes)[:, None]
        return images[(places[..., None] + np.arange(times)).ravel()[:size]]

    def __repr__(self) -> str:
        if self.num_samples_per_class == 0:
            return type(self).__name__
        options = f"num_samples_per_class={self.num_samples_per_class}, reduce={self.reduce}"
        return f"{type(self).__name__}({options})"


def index_classes(dataset: Any, ancestors: bool = False) -> ClassIndex:
    """Which images of a dataset contain which class; classes without images are named in the log.

    Args:
        dataset: anything that `labels_per_image` takes. Classes without images are known where it has
            `class_ids`.
        ancestors: images of a class are also images of its ancestors.

    Raises:
        ConfigError: ancestors are asked for and the dataset has no hierarchy.
    """
    names = getattr(dataset, "class_ids", ())
    index = ClassIndex.build(*labels_per_image(dataset), num_classes=len(names))
    if ancestors:
        if not hasattr(dataset, "hierarchy"):
            raise ConfigError(
                "DATALOADER.SOFT_BALANCE.ANCESTORS (ancestors) is set, but the training data are not "
                "an annotation store and have no hierarchy: leave it out, or make a store of them"
            )
        index = index.expanded(dataset.hierarchy)
    empty = np.flatnonzero(index.counts == 0)
    if names and 0 < len(empty) < len(names):
        logger.warning(
            "%d of %d classes have no image in the training data and are never drawn: %s",
            *(len(empty), len(names)),
            ", ".join([*(str(names[c]) for c in empty[:5]), *(["..."] if len(empty) > 5 else [])]),
        )
    return index
