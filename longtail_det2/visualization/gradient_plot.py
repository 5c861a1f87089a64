"""The plot of the gradients that a classifier got: the ratio of raising to lowering, class by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longtail_det2.data.datasets.coco import frequency_letters
from longtail_det2.data.store_writer import FREQUENCIES
from longtail_det2.engine.gradient_log import CLASS_GRADIENTS_FILE
from longtail_det2.engine.sampling_log import SAMPLED_CLASSES_FILE
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json

from .style import COLORS, MARKERS, MUTED, log_scale, plot_figure

_SMOOTHED = 9  # classes of neighbouring frequency, in each run, whose median is the line


class GradientRatios(NamedTuple):
    """What one training gave each of K classes."""

    name: str  # folder of the run
    class_ids: list[str]
    images: np.ndarray  # (K,) training images with the class
    ratio: (
        np.ndarray
    )  # (K,) positive by negative gradient of all predictors together; NaN where there was none


def read_gradients(run: Path) -> GradientRatios:
    """Read what a run left in its output folder.

    Args:
        run: folder with class_gradients.json and sampled_classes.json.

    Raises:
        DataError: a file is absent or damaged, or they are of different classes.
    """
    advice = "train with MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS True to the end"
    gradients, sampled = (
        read_json(run / name, advice) for name in (CLASS_GRADIENTS_FILE, SAMPLED_CLASSES_FILE)
    )
    try:
        ids, images = list(gradients["class_ids"]), np.array(sampled["images_by_class"], dtype=np.int64)
        parts = [[one["positive"], one["negative"]] for one in gradients["predictors"].values()]
        positive, negative = np.array(parts, dtype=np.float64).sum(axis=0)
        same = list(sampled["class_ids"]) == ids
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = run / CLASS_GRADIENTS_FILE
        raise DataError(f"{file}: not what a training writes ({error}): {advice}") from None
    if not same or not len(positive) == len(images) == len(ids):
        raise DataError(
            f"{run}: {CLASS_GRADIENTS_FILE} and {SAMPLED_CLASSES_FILE} are of different classes: {advice}"
        )
    known = (negative > 0) & (positive > 0)
    ratio = np.divide(positive, negative, out=np.full(len(ids), np.nan), where=known)
    return GradientRatios(str(run), ids, images, ratio)


def ratios_of_groups(runs: Sequence[GradientRatios]) -> tuple[float, float, float]:
    """Return the geometric mean of the ratios of rare, common and frequent classes; NaN without classes.

    Args:
        runs: at least one; classes may have other frequencies in each. Thresholds are LVIS's.
    """
    images, ratio = _pooled(runs)
    group = np.array(frequency_letters(images))
    means = [np.log(ratio[group == one]) for one in FREQUENCIES]
    rare, common, frequent = (float(np.exp(one.mean())) if len(one) else math.nan for one in means)
    return rare, common, frequent


def draw_gradients(path: Path, methods: Mapping[str, Sequence[GradientRatios]]) -> None:
    """Draw the ratio of positive to negative gradient of each class against its training images.

    A dot is a class of one run, a line the running median over classes of neighbouring frequency. Classes
    without training images, or that were never a positive, are not drawn.

    Args:
        path: .png or .svg file, written atomically.
        methods: runs, at least one, by what to call them; all of the same classes.

    Raises:
        DataError: the runs are of different classes, or the file cannot be written.
    """
    first, *others = (run for runs in methods.values() for run in runs)
    for run in others:
        if run.class_ids != first.class_ids:
            raise DataError(f"{run.name} is of other classes than {first.name}: draw them by themselves")
    with plot_figure(7.2, 4.4, path) as figure:
        axes = figure.subplots()
        for place, (label, runs) in enumerate(methods.items()):
            images, ratio = _pooled(runs)
            color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
            alpha = max(0.45 / len(runs) ** 0.5, 0.15)
            axes.plot(images, ratio, marker, color=color, markersize=3.5, alpha=alpha, markeredgewidth=0)
            line = _running_median(ratio, _SMOOTHED * len(runs))
            axes.plot(images, line, color=color, linewidth=1.8, label=label)
        for which in ("x", "y"):
            log_scale(axes, which)
        axes.axhline(1, color=MUTED, linewidth=0.8)
        axes.set_xlabel("training images of the class (logarithmic)")
        axes.set_ylabel("raising / lowering gradient (logarithmic)")
        axes.set_title("Gradients of the classes' logits, summed over training")
        figure.legend(loc="outside lower center", ncols=3)


def _pooled(runs: Sequence[GradientRatios]) -> tuple[np.ndarray, np.ndarray]:
    """Images and ratios of the classes of all runs that have both, in ascending order of images."""
    images, ratio = (np.concatenate([getattr(run, name) for run in runs]) for name in ("images", "ratio"))
    shown = np.flatnonzero((images > 0) & np.isfinite(ratio))
    shown = shown[np.argsort(images[shown], kind="stable")]
    return images[shown], ratio[shown]


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
