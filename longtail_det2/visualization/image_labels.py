"""Labels of whole images, written below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .plots import COLORS, INK

MISSED, WRONG, RIGHT, UNKNOWN = COLORS[1], COLORS[2], COLORS[3], COLORS[5]
"""Colours of labels that are compared with the truth; unknown where that says nothing."""
Label = tuple[str, str]
"""Text and colour."""


def add_labels(pixels: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 RGB, with labels in rows on white below it; (H', W, 3)."""
    width = pixels.shape[1]
    size = max(width // 30, 15)
    font, step, gap = ImageFont.truetype(findfont("DejaVu Sans"), size), size * 3 // 2, size // 2
    places: list[tuple[float, float]] = []
    x, y = float(gap), gap
    for text, _ in labels:
        length = font.getlength(text)
        if x > gap and x + length > width - gap:
            x, y = float(gap), y + step
        places.append((x, y))
        x += length + 2 * gap
    panel = Image.new("RGB", (width, y + step + gap // 2), "white")
    for place, (text, color) in zip(places, labels, strict=True):
        ImageDraw.Draw(panel).text(place, text, fill=color, font=font)
    return np.vstack([pixels, np.asarray(panel)])


def scored_labels(names: Sequence[str], classes: Sequence[int], scores: Sequence[float]) -> list[Label]:
    """Return predicted classes with their scores in percent."""
    shown = zip(classes, scores, strict=True)
    return [(f"{names[label]} {100 * score:.0f}%", INK) for label, score in shown] or [("no label", UNKNOWN)]
