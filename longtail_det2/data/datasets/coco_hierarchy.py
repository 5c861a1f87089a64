"""Hierarchy files for COCO-form data: by category names or ids, with parents that are no categories."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from longtail_det2.data.datasets.coco_checks import is_usable_text
from longtail_det2.data.hierarchy import HierarchyError, LabelHierarchy, ParsedHierarchy, read_parents


def read_coco_hierarchy(
    path: Path, class_ids: Sequence[str], class_names: Sequence[str], *, skip_bad: bool = False
) -> LabelHierarchy:
    """Read a hierarchy file that names the classes by their ids or by their names.

    It is read by names if more of its labels are names than ids. Labels above a class that are no classes
    become classes, after the others; their ids are their names.

    Args:
        path: `{"child": ["parent", ...]}` or an Open Images tree.
        class_ids: of the categories.
        class_names: their names.
        skip_bad: leave out labels that are neither classes nor above one, and give no parents to classes that
            a tree does not contain, instead of refusing the file.

    Raises:
        HierarchyError: the file does not fit the classes, or names that it uses are not distinct.
    """
    parsed = _by_id(path, read_parents(path), class_ids, class_names)
    above, pending = set(class_ids), list(class_ids)
    while pending:
        new = set(parsed.parents.get(pending.pop(), ())) - above
        above |= new
        pending += new
    absent = [label for label in class_ids if label not in parsed.parents]
    if absent and parsed.root is not None and not skip_bad:
        raise HierarchyError(
            f"{path}: {len(absent)} of {len(class_ids)} categories are not in the tree (first: "
            f"{absent[0]!r}); add them, or give them no parents with --skip-bad"
        )
    lost = [label for label in parsed.parents if label not in above and label != parsed.root]
    if lost and not skip_bad:
        close = difflib.get_close_matches(lost[0], [*class_names, *class_ids], n=1)
        guess = f", do you mean {close[0]!r}?" if close else ""
        raise HierarchyError(
            f"{path}: {len(lost)} labels are neither categories nor above one (first: {lost[0]!r}{guess}); "
            "correct them, or leave them out with --skip-bad"
        )
    known = {*class_ids, parsed.root}
    added = [label for label in parsed.parents if label in above and label not in known]
    if not all(map(is_usable_text, added)):
        raise HierarchyError(f"{path}: an empty text, or one that no file can hold, is above a category")
    # Without a root, classes that a tree does not contain have no parents.
    return LabelHierarchy.from_json(parsed._replace(root=None), [*class_ids, *added], "contract")


def _by_id(
    path: Path, parsed: ParsedHierarchy, class_ids: Sequence[str], class_names: Sequence[str]
) -> ParsedHierarchy:
    labels, known = set(parsed.parents), set(class_ids)
    if len(labels & set(class_names)) <= len(labels & known):
        return parsed
    twice = [name for name, count in Counter(class_names).items() if count > 1 and name in labels]
    if twice:
        raise HierarchyError(f"{path}: several categories are called {twice[0]!r}; use category ids instead")
    ids = dict(zip(class_names, class_ids, strict=True))
    # A label that is no name must not be taken for the id that it may happen to equal.
    ids.update({label: f"{label} (no name)" if label in known else label for label in labels - set(ids)})
    return ParsedHierarchy(
        {ids[label]: [ids[parent] for parent in above] for label, above in parsed.parents.items()},
        root=None if parsed.root is None else ids[parsed.root],
        name=parsed.name,
    )
