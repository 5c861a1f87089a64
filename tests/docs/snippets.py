"""Fenced code blocks of the documents and what a comment before each says about running it.

    <!-- test: NAME -->              run the block (python or bash) when document NAME is tested
    <!-- test: NAME; file: PATH -->  save the block at PATH instead
    <!-- not run: REASON -->         leave it alone

Blocks with one NAME are run one after the other in one folder that looks like the root of the checkout.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!--\s*(?P<comment>.*?)\s*-->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Snippet:
    """One fenced block, where its code begins, and what the comment before it says."""

    document: Path
    line: int
    language: str
    code: str
    name: str = ""
    target: str = ""
    reason: str = ""


def read_snippets(document: Path) -> list[Snippet]:
    """All fenced blocks of a document in their order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        entries = {}
        for entry in (match["comment"] or "").split(";"):
            key, colon, value = entry.partition(":")
            if colon:
                entries[key.strip()] = value.strip()
        line = text.count("\n", 0, match.start("code")) + 1
        said = (entries.get(key, "") for key in ("test", "file", "not run"))
        found.append(Snippet(document, line, match["language"], match["code"], *said))
    return found


def make_workspace(folder: Path, repository: Path) -> None:
    """Makes a folder look like the root of the checkout; what is written there stays there."""
    for name in ("configs", "scripts", "projects", "tests", "docs", "longtail_det2"):
        if (repository / name).exists():
            (folder / name).symlink_to(repository / name)
    command = folder / "bin" / "longtail-det2"  # of this checkout, whether or not it is installed
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m longtail_det2.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)


def run_snippet(snippet: Snippet, folder: Path) -> None:
    """Runs or saves one block.

    Raises:
        AssertionError: the block fails; the message has its output.
    """
    if snippet.target:
        (folder / snippet.target).parent.mkdir(parents=True, exist_ok=True)
        (folder / snippet.target).write_text(snippet.code, encoding="utf-8")
        return
    if snippet.language == "bash":
        command = ["bash", "-euo", "pipefail", "-c", snippet.code]
    else:
        script = folder / f"block_{snippet.line}.py"
        script.write_text(snippet.code, encoding="utf-8")
        command = [sys.executable, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("DETECTRON2_DATASETS", None)  # the blocks' data sets are below their own folder
    folders = [str(folder / "bin"), os.path.dirname(sys.executable), environment["PATH"]]
    environment["PATH"] = os.pathsep.join(folders)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    where = f"{snippet.document.name}, line {snippet.line}"
    assert done.returncode == 0, f"{where}:\n{snippet.code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
