#!/usr/bin/env python
"""Run Detectron2's own v0.6 tests against the installed Detectron2 and compare with what is known to fail.

The tests are not part of Detectron2's package: give a checkout of its tag v0.6. Each file runs in its own
process. Tests that need compiled operators, data sets or downloads, or that dependencies have overtaken, are
expected to fail in the pure-Python wheel; any other failure ends with exit status 1.

Example:
    python scripts/check_detectron2.py ~/detectron2-0.6/tests
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

EXPECTED = {
    "compiled operators": r"[Rr]otated|rroi|rrpn|fast_eval|RRPN|RROI",
    "data sets or downloads": r"torchscript|[Ee]xif|unknown_category|default_trainer|build_(data|batch)",
    "dependencies that have changed since": r"[Cc]affe2|resize_and_crop",
}


def failures_of(file: Path, root: Path) -> tuple[int, dict[str, str]]:
    """Run one test file; return how many tests ran, and {id: first line of the error} of the failed ones."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, str(file)]
        subprocess.run(command, cwd=root, capture_output=True, check=False)
        if not report.is_file():
            return 0, {str(file): "pytest wrote no report"}
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if problem is not None:
            name = f"{file.relative_to(root)}::{case.get('classname')}::{case.get('name')}"
            failed[name] = (
                (problem.get("message") or "").splitlines()[0] if problem.get("message") else "error"
            )
    return len(cases), failed


def main() -> int:
    """Return 0, or 1 if a test failed that should not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", type=Path, help="folder `tests` of a checkout of Detectron2's tag v0.6")
    root = parser.parse_args().tests.absolute()
    files = sorted(root.rglob("test_*.py"))
    if not files:
        parser.error(
            f"{root} has no test files; give the folder `tests` of a checkout of Detectron2's tag v0.6"
        )
    ran, unexpected = 0, {}
    known = dict.fromkeys(EXPECTED, 0)
    for file in files:
        number, failed = failures_of(file, root)
        ran += number
        for name, message in failed.items():
            reason = next((why for why, names in EXPECTED.items() if re.search(names, name)), None)
            if reason is None:
                unexpected[name] = message
            else:
                known[reason] += 1
    print(f"{ran} tests; expected failures: " + ", ".join(f"{n} {why}" for why, n in known.items()))
    for name, message in unexpected.items():
        print(f"FAILED {name}: {message}")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
