"""Build steps that metadata alone cannot express: configs as package data, optional compiled operators.

Everything else is in pyproject.toml. The compiled operators are built when their sources and a C++ compiler
are there; without them the package installs as pure Python. `LONGTAIL_DET2_BUILD_OPS=0` skips them,
`LONGTAIL_DET2_BUILD_OPS=1` makes a failing build an error.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD_OPS = os.environ.get("LONGTAIL_DET2_BUILD_OPS", "auto")


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


def compiled_operators():
    """Extension modules and build commands; empty where there is nothing to build, or to build with."""
    sources = sorted((ROOT / "longtail_det2" / "layers" / "csrc").rglob("*.cpp"))
    if not sources or BUILD_OPS == "0":
        return [], {}
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        if BUILD_OPS == "1":
            sys.exit(f"LONGTAIL_DET2_BUILD_OPS=1, but there is no C++ compiler '{compiler}'")
        print(f"no C++ compiler '{compiler}': installing without compiled operators", file=sys.stderr)
        return [], {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extension = CppExtension(
        "longtail_det2._C", [str(path.relative_to(ROOT)) for path in sources], extra_compile_args=["-O3"]
    )
    extension.optional = BUILD_OPS != "1"
    return [extension], {"build_ext": BuildExtension}


extensions, commands = compiled_operators()
setup(ext_modules=extensions, cmdclass={"build_py": BuildWithConfigs, **commands})
