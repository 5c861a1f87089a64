"""Report of the environment, to be pasted into questions: `python -m longtail_det2.utils.collect_env`.

Versions, whether Detectron2's compiled parts are there, CUDA, and under "Problems" what is wrong and what to
do about it. `--check` prints the problems only. The exit status is 1 when something essential does not work.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass, field
from types import ModuleType

LIBRARIES = (
    "numpy",
    "pyarrow",
    "PIL",
    "cv2",
    "fvcore",
    "iopath",
    "omegaconf",
    "pycocotools",
    "matplotlib",
    "tensorboard",
)


@dataclass
class EnvironmentReport:
    """What was found.

    Attributes:
        rows: pairs (name, what was found), in printing order.
        problems: what does not work, each with what to do.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, value: object) -> None:
        """Append one row."""
        self.rows.append((name, str(value)))

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [f"{name:<{width}}  {value}" for name, value in self.rows]
        lines.append("")
        lines.append("Problems: none" if not self.problems else "Problems:")
        lines.extend(f"  - {problem}" for problem in self.problems)
        return "\n".join(lines)


def _import(name: str) -> tuple[ModuleType | None, str]:
    """Import a module; returns (module or None, its version or why it failed)."""
    if importlib.util.find_spec(name) is None:
        return None, "not installed"
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken library may raise anything while it is imported
        return None, f"installed, but its import fails: {type(error).__name__}: {error}"
    return module, str(getattr(module, "__version__", "version unknown"))


def _torch(report: EnvironmentReport) -> None:
    torch, version = _import("torch")
    report.add("torch", version)
    if torch is None:
        report.problems.append("torch cannot be imported: run `make setup`, or install torch and torchvision")
        return
    report.add("torch built for CUDA", torch.version.cuda or "no")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            report.add(f"GPU {index}", f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    else:
        report.add("GPU", "none usable; training runs on the CPU")
    torchvision, version = _import("torchvision")
    report.add("torchvision", version)
    try:
        if torchvision is None:
            raise RuntimeError(version)
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        report.add("torchvision operators", "work")
    except Exception as error:  # torch reports a missing operator in several ways
        report.add("torchvision operators", f"do not load: {error}")
        report.problems.append(
            "torchvision's compiled operators do not load beside this torch: their builds must match. "
            "Install a tested pair with `python -m pip install --force-reinstall -c constraints.txt torch "
            "torchvision`"
        )


def _detectron2(report: EnvironmentReport) -> None:
    detectron2, version = _import("detectron2")
    if detectron2 is None:
        report.add("detectron2", version)
        report.problems.append("Detectron2 cannot be imported: run `python scripts/install_detectron2.py`")
        return
    report.add("detectron2", f"{version} at {os.path.dirname(str(detectron2.__file__))}")
    compiled, why = _import("detectron2._C")
    if compiled is None:
        report.add("detectron2 compiled operators", why)
    else:
        report.add("detectron2 compiled operators", compiled.get_compiler_version())
    for name in ("structures", "layers", "modeling", "data", "engine", "evaluation", "model_zoo"):
        module, why = _import(f"detectron2.{name}")
        if module is None:
            report.problems.append(
                f"detectron2.{name} cannot be imported ({why}): this Detectron2 does not fit the other "
                "libraries. Remove it and run `python scripts/install_detectron2.py`"
            )
            break


def collect_environment() -> EnvironmentReport:
    """Look at the environment; imports the libraries it reports on, and changes nothing."""
    from longtail_det2 import __version__

    report = EnvironmentReport()
    report.add("longtail_det2", __version__)
    report.add("Python", f"{platform.python_version()} at {sys.executable}")
    report.add("platform", f"{platform.platform()}, {os.cpu_count()} cores")
    _torch(report)
    _detectron2(report)
    for name in LIBRARIES:
        module, version = _import(name)
        report.add(name, version)
        if module is None:
            report.problems.append(f"{name}: {version}. Run `make setup`, or install it with pip")
    for name in ("DETECTRON2_DATASETS", "CUDA_HOME", "OMP_NUM_THREADS"):
        report.add(f"${name}", os.environ.get(name, "not set"))
    return report


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 when something essential does not work."""
    parser = argparse.ArgumentParser(prog="collect_env", description=__doc__)
    parser.add_argument("--check", action="store_true", help="print problems only")
    options = parser.parse_args(arguments)
    report = collect_environment()
    if not options.check:
        sys.stdout.write(f"{report}\n")
    elif report.problems:
        sys.stdout.write("".join(f"problem: {problem}\n" for problem in report.problems))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
