"""The code blocks of the documents do what the documents say."""

from pathlib import Path

import pytest

from .snippets import make_workspace, read_snippets, run_snippet

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted((REPOSITORY / "docs").glob("*.md"))
SNIPPETS = [snippet for document in DOCUMENTS for snippet in read_snippets(document)]
TUTORIALS = sorted({snippet.name for snippet in SNIPPETS if snippet.name})


def test_every_block_is_run_or_says_why_not():
    silent = [
        f"{one.document.name}:{one.line}"
        for one in SNIPPETS
        if one.language in ("python", "bash") and not (one.name or one.reason)
    ]
    assert not silent


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(name, tmp_path):
    make_workspace(tmp_path, REPOSITORY)
    for snippet in SNIPPETS:
        if snippet.name == name:
            run_snippet(snippet, tmp_path)
