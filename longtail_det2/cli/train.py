"""Train the detector that a YAML or lazy (Python) config describes.

The folder of the run (OUTPUT_DIR, lazy: train.output_dir) gets config.yaml, run.json, log.txt, metrics.json,
checkpoints and inference/<data set>. A lazy config is a program: run none whose author you do not trust.
"""

from __future__ import annotations

import argparse

from .inputs import add_train_arguments

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


add_arguments = add_train_arguments


def run(args: argparse.Namespace) -> int:
    """Train or evaluate in all processes of the job; return the exit status."""
    from longtail_det2.engine import lazy, trainer

    from .run import run

    return run((lazy if args.config_file.endswith(".py") else trainer).main, args)
