"""The command `longtail-det2`: finds the sub-command, and tells errors in one line."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence

import longtail_det2
from longtail_det2.utils.console import tell, tell_error
from longtail_det2.utils.errors import ConfigError, DataError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "prepare coco": "make an annotation store from a COCO or LVIS file",
    "prepare openimages": "make an annotation store from Open Images files",
    "prepare image-labels": "make an annotation store from a CSV of image labels",
    "prepare mlt": "make COCO-MLT and VOC-MLT, or draw such a long tail",
    "check coco": "check a COCO or LVIS file and its images",
    "check openimages": "check Open Images files and their images",
    "check image-labels": "check a CSV of image labels and the images",
    "statistics": "count classes and their co-occurrence",
    "anchor-statistics": "count the anchors that match objects",
    "visualize data": "draw annotated images",
    "visualize results": "draw truth and predictions side by side",
    "train": "train a detector from a YAML or lazy config",
    "eval": "evaluate trained weights on a config's test data",
    "evaluate-openimages": "score a CSV of predictions by Open Images' metric",
    "evaluate-lvis": "score a JSON of detections by LVIS's metrics",
    "report": "write a run's report, one HTML file",
    "demo": "detect objects on image files",
    "export": "export a detector as ONNX",
    "publish": "publish weights with config, metrics and card",
    "shapes": "generate the shapes data set",
}
"""Help by name. A command is the module of its name, with `add_arguments(parser)` and `run(args)`."""

# PyTorch warns of what Detectron2 uses, which the user cannot change. On import: in spawned processes, too.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
for begin in ("torch.meshgrid", "TypedStorage is deprecated", "`broadcast_buffers` is deprecated"):
    warnings.filterwarnings("ignore", message=begin)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after the program's name; None for the process's own.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend, told in one line on standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((name for name in COMMANDS if words[: name.count(" ") + 1] == name.split()), "")
    if not name:
        return _without_command(words)
    module = importlib.import_module("." + name.replace(" ", "_").replace("-", "_"), __name__)
    parser = argparse.ArgumentParser(
        prog=f"longtail-det2 {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(words[name.count(" ") + 1 :])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not getattr(args, "quiet", True):
        logging.getLogger("longtail_det2").setLevel(logging.INFO)
    try:
        return module.run(args) or 0
    except (ConfigError, DataError, OSError) as error:
        return tell_error(error)


def _without_command(words: list[str]) -> int:
    """Answer --help and --version; the help of "prepare" alone is the list of what it prepares."""
    if words == ["--version"]:
        tell(f"longtail-det2 {longtail_det2.__version__}")
        return 0
    shown = {name: text for name, text in COMMANDS.items() if words and name.split()[0] == words[0]}
    if any(word not in ("-h", "--help") for word in words[bool(shown) :]):
        called = " ".join(words[: 1 + bool(shown)])
        return tell_error(f"there is no command {called!r}, only {', '.join(shown or COMMANDS)}")
    lines = (f"  {name:22}{text}" for name, text in (shown or COMMANDS).items())
    tell("\n".join(["usage: longtail-det2 COMMAND ... (COMMAND --help says more)", "", *lines]))
    return 0
