"""Hierarchy files for COCO-form data: by category names or ids, with parents that are no categories."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from longtail_det2.data.datasets.coco_json import is_usable_text
from longtail_det2.data.hierarchy import (
    HierarchyError,
    LabelHierarchy,
    ParsedHierarchy,
    parents_first,
    read_parents,
)

Unlisted = Literal["add", "contract", "error"]


def read_coco_hierarchy(
    path: Path,
    class_ids: Sequence[str],
    class_names: Sequence[str],
    unlisted: Unlisted = "add",
    missing: Literal["error", "root"] = "error",
) -> tuple[LabelHierarchy, list[str]]:
    """A hierarchy file that names the classes by their ids or by their names.

    It is read by names if more of its labels are names than ids.

    Args:
        path: `{"child": ["parent", ...]}` or an Open Images tree.
        class_ids: of the K categories.
        class_names: their names.
        unlisted: what to do about labels that are no categories: "add" makes classes of those that are above
            a category (any other is an error), "contract" leaves all of them out, "error" refuses them.
        missing: what to do about categories that a tree does not contain: "root" gives them no parents.

    Returns:
        The hierarchy of the categories followed by the added classes; ids, which are the names, of those.

    Raises:
        HierarchyError: the file does not fit the classes, or names that it uses are not distinct.
    """
    parsed = _by_id(path, read_parents(path), class_ids, class_names)
    added = _parents_to_add(path, parsed, class_ids, class_names) if unlisted == "add" else []
    policy = "error" if unlisted == "add" else unlisted
    tree = LabelHierarchy.from_parsed(parsed, [*class_ids, *added], policy, missing, str(path))
    return tree, added


def _by_id(
    path: Path, parsed: ParsedHierarchy, class_ids: Sequence[str], class_names: Sequence[str]
) -> ParsedHierarchy:
    labels = set(parsed.parents)
    if len(labels & set(class_names)) <= len(labels & set(class_ids)):
        return parsed
    twice = {name for place, name in enumerate(class_names) if name in class_names[:place]}
    if labels & twice:
        raise HierarchyError(
            f"{path}: several categories are called {min(labels & twice)!r}; use category ids instead"
        )
    ids = dict(zip(class_names, class_ids, strict=True))
    # A label that is no name must not be taken for the id that it may happen to equal.
    ids.update({label: f"{label} (no name)" if label in class_ids else label for label in labels - set(ids)})
    return ParsedHierarchy(
        {ids[label]: [ids[parent] for parent in above] for label, above in parsed.parents.items()},
        root=None if parsed.root is None else ids[parsed.root],
    )


def _parents_to_add(
    path: Path, parsed: ParsedHierarchy, class_ids: Sequence[str], class_names: Sequence[str]
) -> list[str]:
    """Labels that are no categories, but above one, in the order of the file."""
    try:
        order = parents_first(parsed.parents)
    except HierarchyError as error:
        raise HierarchyError(f"{path}: {error}") from None
    above = set(class_ids)
    for label in reversed(order):  # children first
        if label in above:
            above.update(parsed.parents[label])
    lost = [label for label in parsed.parents if label not in above and label != parsed.root]
    if lost:
        close = difflib.get_close_matches(lost[0], [*class_names, *class_ids], n=1)
        guess = f", do you mean {close[0]!r}?" if close else ""
        raise HierarchyError(
            f"{path}: {len(lost)} labels are neither categories nor above one (first: {lost[0]!r}{guess}); "
            "correct them, or leave them out with unlisted='contract' (--unlisted contract)"
        )
    known = set(class_ids)
    added = [label for label in parsed.parents if label not in known and label != parsed.root]
    for label in added:
        if not is_usable_text(label):
            raise HierarchyError(f"{path}: {label!r} cannot be the name of a class")
    return added
