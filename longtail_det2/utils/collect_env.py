"""Report of the environment, to be pasted into questions: `python -m longtail_det2.utils.collect_env`.

Versions, Detectron2's own report, and under "Problems" what does not work and what to do about it. `--check`
prints the problems only. The exit status is 1 when there are any.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys

import longtail_det2

LIBRARIES = (
    *("torch", "torchvision", "numpy", "pyarrow", "PIL", "cv2", "fvcore", "iopath", "omegaconf"),
    *("pycocotools", "hotcoco", "matplotlib", "tensorboard", "detectron2"),
)
_PARTS = ("structures", "layers", "modeling", "data", "engine", "evaluation", "model_zoo")


def import_failure(name: str) -> str:
    """Import a module; returns why that fails, or ""."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken library may raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0]):
            return "not installed"
        return f"installed, but its import fails: {type(error).__name__}: {error}"
    return ""


def find_problems() -> list[str]:
    """Say what does not work, and what to do about it."""
    problems = []
    for name in (*LIBRARIES, *(f"detectron2.{part}" for part in _PARTS)):
        if failure := import_failure(name):
            advice = "Run `make setup`, or install it with pip"
            if name.startswith("detectron2"):
                advice = "Remove it if it is there, and run `python scripts/install_detectron2.py`"
            problems.append(f"{name}: {failure}. {advice}")
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # torch reports a missing operator in several ways
        problems.append(
            f"torchvision's compiled operators do not load: {error}. Its build must match that of torch: "
            "get a tested pair with `python -m pip install --force-reinstall -c constraints.txt torch "
            "torchvision`"
        )
    return problems


def describe() -> str:
    """Versions of this project, Python and libraries, and Detectron2's report if it can be made."""
    lines = [
        f"longtail_det2 {longtail_det2.__version__}",
        f"Python {platform.python_version()} at {sys.executable}",
        f"{platform.platform()}, {os.cpu_count()} cores",
    ]
    for name in LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", "version unknown")
        lines.append(f"{name} {import_failure(name) or version}")
    lines += [
        f"${name} {os.environ.get(name, 'not set')}" for name in ("DETECTRON2_DATASETS", "OMP_NUM_THREADS")
    ]
    if not import_failure("detectron2.utils.collect_env"):
        lines.append(importlib.import_module("detectron2.utils.collect_env").collect_env_info())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 when something does not work."""
    parser = argparse.ArgumentParser(prog="collect_env", description=__doc__)
    parser.add_argument("--check", action="store_true", help="print problems only")
    options = parser.parse_args(arguments)
    problems = find_problems()
    if not options.check:
        listed = "".join(f"\n  - {problem}" for problem in problems) or " none"
        sys.stdout.write(f"{describe()}\n\nProblems:{listed}\n")
    elif problems:
        sys.stdout.write("".join(f"problem: {problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
