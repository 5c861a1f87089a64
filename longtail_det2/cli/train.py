"""Train the detector that a YAML or lazy (Python) config describes.

The folder of the run (OUTPUT_DIR, lazy: train.output_dir) gets config.yaml, run.json, log.txt, metrics.json,
checkpoints and inference/<data set>. A lazy config is a program: run none whose author you do not trust.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .inputs import add_overrides

EPILOG = """\
examples:
  one process:     %(prog)s --config-file CONFIG OUTPUT_DIR output/my_run
  lazy config:     %(prog)s --config-file CONFIG.py train.output_dir=output/my_run
  two GPUs:        %(prog)s --config-file CONFIG --num-gpus 2
  torchrun:        torchrun --nproc-per-node 2 -m longtail_det2.cli train --config-file CONFIG
  continue:        %(prog)s --config-file CONFIG --resume
  data, no code:   %(prog)s --config-file CONFIG DATASETS.STORES my_train=DIR,my_val=DIR \\
                       DATASETS.TRAIN my_train DATASETS.TEST my_val
  data, lazy:      %(prog)s --config-file CONFIG.py "datasets.stores=['my_train=DIR']" \\
                       dataloader.train.dataset.names=my_train

Without CUDA the processes run on CPUs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's arguments."""
    add_process_arguments(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate the weights, do not train")


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and evaluation have in common."""
    add = parser.add_argument
    add("--config-file", default="", metavar="CONFIG", help="path, or name in the model zoo; .yaml or .py")
    add("--resume", action="store_true", help="go on from the newest checkpoint of OUTPUT_DIR")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    add("--num-machines", type=int, default=1, metavar="N", help="machines of the job (default: 1)")
    add("--machine-rank", type=int, default=0, metavar="N", help="number of this machine (default: 0)")
    add(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT; auto: a free port of this machine"
    )
    add_overrides(parser)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a train script; None for the process's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Train or evaluate in all processes of the job; return the exit status."""
    from longtail_det2.engine import lazy, trainer

    from .run import run

    return run((lazy if args.config_file.endswith(".py") else trainer).main, args)
