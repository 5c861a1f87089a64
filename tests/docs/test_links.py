"""Links, paths and names in the documents lead somewhere."""

import re
from pathlib import Path

import pytest

from longtail_det2 import model_zoo

from .snippets import read_snippets

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("projects/*/README.md")]
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_TOP = ("configs", "docs", "longtail_det2", "projects", "scripts", "tests", ".ci")
_IN_PACKAGE = ("data", "engine", "evaluation", "export", "modeling", "structures", "visualization")


def name_of(document):
    return document.relative_to(REPOSITORY).as_posix()


def prose(document):
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+\s+(.*)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(document):
    for link in _LINK.findall(prose(document)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_in_the_text_exist(document):
    for word in (word for code in _CODE.findall(prose(document)) for word in code.split()):
        if not re.fullmatch(r"[\w.\-*/]+", word) or "/" not in word:
            continue
        first = word.split("/")[0]
        if first in _TOP:
            assert list(REPOSITORY.glob(word.rstrip("/"))), f"{document.name}: {word}"
        elif first in _IN_PACKAGE:
            assert list((REPOSITORY / "longtail_det2").glob(word.rstrip("/"))), f"{document.name}: {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_configs_and_scripts_in_commands_exist(document):
    for snippet in read_snippets(document):
        for name in re.findall(r"--config-file[= ](\S+)", snippet.code):
            known = name in model_zoo.list_configs() or name.startswith("output/") or name == "CONFIG"
            assert known, f"{document.name}:{snippet.line}: {name}"
        for name in re.findall(r"\bscripts/[\w/]+\.(?:py|sh)\b", snippet.code):
            assert (REPOSITORY / name).is_file(), f"{document.name}:{snippet.line}: {name}"


def test_arrows_of_the_drawing_are_files():
    text = (REPOSITORY / "docs" / "way_of_one_box.md").read_text(encoding="utf-8")
    labels = re.findall(r"--\s+\"([^\"]+)\"\s+-->", text)
    assert len(labels) > 10
    for label in labels:
        paths = re.findall(r"\b\w+(?:/[\w.]+)*(?:/|\.py)", label.replace("<br/>", " "))
        assert paths, label
        for path in paths:
            assert (REPOSITORY / "longtail_det2" / path).exists(), f"{label}: {path}"


def test_every_document_is_in_the_index():
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in (REPOSITORY / "docs").glob("*.md") if f"]({path.name})" not in index]
    assert missing in ([], ["README.md"])
