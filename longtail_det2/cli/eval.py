"""Evaluate trained weights on the test data of a YAML or lazy (Python) config: `train --eval-only`.

The results lie in inference/<data set> below OUTPUT_DIR (lazy: train.output_dir). With --resume the weights
are those of the newest checkpoint there.
"""

import argparse

from . import train
from .inputs import add_process_arguments

EPILOG = """\
examples:
  %(prog)s --config-file output/my_run/config.yaml MODEL.WEIGHTS output/my_run/model_final.pth
  %(prog)s --config-file CONFIG.py train.init_checkpoint=output/my_run/model_final.pth
"""
add_arguments = add_process_arguments


def run(args: argparse.Namespace) -> int:
    """Evaluate in all processes of the job; return the exit status."""
    args.eval_only = True
    return train.run(args)
