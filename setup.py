"""A build step that metadata alone cannot express: configs as package data. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies `configs/` and `projects/*/configs` into the built package, where `model_zoo` finds them.

    They lie there as in a checkout, because the projects' configs name their bases by relative paths.
    """

    def run(self):
        """Build the Python modules, then add the configs."""
        super().run()
        if getattr(self, "editable_mode", False):
            return  # a checkout reads its own configs/
        target = Path(self.build_lib) / "longtail_det2" / "model_zoo"
        for part in ("configs", "projects"):
            shutil.rmtree(target / part, ignore_errors=True)
        for source in (ROOT / "configs", *sorted((ROOT / "projects").glob("*/configs"))):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / source.relative_to(ROOT), ignore=ignored)


setup(cmdclass={"build_py": BuildWithConfigs})
