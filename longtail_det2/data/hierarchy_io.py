"""Reading hierarchy files into `{"child": ["parent", ...]}` and checking them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.files import read_json

Node = TypeVar("Node", bound=Hashable)


class HierarchyError(DataError):
    """A label hierarchy that cannot be used: malformed, cyclic, or not fitting the class list."""


@dataclass(frozen=True)
class ParsedHierarchy:
    """Direct links of a hierarchy file.

    Attributes:
        parents: each label of the file with its direct parents, in the order of first mention.
        root: label of the outermost node of a tree; None for a mapping.
    """

    parents: dict[str, list[str]]
    root: str | None

    @property
    def is_tree(self) -> bool:
        """True for the Open Images form."""
        return self.root is not None


def read_parents(source: str | Path | Mapping[str, Any]) -> ParsedHierarchy:
    """Reads an Open Images tree or a `{"child id": ["parent id", ...]}` mapping.

    Args:
        source: path of a JSON file, or what such a file holds. It is a tree if it has the key "LabelName".

    Raises:
        HierarchyError: the file is absent or no JSON, or its content has neither form.
    """
    if isinstance(source, (str, Path)):
        name, content = str(source), read_json(Path(source), error=HierarchyError)
    else:
        name, content = "hierarchy", source
    if not isinstance(content, Mapping):
        raise HierarchyError(
            f"{name}: expected a JSON object (an Open Images tree with 'LabelName' and 'Subcategory', or "
            f"{{'child id': ['parent id', ...]}}), got {type(content).__name__}"
        )
    if "LabelName" in content:
        return _walk_tree(content, name)
    return ParsedHierarchy(class_parents(content, name), root=None)


def class_parents(mapping: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    """Checks a `{"child id": ["parent id", ...]}` mapping; parents become labels of their own.

    Args:
        mapping: the links; one parent may be given as a bare string.
        name: what error messages call the source.

    Raises:
        HierarchyError: a value is no list of strings.
    """
    parents: dict[str, list[str]] = {}
    for child, above in mapping.items():
        names = [above] if isinstance(above, str) else above
        if not isinstance(names, (list, tuple)) or not all(isinstance(p, str) for p in names):
            raise HierarchyError(f"{name}: parents of {child!r} must be a list of class ids, got {above!r}")
        parents.setdefault(child, []).extend(names)
        for parent in names:
            parents.setdefault(parent, [])
    return parents


def _walk_tree(tree: Mapping[str, Any], name: str) -> ParsedHierarchy:
    """Joins all mentions of a label; anything below a Part link is skipped."""
    parents: dict[str, list[str]] = {}
    pending: list[tuple[object, str | None]] = [(tree, None)]
    while pending:
        node, above = pending.pop()
        label = node.get("LabelName") if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping) or not isinstance(label, str):
            raise HierarchyError(f"{name}: node below {above!r} has no 'LabelName' string: {str(node)[:80]}")
        known = parents.setdefault(label, [])
        if above is not None and above not in known:
            known.append(above)
        children = node.get("Subcategory", [])
        if not isinstance(children, list):
            raise HierarchyError(f"{name}: 'Subcategory' of {label!r} must be a list of nodes")
        pending.extend((child, label) for child in reversed(children))
    return ParsedHierarchy(parents, root=str(tree["LabelName"]))


def resolve_unlisted(
    hierarchy: ParsedHierarchy, class_ids: Collection[str], contract: bool
) -> dict[str, list[str]]:
    """Direct parents between listed classes only.

    The root of a tree is virtual: it is left out unless it is a listed class.

    Args:
        hierarchy: links between any labels.
        class_ids: the labels to keep.
        contract: leave other labels out and hang their children below the nearest kept ancestors;
            otherwise they are an error.

    Returns:
        A list of parents for each label of the hierarchy that is kept.

    Raises:
        HierarchyError: an unlisted label, or a cycle anywhere in the links.
    """
    keep = set(class_ids)
    unknown = [label for label in hierarchy.parents if label not in keep and label != hierarchy.root]
    if unknown and not contract:
        raise HierarchyError(
            f"{len(unknown)} labels are not in the class list (first: {unknown[0]!r}); correct the class "
            "list, or use unlisted='contract' to leave them out"
        )
    nearest: dict[str, list[str]] = {}
    for label in parents_first(hierarchy.parents, str):
        kept: dict[str, None] = {}
        for parent in hierarchy.parents[label]:
            kept.update(dict.fromkeys([parent] if parent in keep else nearest[parent]))
        nearest[label] = list(kept)
    return {label: above for label, above in nearest.items() if label in keep}


def parents_first(links: Mapping[Node, Sequence[Node]], name: Callable[[Node], str]) -> list[Node]:
    """Orders nodes so that parents come before their children.

    Args:
        links: direct parents of every node.
        name: how to write a node in a message.

    Raises:
        HierarchyError: the links form a cycle; the message prints its path.
    """
    order: list[Node] = []
    finished: dict[Node, bool] = {}  # False while the node is on the current path
    for first in links:
        path = [] if first in finished else [(first, iter(links[first]))]
        if path:
            finished[first] = False
        while path:
            node, above = path[-1]
            parent = next(above, None)
            if parent is None:
                finished[node] = True
                order.append(node)
                path.pop()
            elif parent not in finished:
                finished[parent] = False
                path.append((parent, iter(links[parent])))
            elif not finished[parent]:
                nodes = [on_path for on_path, _ in path]
                cycle = [*nodes[nodes.index(parent) :], parent]
                raise HierarchyError("cycle (child -> parent): " + " -> ".join(name(n) for n in cycle))
    return order
