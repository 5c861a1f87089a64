#!/usr/bin/env python3
"""Install Detectron2 where no build of it is at hand.

A Detectron2 that imports is kept, whatever its origin (official build, conda-forge, a checkout of main); only
an earlier wheel of this script is replaced.
Otherwise the Python sources of v0.6 are taken from the package index (source distribution
``pb1-detectron2==0.6``, checked by hash), repaired for current versions of Python, NumPy, Pillow, setuptools
and torch, built as a pure-Python wheel named ``detectron2`` and installed. Compiled operators are not part of
that wheel: rotated boxes and deformable convolutions raise a clear error when used; everything else works.

    python scripts/install_detectron2.py                # install if needed
    python scripts/install_detectron2.py --wheel-dir W  # also keep the wheel
    python scripts/install_detectron2.py --sdist FILE   # machine without a network: a file fetched elsewhere
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

SDIST_NAME = "pb1-detectron2"
SDIST_VERSION = "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL_VERSION = "0.6+pure.2"
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


class InstallError(RuntimeError):
    """Something the user has to change before Detectron2 can be installed; the message says what."""


class Repair(NamedTuple):
    """One replacement in the sources of v0.6: every occurrence of `old` in `file` becomes `new`."""

    file: str
    old: str
    new: str
    reason: str


REPAIRS = (
    Repair(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Image.BILINEAR",
        "Pillow 10 dropped the alias",
    ),
    Repair("detectron2/evaluation/sem_seg_evaluation.py", "np.int)", "np.int64)", "gone in NumPy 1.24"),
    Repair("detectron2/evaluation/sem_seg_evaluation.py", "np.float)", "np.float64)", "gone in NumPy 1.24"),
    Repair("detectron2/data/datasets/pascal_voc.py", "np.str)", "np.str_)", "gone in NumPy 1.24"),
    Repair("detectron2/data/build.py", "dtype=np.int)", "dtype=np.int64)", "gone in NumPy 1.24"),
    Repair("detectron2/data/build.py", "dtype=np.int\n", "dtype=np.int64\n", "gone in NumPy 1.24"),
    *(
        Repair(f"detectron2/{file}", f"{old}np.bool)", f"{old}np.bool_)", "gone in NumPy 1.24")
        for file, old in (
            ("structures/masks.py", ".astype("),
            ("structures/masks.py", "dtype="),
            ("utils/visualizer.py", ".astype("),
            ("utils/video_visualizer.py", "dtype="),
            ("evaluation/pascal_voc_evaluation.py", ".astype("),
        )
    ),
    Repair(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(list(self._fallback_candidates), k=1)",
        "Python 3.11 samples sequences only",
    ),
    Repair(
        "detectron2/engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        "schedulers of torch 2 are no _LRScheduler, so their state was not saved",
    ),
    Repair(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "setuptools 82 has no pkg_resources",
    ),
    Repair(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
        "setuptools 82 has no pkg_resources",
    ),
    Repair(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "COCOeval_opt = COCOeval  # the compiled evaluator is not part of this wheel\n",
        "use_fast_impl=True, the default, needs compiled code",
    ),
    Repair(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # Caffe2 is gone from torch\n    pass\n",
        "Caffe2 is gone from torch",
    ),
    Repair(
        "detectron2/modeling/meta_arch/retinanet.py",
        "get_norm(norm, 1)",
        "get_norm(norm, 32)",
        "GroupNorm(32, 1) is refused by torch",
    ),
    Repair(
        "detectron2/modeling/meta_arch/dense_detector.py",
        "                self.test_score_thresh,\n                self.test_topk_candidates,\n",
        "                score_thresh,\n                topk_candidates,\n",
        "the two arguments were ignored",
    ),
    Repair(
        "detectron2/modeling/meta_arch/fcos.py",
        "        for gt_per_image in gt_instances:\n            gt_centers =",
        "        for gt_per_image in gt_instances:\n            if len(gt_per_image) == 0:\n"
        "                none = anchor_sizes.new_full(anchor_sizes.shape, -1, dtype=torch.int64)\n"
        "                matched_indices.append(none)\n"
        "                continue\n            gt_centers =",
        "images without boxes",
    ),
    Repair(
        "detectron2/modeling/meta_arch/fcos.py",
        "        for gt_index, gt_per_image in zip(matched_indices, gt_instances):\n            label =",
        "        for gt_index, gt_per_image in zip(matched_indices, gt_instances):\n"
        "            if len(gt_per_image) == 0:\n"
        "                matched_labels.append(torch.full_like(gt_index, self.num_classes))\n"
        "                no_boxes = gt_per_image.gt_boxes.tensor.new_zeros((len(gt_index), 4))\n"
        "                matched_boxes.append(Boxes(no_boxes))\n"
        "                continue\n            label =",
        "images without boxes",
    ),
)

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

SETUP = f'''from setuptools import find_packages, setup

projects = {{
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}}
setup(
    name="detectron2",
    version="{WHEEL_VERSION}",
    author="FAIR",
    license="Apache-2.0",
    url="https://github.com/facebookresearch/detectron2",
    description="Detectron2 v0.6, pure Python, repaired for current dependencies",
    packages=find_packages(include=("detectron2*",)) + list(projects),
    package_dir=projects,
    package_data={{"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}},
    python_requires=">=3.8",
    install_requires=[
        "Pillow>=9.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
        "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1,<2.4", "hydra-core>=1.1", "packaging", "black",
    ],
)
'''


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"install_detectron2: {text}", flush=True)


def existing_detectron2() -> str | None:
    """Describe the Detectron2 that imports here, or return None where there is none.

    Raises:
        InstallError: one is installed, but importing it fails.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    probe = (
        "import detectron2, detectron2.structures, detectron2.layers\n"
        "import detectron2.model_zoo, detectron2.engine\n"
        "print(detectron2.__version__, detectron2.__path__[0])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return result.stdout.strip().splitlines()[-1]
    reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "no message"
    raise InstallError(
        f"a Detectron2 is installed for {sys.executable} but cannot be imported ({reason}).\n"
        "Repair it, or remove it with `python -m pip uninstall detectron2` and run this script again."
    )


def is_outdated_wheel() -> bool:
    """Return whether an earlier wheel of this script is installed, with fewer repairs."""
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return "+pure." in version and version != WHEEL_VERSION


def check_torch() -> None:
    """Make sure that torch and torchvision are there and belong together.

    Raises:
        InstallError: either is missing, or torchvision's operators do not load beside this torch.
    """
    for module in ("torch", "torchvision"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(
                f"{module} is not installed for {sys.executable}.\n"
                f"Run `python -m pip install -c {CONSTRAINTS.name} torch torchvision` first, or `make setup`."
            )
    probe = (
        "import torch, torchvision\n"
        "torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "print(torch.__version__, torchvision.__version__)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "no message"
        raise InstallError(
            f"torch and torchvision do not work together here ({reason}).\n"
            "Their builds must match: torchvision's wheels are for the CUDA build of one torch version.\n"
            f"Install a tested pair: `python -m pip install --force-reinstall -c {CONSTRAINTS.name} torch "
            "torchvision`."
        )


def fetch_sdist(folder: Path) -> Path:
    """Download the source distribution into `folder` with pip's own settings (index, proxy, certificates).

    `pip download` itself refuses this distribution, because one of its optional extras names a URL; so pip's
    finder and session are called directly.

    Raises:
        InstallError: no index answered, or it does not know the file.
    """
    offline = (
        "Is there a network, and does `python -m pip download six` work here? Without a network, fetch the "
        f"source distribution of {SDIST_NAME}=={SDIST_VERSION} elsewhere and pass it with --sdist FILE."
    )
    try:
        create_command = importlib.import_module("pip._internal.commands").create_command
        command = create_command("download")
        options, _ = command.parse_args(["--no-binary", ":all:", SDIST_NAME])
        with command.main_context():
            session = command.get_default_session(options)
            finder = command._build_package_finder(options, session)
            links = [
                candidate.link
                for candidate in finder.find_all_candidates(SDIST_NAME)
                if str(candidate.version) == SDIST_VERSION
            ]
            if not links:
                raise InstallError(
                    f"the package index has no sources of {SDIST_NAME}=={SDIST_VERSION}.\n{offline}"
                )
            response = session.get(links[-1].url_without_fragment, headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
    except InstallError:
        raise
    except Exception as error:  # pip's internals raise many kinds; each means that the file was not fetched
        raise InstallError(
            f"{SDIST_NAME}=={SDIST_VERSION} could not be downloaded ({error}).\n{offline}"
        ) from error
    path = folder / f"{SDIST_NAME}-{SDIST_VERSION}.tar.gz"
    path.write_bytes(response.content)
    return path


def check_hash(sdist: Path) -> None:
    """Refuse a file that is not the known source distribution.

    Raises:
        InstallError: the file is missing or its SHA-256 differs.
    """
    if not sdist.is_file():
        raise InstallError(f"{sdist}: no such file")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise InstallError(
            f"{sdist}: SHA-256 is {found}, expected {SDIST_SHA256}.\n"
            f"The file is damaged or is not {SDIST_NAME}-{SDIST_VERSION}.tar.gz; nothing was installed. "
            "Fetch it again."
        )


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the source distribution and return its top folder."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder / f"{SDIST_NAME}-{SDIST_VERSION}"


def repair(root: Path) -> None:
    """Apply `REPAIRS` to the unpacked sources, and add what the wheel needs.

    Raises:
        InstallError: a passage to be replaced is not there.
    """
    for item in REPAIRS:
        path = root / item.file
        text = path.read_text(encoding="utf-8")
        if item.old not in text:
            raise InstallError(f"{item.file}: the passage to repair ({item.reason}) was not found")
        path.write_text(text.replace(item.old, item.new), encoding="utf-8")
    (root / "detectron2" / "_C.py").write_text(STUB, encoding="utf-8")
    (root / "setup.py").write_text(SETUP, encoding="utf-8")
    (root / "setup.cfg").unlink(missing_ok=True)
    (root / "README.md").write_text("Detectron2 v0.6, pure Python.\n", encoding="utf-8")


def run_pip(*arguments: str) -> None:
    """Run pip in this environment.

    Raises:
        InstallError: pip failed; its own output is above.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(f"`{' '.join(command)}` failed; its output above says why")


def install(sdist: Path | None, wheel_dir: Path | None) -> None:
    """Build the repaired wheel and install it with its requirements.

    Args:
        sdist: a source distribution already at hand; None downloads it.
        wheel_dir: folder that keeps a copy of the wheel; None keeps none.
    """
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        work = Path(name)
        if sdist is None:
            say(f"downloading {SDIST_NAME}=={SDIST_VERSION}")
            sdist = fetch_sdist(work)
        check_hash(sdist)
        root = unpack(sdist, work)
        repair(root)
        say("building a pure-Python wheel")
        run_pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(work / "wheel"), str(root))
        (wheel,) = (work / "wheel").glob("detectron2-*.whl")
        constraints = ("-c", str(CONSTRAINTS)) if CONSTRAINTS.is_file() else ()
        say("installing it with its requirements")
        run_pip("install", "-q", *constraints, str(wheel))
        if wheel_dir is not None:
            wheel_dir.mkdir(parents=True, exist_ok=True)
            shutil.copy2(wheel, wheel_dir)
            say(f"kept {wheel_dir / wheel.name}")


def install_opencv() -> None:
    """Give Detectron2's Visualizer the OpenCV it imports, where there is none.

    The headless build needs no system libraries; an OpenCV that is already there is left alone, because two
    of its wheels in one environment overwrite each other.
    """
    if importlib.util.find_spec("cv2") is None:
        say("installing opencv-python-headless (Detectron2's Visualizer imports it)")
        constraints = ("-c", str(CONSTRAINTS)) if CONSTRAINTS.is_file() else ()
        run_pip("install", "-q", *constraints, "opencv-python-headless")


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdist", type=Path, help=f"{SDIST_NAME}-{SDIST_VERSION}.tar.gz, instead of downloading"
    )
    parser.add_argument("--wheel-dir", type=Path, help="keep a copy of the wheel in this folder")
    parser.add_argument("--force", action="store_true", help="install even if a Detectron2 imports")
    args = parser.parse_args()
    try:
        check_torch()
        found = None if args.force or is_outdated_wheel() else existing_detectron2()
        if found is not None:
            say(f"keeping the Detectron2 that is here ({found})")
            install_opencv()
            return 0
        install(args.sdist, args.wheel_dir)
        importlib.invalidate_caches()
        say(f"installed Detectron2 ({existing_detectron2()})")
        install_opencv()
    except InstallError as error:
        print(f"install_detectron2: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
