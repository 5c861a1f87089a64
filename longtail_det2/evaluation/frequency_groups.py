"""Head, medium and tail: classes grouped by how often they were seen in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtail_det2.utils.errors import ConfigError

FREQUENCY_GROUPS = ("head", "medium", "tail")
"""Names of the groups; `split_by_frequency` answers with indices into them."""


def split_by_frequency(counts: np.ndarray, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Groups classes by their number of training images.

    Args:
        counts: (n,) training images >= 0 of each class.
        thresholds: None or empty: thirds of the classes, the most frequent third being the head (where n is
            no multiple of 3, head and then medium get the extra class; equal counts are ordered by class
            index). Or (low, high) with low <= high: count <= low is tail, count > high is head; LVIS's
            rare/common/frequent are (10, 100). Classes without training images are tail in any case.

    Returns:
        (n,) int64: 0 head, 1 medium, 2 tail.

    Raises:
        ConfigError: counts that are no 1-D array of numbers >= 0, or thresholds that are no ordered pair.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not (counts >= 0).all():
        raise ConfigError(f"counts must be a 1-D array of numbers >= 0, got shape {counts.shape}")
    if thresholds is None or len(thresholds) == 0:
        groups = np.empty(len(counts), dtype=np.int64)
        for group, members in enumerate(np.array_split(np.argsort(-counts, kind="stable"), 3)):
            groups[members] = group
    else:
        if len(thresholds) != 2 or not thresholds[0] <= thresholds[1]:
            raise ConfigError(f"thresholds must be (low, high) with low <= high, got {tuple(thresholds)}")
        low, high = thresholds
        groups = np.where(counts > high, 0, np.where(counts > low, 1, 2))
    groups[counts == 0] = 2
    return groups
