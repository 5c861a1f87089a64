"""Commands that cannot be run here at least have options that exist."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .snippets import read_snippets

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])


def command_calls(code):
    """(command, flags) of the commands of this project in a bash block, without what follows a lone --."""
    for line in code.replace("\\\n", " ").splitlines():
        match = re.search(r"longtail-det2 ((?:prepare |check |visualize )?[\w-]+)\b(.*)", line)
        match = match or re.search(r"(?:python|torchrun\s.*?)\s+(scripts/\S+\.py)\b(.*)", line)
        if match:
            words = shlex.split(match[2], comments=True)
            words = words[: words.index("--")] if "--" in words else words
            yield match[1], [word.partition("=")[0] for word in words if word.startswith("--")]


CALLS = sorted(
    {
        (script, flag)
        for document in DOCUMENTS
        for snippet in read_snippets(document)
        if snippet.language == "bash"
        for script, flags in command_calls(snippet.code)
        for flag in flags
    }
)


@cache
def help_of(script):
    words = [script] if script.endswith(".py") else ["-m", "longtail_det2.cli", *script.split()]
    done = subprocess.run(
        [sys.executable, *words, "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return done.stdout


def test_calls_are_found():
    assert ("prepare openimages", "--image-labels") in CALLS
    assert ("train", "--config-file") in CALLS


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({script for script, _ in CALLS}))
def test_options_exist(script):
    text = help_of(script)
    for flag in (flag for name, flag in CALLS if name == script):
        assert re.search(rf"{flag}\b", text), f"{script} has no {flag}"
