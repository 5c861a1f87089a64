"""Report of the environment, to be pasted into questions: `python -m longtail_det2.utils.collect_env`.

Versions, Detectron2's own report, and under "Problems" what does not work and what to do about it. `--check`
prints the problems only. The exit status is 1 when there are any.
"""

from __future__ import annotations

import importlib
import sys

import longtail_det2

LIBRARIES = (
    *("torch", "torchvision", "numpy", "pyarrow", "PIL", "cv2", "fvcore", "iopath", "omegaconf"),
    *("pycocotools", "hotcoco", "matplotlib", "tensorboard", "detectron2.utils.collect_env"),
    *(
        f"detectron2.{part}"
        for part in ["structures", "layers", "modeling", "data", "engine", "evaluation", "model_zoo"]
    ),
)


def find_problems() -> list[str]:
    """Say what does not work, and what to do about it."""
    problems = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken library may raise anything while it is imported
            absent = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            failure = "not installed" if absent else f"its import fails: {type(error).__name__}: {error}"
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


def main(arguments: list[str]) -> int:
    """Command line; returns 1 when something does not work."""
    problems = find_problems()
    if arguments == ["--check"]:
        sys.stdout.write("".join(f"problem: {problem}\n" for problem in problems))
        return 1 if problems else 0
    versions = [f"longtail_det2 {longtail_det2.__version__}"]
    for name in LIBRARIES[: LIBRARIES.index("detectron2.utils.collect_env")]:
        versions.append(f"{name} {getattr(sys.modules.get(name), '__version__', 'version unknown')}")
    report = sys.modules.get("detectron2.utils.collect_env")
    versions.append(report.collect_env_info() if report else "")
    listed = "".join(f"\n  - {problem}" for problem in problems) or " none"
    sys.stdout.write("\n".join([*versions, f"\nProblems:{listed}\n"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
