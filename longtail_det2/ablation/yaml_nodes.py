"""A YAML file whose values know where they stand, for errors that name the file and the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from longtail_det2.utils.errors import ConfigError

_MERGE_TAG = "tag:yaml.org,2002:merge"


class Node:
    """A value in a file.

    Attributes:
        value: plain data.
        file: the file's name, for messages.
        key: where the value stands, such as "rows[2].overrides"; "" at the top.
    """

    def __init__(self, value: Any, file: str, key: str = "") -> None:
        """See the class."""
        self.value, self.file, self.key = value, file, key

    def fail(self, what: str) -> NoReturn:
        """Raises ConfigError about this value."""
        raise ConfigError(f"{self.file}: {self.key + ': ' if self.key else ''}{what}")

    def mapping(self, known: Sequence[str] | None = None) -> dict[str, Node]:
        """The entries of a mapping.

        Args:
            known: keys that may stand here; None for any.
        """
        if not isinstance(self.value, dict):
            self.fail(f"must be a mapping of keys to values, got {self.value!r}")
        entries = {}
        for key, value in self.value.items():
            if not isinstance(key, str):
                self.fail(f"the key {key!r} must be text: put it into quotation marks")
            if known is not None and key not in known:
                near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}"
                self.fail(f"there is no key {key!r} here.{hint}")
            entries[key] = Node(value, self.file, f"{self.key}.{key}".lstrip("."))
        return entries

    def items(self) -> Iterator[Node]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.fail(f"must be a list, got {self.value!r}")
        for place, value in enumerate(self.value):
            yield Node(value, self.file, f"{self.key}[{place}]")

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail(f"must be text, got {self.value!r}")
        return self.value

    def name(self) -> str:
        """A text that can name a folder."""
        if not all(one.isalnum() or one in "_.+-" for one in self.text()) or self.value[0] in ".-":
            self.fail(f"{self.value!r} names a folder too: use letters, digits and _ + - . only")
        return self.value

    def flag(self) -> bool:
        """True or False."""
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, got {self.value!r}")
        return self.value

    def number(self) -> float:
        """A number."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            self.fail(f"must be a number, got {self.value!r}")
        return self.value

    def integer(self, lowest: int) -> int:
        """An integer, at least `lowest`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < lowest:
            self.fail(f"must be an integer of at least {lowest}, got {self.value!r}")
        return self.value


def read_yaml(path: Path) -> Node:
    """The content of a file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or gives a key twice.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return Node(value, str(path))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML readers keep the last."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    seen = set()
    for key, _ in node.value:
        if key.tag == _MERGE_TAG:
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} stands here twice", key.start_mark
            )
        seen.add(key.value)
    yield from loader.construct_yaml_map(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
