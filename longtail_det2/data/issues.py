"""What is wrong or remarkable in annotation files: collected by kind, told in one table or one error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import printable


class Kind(NamedTuple):
    """A kind of issue."""

    title: str  # what the entries have in common, in the plural; their number stands before it
    advice: str  # what to do about them
    severity: Literal["error", "bad", "warning"] = "bad"
    """"error" keeps the store from being made, "bad" too unless bad entries are skipped, "warning" never."""


class Issue(NamedTuple):
    """Number of entries of one kind, and the first one in words."""

    count: int
    example: str


class Issues:
    """Issues found in one file or one set of files, in the order of their discovery.

    Attributes:
        source: file or folder that messages name; "" where each example names its file.
        kinds: {key: kind} of everything that can be wrong.
        skip_bad: leave entries of the severity "bad" out instead of refusing the file.
        found: {key: issue}.
    """

    def __init__(self, source: str | Path, kinds: Mapping[str, Kind], skip_bad: bool = False) -> None:
        self.source = str(source)
        self.kinds = kinds
        self.skip_bad = skip_bad
        self.found: dict[str, Issue] = {}

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Note `count` entries of a kind; `where` names the first one, and is kept if it is the first yet."""
        if count:
            example = self.found[kind].example if kind in self.found else printable(where, most=400)
            self.found[kind] = Issue(self.count(kind) + count, example)

    def count(self, kind: str) -> int:
        """Number of entries of a kind."""
        return self.found[kind].count if kind in self.found else 0

    def counts(self) -> dict[str, int]:
        """{kind: number of entries} of everything found."""
        return {kind: issue.count for kind, issue in self.found.items()}

    @property
    def errors(self) -> dict[str, Issue]:
        """The issues that keep the store from being made."""
        return {kind: issue for kind, issue in self.found.items() if self._rank(kind) == 0}

    def raise_errors(self) -> None:
        """Raise if there are errors.

        Raises:
            DataError: one line: the first entry, how many more, what to do, and counts of the other errors.
        """
        if not self.errors:
            return
        (kind, issue), *others = [(self.kinds[key], issue) for key, issue in self.errors.items()]
        message = f"{self.source}: {issue.example}" if self.source else issue.example
        if issue.count > 1:
            message += f" ({issue.count:,} {kind.title})"
        message += f"; {kind.advice}"
        if kind.severity == "bad":
            message += ", or leave them out with --skip-bad"
        if others:
            message += f". Further errors: {'; '.join(f'{one.count:,} {kind.title}' for kind, one in others)}"
        raise DataError(message)

    def table(self) -> str:
        """Return one line per kind, errors first: severity, count, title, first example."""
        rows = []
        for key, issue in sorted(self.found.items(), key=lambda item: self._rank(item[0])):
            label = ("ERROR", "skipped", "warning")[self._rank(key)]
            text = f"{self.kinds[key].title}: {issue.example}; {self.kinds[key].advice}"
            rows.append(f"  {label:<8}{issue.count:>9,}  {text}")
        return "\n".join(rows)

    def _rank(self, kind: str) -> int:
        """0 for errors, 1 for what is skipped, 2 for warnings."""
        severity = self.kinds[kind].severity
        return 2 if severity == "warning" else int(severity == "bad" and self.skip_bad)
