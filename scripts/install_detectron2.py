#!/usr/bin/env python3
"""Install Detectron2 where no build of it is at hand.

A Detectron2 that imports is kept, whatever its origin: official build, conda-forge, a checkout of main.
Otherwise the Python sources of v0.6 are taken from the package index (source distribution
``pb1-detectron2==0.6``, checked by hash), repaired for current versions of Python, NumPy, Pillow, setuptools
and torch, built as a pure-Python wheel named ``detectron2`` and installed. Compiled operators are not part of
that wheel: rotated boxes and deformable convolutions raise a clear error when used; everything else works.

    python scripts/install_detectron2.py                # install if needed
    python scripts/install_detectron2.py --sdist FILE   # machine without a network: a file fetched elsewhere
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SDIST = "pb1-detectron2-0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


class InstallError(RuntimeError):
    """Something the user has to change before Detectron2 can be installed; the message says what."""


REPAIRS = [
    # Pillow 10 dropped the alias.
    ("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR"),
    # Python 3.11 samples sequences only.
    ("data/common.py", ".sample(self._fallback_candidates,", ".sample(list(self._fallback_candidates),"),
    # Schedulers of torch 2 are no _LRScheduler, so their state was not saved.
    ("engine/hooks.py", "torch.optim.lr_scheduler._LRScheduler", "torch.optim.lr_scheduler.LRScheduler"),
    # GroupNorm(32, 1) is refused by torch.
    ("modeling/meta_arch/retinanet.py", "get_norm(norm, 1)", "get_norm(norm, 32)"),
    # Images without boxes.
    (
        "modeling/meta_arch/fcos.py",
        "        for gt_per_image in gt_instances:\n            gt_centers =",
        "        for gt_per_image in gt_instances:\n            if len(gt_per_image) == 0:\n"
        "                none = anchor_sizes.new_full(anchor_sizes.shape, -1, dtype=torch.int64)\n"
        "                matched_indices.append(none)\n"
        "                continue\n            gt_centers =",
    ),
    (
        "modeling/meta_arch/fcos.py",
        "        for gt_index, gt_per_image in zip(matched_indices, gt_instances):\n            label =",
        "        for gt_index, gt_per_image in zip(matched_indices, gt_instances):\n"
        "            if len(gt_per_image) == 0:\n"
        "                matched_labels.append(torch.full_like(gt_index, self.num_classes))\n"
        "                no_boxes = gt_per_image.gt_boxes.tensor.new_zeros((len(gt_index), 4))\n"
        "                matched_boxes.append(Boxes(no_boxes))\n"
        "                continue\n            label =",
    ),
    # setuptools 82 has no pkg_resources.
    ("model_zoo/model_zoo.py", "import pkg_resources\n", ""),
    (
        "model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
    ),
    # use_fast_impl=True, the default, needs compiled code.
    (
        "evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "COCOeval_opt = COCOeval  # the compiled evaluator is not part of this wheel\n",
    ),
    # Caffe2 is gone from torch.
    (
        "export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # Caffe2 is gone from torch\n    pass\n",
    ),
]
"""(file in the sources of v0.6, passage, what becomes of it)."""

STUB = '''"""Stands in for Detectron2's compiled operators, which are not part of this pure-Python wheel."""


def get_compiler_version():
    return "none (pure-Python wheel)"


def get_cuda_version():
    return "none (pure-Python wheel)"


def has_cuda():
    return False


def __getattr__(name):
    raise AttributeError(
        f"detectron2._C.{name} is a compiled operator, and this Detectron2 was installed without them. "
        "Rotated boxes, Detectron2's deformable convolutions and its compiled COCO evaluator need a "
        "Detectron2 built from its official sources."
    )
'''

SETUP = """from setuptools import find_packages, setup

setup(
    name="detectron2",
    version="0.6+pure.4",
    author="FAIR",
    license="Apache-2.0",
    url="https://github.com/facebookresearch/detectron2",
    description="Detectron2 v0.6, pure Python, repaired for current dependencies",
    packages=find_packages(include=("detectron2*",)),
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    python_requires=">=3.8",
    install_requires=[
        "Pillow>=9.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
        "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1,<2.4", "hydra-core>=1.1", "packaging", "black",
    ],
)
"""


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"install_detectron2: {text}", flush=True)


def run_python(code: str) -> str:
    """Return the last line that a program prints.

    Raises:
        InstallError: it failed; the message is the last line of its traceback.
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
    if done.returncode != 0:
        raise InstallError(lines[-1])
    return lines[-1]


def existing_detectron2() -> str | None:
    """Describe the Detectron2 that imports here, or return None where there is none.

    Raises:
        InstallError: one is installed, but importing it fails.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    parts = "detectron2, detectron2.structures, detectron2.layers, detectron2.model_zoo, detectron2.engine"
    try:
        return run_python(f"import {parts}\nprint(detectron2.__version__, detectron2.__path__[0])")
    except InstallError as error:
        raise InstallError(
            f"a Detectron2 is installed for {sys.executable} but cannot be imported ({error}).\n"
            "Repair it, or remove it with `python -m pip uninstall detectron2` and run this script again."
        ) from None


def check_torch() -> None:
    """Make sure that torch and torchvision are there and belong together.

    Raises:
        InstallError: either is missing, or torchvision's operators do not load beside this torch.
    """
    try:
        run_python(
            "import torch, torchvision\ntorchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\nprint()"
        )
    except InstallError as error:
        raise InstallError(
            f"torch and torchvision do not work for {sys.executable} ({error}).\n"
            "Their builds must match: torchvision's wheels are for the CUDA build of one torch version.\n"
            f"Install a tested pair: `python -m pip install --force-reinstall -c {CONSTRAINTS.name} torch "
            "torchvision`, or run `make setup`."
        ) from None


def fetch_sdist(folder: Path) -> Path:
    """Download the source distribution into `folder` with pip's own settings (index, proxy, certificates).

    `pip download` itself refuses this distribution, because one of its optional extras names a URL; so pip's
    finder and session are called directly.

    Raises:
        InstallError: no index answered, or it does not know the file.
    """
    name, _, version = SDIST.rpartition("-")
    try:
        create_command = importlib.import_module("pip._internal.commands").create_command
        command = create_command("download")
        options, _ = command.parse_args(["--no-binary", ":all:", name])
        with command.main_context():
            session = command.get_default_session(options)
            found = command._build_package_finder(options, session).find_all_candidates(name)
            links = [one.link for one in found if str(one.version) == version]
            if not links:
                raise LookupError("the package index does not have it")
            response = session.get(links[-1].url_without_fragment, headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
    except Exception as error:  # pip's internals raise many kinds; each means that the file was not fetched
        raise InstallError(
            f"{name}=={version} could not be downloaded ({error}).\n"
            "Is there a network, and does `python -m pip download six` work here? Without a network, fetch "
            "the source distribution elsewhere and pass it with --sdist FILE."
        ) from error
    path = folder / f"{SDIST}.tar.gz"
    path.write_bytes(response.content)
    return path


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the source distribution and return its top folder.

    Raises:
        InstallError: the file is missing or its SHA-256 is not the known one.
    """
    if not sdist.is_file():
        raise InstallError(f"{sdist}: no such file")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise InstallError(
            f"{sdist}: SHA-256 is {found}, expected {SDIST_SHA256}.\n"
            f"The file is damaged or is not {SDIST}.tar.gz; nothing was installed. Fetch it again."
        )
    shutil.unpack_archive(sdist, folder, "gztar")
    return folder / SDIST


def repair(root: Path) -> None:
    """Apply `REPAIRS` to the unpacked sources, and add what the wheel needs.

    Raises:
        InstallError: a passage to be replaced is not there.
    """
    package = root / "detectron2"
    for name, old, new in REPAIRS:
        path = package / name
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise InstallError(f"{path}: the passage to repair was not found: {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")
    for path in package.rglob("*.py"):  # NumPy 1.24 dropped its aliases of Python's types
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\bnp\.(bool|int|float|str)\b", r"\1", text), encoding="utf-8")
    (package / "_C.py").write_text(STUB, encoding="utf-8")
    (root / "setup.py").write_text(SETUP, encoding="utf-8")


def run_pip(*arguments: object) -> None:
    """Run pip in this environment.

    Raises:
        InstallError: pip failed; its own output is above.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(f"`{' '.join(command)}` failed; its output above says why")


def install(sdist: Path | None) -> None:
    """Build the repaired wheel of a source distribution, None to download it, and install it."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        work = Path(name)
        if sdist is None:
            say(f"downloading {SDIST}")
            sdist = fetch_sdist(work)
        root = unpack(sdist, work)
        repair(root)
        say("building a pure-Python wheel and installing it with its requirements")
        run_pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", work / "wheel", root)
        (wheel,) = (work / "wheel").glob("detectron2-*.whl")
        run_pip("install", "-q", "--no-deps", "--force-reinstall", wheel)  # pip keeps an equal version
        install_packages(wheel)
    importlib.invalidate_caches()


def install_packages(*packages: object) -> None:
    """Install packages, in the tested versions where this script lies in the repository."""
    run_pip("install", "-q", *(["-c", CONSTRAINTS] if CONSTRAINTS.is_file() else []), *packages)


def main() -> int:
    """Command line; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--sdist", type=Path, metavar="FILE", help=f"{SDIST}.tar.gz, instead of downloading")
    parser.add_argument("--force", action="store_true", help="install even if a Detectron2 imports")
    args = parser.parse_args()
    try:
        check_torch()
        found = None if args.force else existing_detectron2()
        if found is not None:
            say(f"keeping the Detectron2 that is here ({found})")
        else:
            install(args.sdist)
            say(f"installed Detectron2 ({existing_detectron2()})")
        # Only where there is none: two wheels of OpenCV in one environment overwrite each other.
        if importlib.util.find_spec("cv2") is None:
            say("installing opencv-python-headless (Detectron2's Visualizer imports it)")
            install_packages("opencv-python-headless")
    except InstallError as error:
        print(f"install_detectron2: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
