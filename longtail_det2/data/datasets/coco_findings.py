"""What is wrong or remarkable in a COCO-form file: collected entry by entry, told in one summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longtail_det2.utils.errors import DataError

_EXAMPLES = 3


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        title: what the entries have in common; their number follows.
        advice: what to do about it.
        option: argument of `prepare_coco` that lets such entries be left out ("skip"); "" if they cannot be.
        is_error: without that, no store is made.
    """

    title: str
    advice: str
    option: str = ""
    is_error: bool = True


KINDS = {
    "entry": Kind("entries that are malformed", "correct them"),
    "repeated_id": Kind("ids that occur more than once", "give each entry an id of its own"),
    "file_name": Kind("images without a usable file_name", "add the path below the image folder"),
    "size": Kind("images with a malformed size", "correct height and width, or leave both out"),
    "no_size": Kind("images without height and width", "add them, or give the image folder"),
    "unknown_image": Kind("annotations on images that the file does not list", "add the images"),
    "unknown_category": Kind(
        "labels with a category id that is not among the categories",
        "add the categories, or take the annotation ids of the same release",
        "on_unknown_category",
    ),
    "unknown_image_label": Kind(
        "verified classes with a category id that is not among the categories",
        "add the categories, or take the image entries of the same release",
        "on_unknown_category",
    ),
    "frequency": Kind(
        "categories whose frequency is not 'r', 'c' or 'f'",
        "correct them, or take others: --frequency images counts them here, none leaves them out",
    ),
    "bad_box": Kind(
        "labels with a malformed bbox", "it must be [x, y, width, height] in pixels", "on_bad_box"
    ),
    "empty_box": Kind("labels whose box has no area inside the image", "correct the boxes", "on_bad_box"),
    "bad_mask": Kind(
        "objects with a malformed or empty segmentation",
        "it must be a list of polygons [[x0, y0, x1, y1, ...], ...] in pixels, or run lengths of the image",
        "on_bad_mask",
    ),
    "mask_beside_box": Kind(
        "objects whose mask and box hardly overlap", "are both in pixels of this image?", is_error=False
    ),
    "bad_area": Kind(
        "annotations whose area is not a positive number",
        "that of the mask, or of the box, is taken; AP by size goes by it",
        is_error=False,
    ),
    "missing_image": Kind(
        "image files that are missing or unreadable", "complete the image folder", "on_missing_image"
    ),
    "other_size": Kind(
        "images whose files have another size than annotated",
        "annotate the files as they are, upright as EXIF says",
        "on_size_mismatch",
    ),
    "clipped_box": Kind(
        "boxes that reach out of their image by more than a pixel",
        "they are cut at the border",
        is_error=False,
    ),
    "corner_boxes": Kind(
        "boxes that reach out of their image by more than a pixel, over a quarter of all",
        "are they [x0, y0, x1, y1]? COCO's are [x, y, width, height]",
        is_error=False,
    ),
    "share_boxes": Kind(
        "boxes that lie in the first pixel, over half of all",
        "are they shares of the image? COCO's are in pixels",
        is_error=False,
    ),
    "same_file": Kind(
        "images with the file name of another image",
        "each is trained on without the boxes of the other: give them one id",
        is_error=False,
    ),
    "same_name": Kind(
        "categories with the name of another category", "is the list of categories right?", is_error=False
    ),
    "contradiction": Kind(
        "classes that are verified as absent from an image and are in it too",
        "training takes them as present; correct neg_category_ids",
        is_error=False,
    ),
    "no_frequency": Kind(
        "classes without one of LVIS's groups (rare, common, frequent)",
        "LVIS's AP of each group needs them: --frequency images counts the images of a training file, "
        "--frequency STORE takes those of the training split's store",
        is_error=False,
    ),
    "added_class": Kind(
        "classes that only the hierarchy names",
        "objects of the categories below them bear them too; misspelt parents show here",
        is_error=False,
    ),
    "no_folder": Kind(
        "image folder is missing", "the store will do for statistics, not for training", is_error=False
    ),
    "unused_class": Kind(
        "classes without objects", "a detector cannot learn them from these data", is_error=False
    ),
    "empty_image": Kind("images without objects", "training leaves them out", is_error=False),
}


@dataclass
class Found:
    """Entries of one kind: how many, the first in words, what they were counted by, a guess at the cause."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    values: Counter[str] = field(default_factory=Counter)
    hint: str = ""


class CocoFindings:
    """Findings about one file, in the order of their discovery.

    Attributes:
        path: of the file.
        skipped: names of the options (`Kind.option`) that are set to "skip".
        found: {name in KINDS: entries}.
    """

    def __init__(self, path: Path, skipped: Collection[str] = ()) -> None:
        self.path = path
        self.skipped = frozenset(skipped)
        self.found: dict[str, Found] = {}

    def add(self, kind: str, example: str, value: str | None = None, count: int = 1) -> None:
        """Notes entries of a kind.

        Args:
            kind: a name in `KINDS`.
            example: what is wrong with the (first) one, in words that name it.
            value: counted, and listed by how often it occurs.
            count: number of entries.
        """
        one = self.found.setdefault(kind, Found())
        one.count += count
        if len(one.examples) < _EXAMPLES:
            one.examples.append(example)
        if value is not None:
            one.values[value] += count

    def hint(self, kind: str, words: str) -> None:
        """What may be the cause of all findings of a kind; told before they are."""
        if words:
            self.found.setdefault(kind, Found()).hint = words

    def count(self, kind: str) -> int:
        """Number of entries of a kind."""
        return self.found[kind].count if kind in self.found else 0

    def is_error(self, kind: str) -> bool:
        """Whether such entries keep the store from being made."""
        return KINDS[kind].is_error and KINDS[kind].option not in self.skipped

    @property
    def errors(self) -> dict[str, Found]:
        """The findings that keep the store from being made."""
        return {kind: one for kind, one in self.found.items() if self.is_error(kind)}

    def raise_errors(self) -> None:
        """Raises one DataError in one line: the first entry in words, how many, what to do, what else."""
        errors = self.errors
        if not errors:
            return
        kind, first = next(iter(errors.items()))
        message = f"{self.path}: {first.examples[0]}"
        if first.count > 1:
            message += f" ({first.count} {KINDS[kind].title}{_values(first.values)})"
        message += f"; {first.hint or _advice(KINDS[kind])}"
        others = [f"{KINDS[other].title} ({one.count})" for other, one in errors.items() if other != kind]
        if others:
            message += f". Further errors: {'; '.join(others)}"
        raise DataError(message)

    def lines(self) -> list[str]:
        """The findings for people: errors first, then what was left out, then warnings."""
        blocks: Mapping[str, list[str]] = {"ERRORS": [], "LEFT OUT": [], "WARNINGS": []}
        for kind, one in self.found.items():
            severity = "WARNINGS"
            if KINDS[kind].is_error:
                severity = "ERRORS" if self.is_error(kind) else "LEFT OUT"
            block = blocks[severity]
            block.append(f"  {KINDS[kind].title} ({one.count}){_values(one.values)}")
            block += [f"      {example}" for example in one.examples]
            if len(one.examples) == _EXAMPLES < one.count:
                block.append("      ...")
            if severity != "LEFT OUT":
                block.append(f"      -> {_advice(KINDS[kind])}")
            if one.hint:
                block.append(f"      -> {one.hint}")
        return [line for title, block in blocks.items() if block for line in (title, *block)]


def _advice(kind: Kind) -> str:
    if not kind.option:
        return kind.advice
    return f"{kind.advice}, or leave them out: --{kind.option.replace('_', '-')} skip"


def _values(values: Counter[str], most: int = 8) -> str:
    if not values:
        return ""
    words = [f"{value} ({count})" if count > 1 else value for value, count in values.most_common(most)]
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f": {', '.join(words)}{more}"
