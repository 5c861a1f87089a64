"""The arguments of the train scripts, read without importing PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_DESCRIPTION = """Train the detector that a {form} config describes, or evaluate trained weights.

The folder of the run ({output_dir}) gets config.yaml, run.json, log.txt, metrics.json, checkpoints and
inference/<data set>. Exit code 2 means an error that its one line says how to mend.{warning}
"""
_EPILOG = """
Examples:

  one process:        %(prog)s --config-file CONFIG
  two GPUs:           %(prog)s --config-file CONFIG --num-gpus 2
  torchrun:           torchrun --nproc-per-node 2 %(prog)s --config-file CONFIG
  continue:           %(prog)s --config-file CONFIG --resume
  evaluate:           %(prog)s --config-file CONFIG --eval-only {weights}
  own data, no code:  %(prog)s --config-file CONFIG {stores}

CONFIG is a path, or a name in the model zoo. Without CUDA the processes run on CPUs.
"""
_YAML = {
    "form": "YAML",
    "output_dir": "OUTPUT_DIR DIR",
    "warning": "",
    "weights": "MODEL.WEIGHTS output/model_final.pth",
    "stores": "DATASETS.STORES my_train=DIR,my_val=DIR DATASETS.TRAIN my_train DATASETS.TEST my_val",
}
_LAZY = {
    "form": "lazy (Python)",
    "output_dir": "train.output_dir=DIR",
    "warning": " A lazy config is a program: run none whose author you do not trust.",
    "weights": "train.init_checkpoint=output/model_final.pth",
    "stores": "\"datasets.stores=['my_train=DIR']\" dataloader.train.dataset.names=my_train",
}


def parse_args(argv: Sequence[str] | None = None, *, lazy: bool = False) -> argparse.Namespace:
    """Parse Detectron2's arguments.

    They are --config-file, --resume, --eval-only, --num-gpus, --num-machines, --machine-rank, --dist-url and
    trailing config options.

    Args:
        argv: None for the process's own.
        lazy: show the examples of lazy configs in the help.
    """
    words = _LAZY if lazy else _YAML
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION.format(**words),
        epilog=_EPILOG.format(**words),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="CONFIG", help="path, or name in the model zoo")
    add("--resume", action="store_true", help="go on from the newest checkpoint of OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate the weights, do not train")
    add("--num-gpus", type=int, default=1, help="processes on this machine (default: %(default)s)")
    add("--num-machines", type=int, default=1, help="machines of the job (default: %(default)s)")
    add("--machine-rank", type=int, default=0, help="number of this machine (default: %(default)s)")
    add(
        "--dist-url",
        default="auto",
        help="where the processes meet: tcp://HOST:PORT; auto takes a free port of this machine",
    )
    add("opts", nargs=argparse.REMAINDER, metavar="OPTIONS", help="PATH.KEY VALUE (lazy: path.key=value) ...")
    return parser.parse_args(argv)
