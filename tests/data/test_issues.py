"""The table of what is wrong with annotation files."""

import pytest

from longtail_det2.data.issues import Issues, Kind
from longtail_det2.utils.errors import DataError

KINDS = {
    "entry": Kind("malformed entries", "correct them", "error"),
    "box": Kind("bad boxes", "correct the boxes"),
    "name": Kind("repeated names", "is the list right?", "warning"),
}


def test_the_first_error_and_counts_of_the_others():
    issues = Issues("a.json", KINDS)
    issues.raise_errors()
    assert issues.table() == ""
    issues.add("name", "two cats")
    issues.raise_errors()
    issues.add("box", "row 3\nis\x1b[31m bad")
    issues.add("box", "row 4", count=1999)
    issues.add("box", "none", count=0)
    issues.add("entry", "entry 7")
    with pytest.raises(DataError) as caught:
        issues.raise_errors()
    message = str(caught.value)
    assert message.startswith("a.json: row 3\\nis\\x1b[31m bad (2,000 bad boxes); correct the boxes, or ")
    assert "--skip-bad" in message and message.endswith("1 malformed entries") and "\n" not in message
    assert [line.split()[0] for line in issues.table().splitlines()] == ["ERROR", "ERROR", "warning"]
    assert issues.counts() == {"name": 1, "box": 2000, "entry": 1}


def test_skipping_bad_entries_leaves_other_errors():
    issues = Issues("", KINDS, skip_bad=True)
    issues.add("box", "a.csv, line 3: bad")
    issues.raise_errors()
    assert issues.table().split()[:2] == ["skipped", "1"] and not issues.errors
    issues.add("entry", "a.csv, line 4: malformed")
    with pytest.raises(DataError, match=r"^a\.csv, line 4: malformed; correct them$"):
        issues.raise_errors()
