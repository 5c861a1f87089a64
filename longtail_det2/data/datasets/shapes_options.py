"""Options of the shapes data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail_det2.data.datasets.shapes_vocabulary import MAX_LEAVES
from longtail_det2.utils.errors import ConfigError

FORMATS = ("openimages", "lvis", "coco")
IMAGE_FORMATS = ("jpg", "png")
LVIS_LABELS = ("leaf", "written")


@dataclass(frozen=True)
class ShapesOptions:
    """What to generate; together with the version of the generator it determines every byte.

    Attributes:
        train_images, validation_images: images of each split.
        image_size: side of the square images, px; objects scale with it.
        num_leaves: leaf classes, in [2, 60].
        imbalance: frequency of the most over that of the least frequent leaf in training, >= 1. Where the
            images are too few for it with `min_objects` of the rarest, the end of the curve is flat.
        min_objects: training objects that every leaf has at least, and whose annotation is correct.
        max_objects: an image has 1 to this many objects, uniformly.
        missing_leaf_rate, co_label_rate, confusion_rate, group_of_rate: fractions of the objects, in [0, 1].
        nested_rate: objects with another object inside, of the partner class and nearly as large, so that
            their boxes overlap with an IoU above 0.5; a fraction of the objects, those inside not counted.
        negatives_per_image: classes verified to be absent from each image; a number above that of the
            leaves verifies all that are absent.
        noisy_validation: missing and confused labels in validation, too.
        image_format: "jpg" (quality 95, full colour resolution) or "png".
        formats: annotation formats to write, of "openimages", "lvis" and "coco".
        lvis_thresholds: LVIS calls a class rare up to the first number of training images, common up to the
            second.
        lvis_labels: "leaf" gives each object one annotation in LVIS form, of its true leaf; "written" gives
            it the leaves that its annotators wrote, as in the other forms.
        not_exhaustive_rate: of the classes with several instances in an image, the fraction that LVIS form
            annotates only in part there.
        seed: a non-negative integer.
    """

    train_images: int = 3000
    validation_images: int = 500
    image_size: int = 128
    num_leaves: int = MAX_LEAVES
    imbalance: float = 300.0
    min_objects: int = 4
    max_objects: int = 7
    missing_leaf_rate: float = 0.1
    co_label_rate: float = 0.1
    confusion_rate: float = 0.02
    group_of_rate: float = 0.02
    nested_rate: float = 0.0
    negatives_per_image: int = 8
    noisy_validation: bool = False
    image_format: str = "jpg"
    formats: tuple[str, ...] = FORMATS
    lvis_thresholds: tuple[int, int] = (10, 100)
    lvis_labels: str = "leaf"
    not_exhaustive_rate: float = 0.0
    seed: int = 0

    def validate(self) -> None:
        """Checks each option by itself.

        Raises:
            ConfigError: naming the option, its value and what is allowed.
        """
        lowest = {
            "train_images": 1,
            "validation_images": 1,
            "image_size": 64,
            "num_leaves": 2,
            "imbalance": 1,
            "min_objects": 1,
            "max_objects": 1,
            "negatives_per_image": 0,
            "seed": 0,
        }
        for name, low in lowest.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in _RATES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not np.isfinite(self.imbalance):
            raise ConfigError(f"imbalance must be finite, got {self.imbalance}")
        if self.max_objects > 12:
            raise ConfigError(f"max_objects must be at most 12 (boxes would pile up), got {self.max_objects}")
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(f"image_format must be one of {IMAGE_FORMATS}, got {self.image_format!r}")
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ConfigError(f"formats must be some of {FORMATS}, got {self.formats}")
        if self.lvis_labels not in LVIS_LABELS:
            raise ConfigError(f"lvis_labels must be one of {LVIS_LABELS}, got {self.lvis_labels!r}")
        rare, common = self.lvis_thresholds
        if not 0 <= rare <= common:
            raise ConfigError(
                f"lvis_thresholds must be two numbers, 0 <= rare <= common, got {rare}, {common}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in generation.json.

        Options that came later are left out where they change nothing, so that the data sets (and results)
        that were made before still count as made with the same options.
        """
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.nested_rate:
            del values["nested_rate"]
        if "lvis" not in self.formats:
            del values["lvis_labels"], values["not_exhaustive_rate"]
        return values


_RATES = (
    "missing_leaf_rate",
    "co_label_rate",
    "confusion_rate",
    "group_of_rate",
    "nested_rate",
    "not_exhaustive_rate",
)
