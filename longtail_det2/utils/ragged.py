"""Ragged rows: lists of different lengths, stored as one flat array and offsets."""

from __future__ import annotations

import numpy as np


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Offsets of rows with the given lengths: (n + 1,) int64, ascending from 0."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def gather_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the values of some rows, one row after the other.

    Args:
        offsets: (n + 1,) integers; row i holds the values [offsets[i], offsets[i + 1]).
        rows: (m,) row indices in any order, repeated ones allowed.

    Returns:
        positions (v,) int64 into the flat values, and the offsets (m + 1,) int64 of the gathered rows.
    """
    starts = np.asarray(offsets[:-1], dtype=np.int64)[rows]
    counts = np.asarray(offsets[1:], dtype=np.int64)[rows] - starts
    gathered = offsets_of(counts)
    return np.repeat(starts - gathered[:-1], counts) + np.arange(gathered[-1]), gathered


def places_in_runs(values: np.ndarray) -> np.ndarray:
    """(n,) place, from 0, of each of n sorted integers >= 0 among its equals."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
