"""The command line of the train scripts; what a user can get wrong ends in one line and exit code 2."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.engine import default_argument_parser
from torch.multiprocessing import ProcessExitedException

from longtail_det2.utils.errors import ConfigError, DataError

from .launch import launch
from .training_step import NonFiniteLossError

USER_ERROR = 2
"""Exit code after an error that the user can mend."""

_USER_ERRORS = (ConfigError, DataError, NonFiniteLossError)
_DETECTRON2, _TRAINING_LOOP = "detectron2", "detectron2.engine.train_loop"

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
_YAML_EXAMPLES = {
    "weights": "MODEL.WEIGHTS output/model_final.pth",
    "stores": "DATASETS.STORES my_train=DIR,my_val=DIR DATASETS.TRAIN my_train DATASETS.TEST my_val",
}
_LAZY_EXAMPLES = {
    "weights": "train.init_checkpoint=output/model_final.pth",
    "stores": "\"datasets.stores=['my_train=DIR']\" dataloader.train.dataset.names=my_train",
}


def parse_args(argv: Sequence[str] | None = None, *, lazy: bool = False) -> argparse.Namespace:
    """Detectron2's arguments.

    They are --config-file, --resume, --eval-only, --num-gpus, --num-machines, --machine-rank, --dist-url and
    trailing config options.

    Args:
        argv: None for the process's own.
        lazy: show the examples of lazy configs in the help.
    """
    parser = default_argument_parser(_EPILOG.format(**(_LAZY_EXAMPLES if lazy else _YAML_EXAMPLES)))
    return parser.parse_args(argv)


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Runs ``main(args)`` in all processes of the job.

    Returns:
        The exit code: 0, or 2 after an error that the user can mend, which is on standard error in one line
        without a traceback. Other exceptions pass.
    """
    try:
        launch(
            _without_traceback,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (main, args),
        )
    except ProcessExitedException as error:
        return error.exit_code or 1
    except (ConfigError, DataError) as error:  # of the launcher itself
        return _tell(error)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _without_traceback(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    training, only_to_files = logging.getLogger(_TRAINING_LOOP), _TracebacksOnlyToFiles()
    training.addFilter(only_to_files)
    try:
        main(args)
    except _USER_ERRORS as error:
        sys.exit(_tell(error))
    finally:
        training.removeFilter(only_to_files)


class _TracebacksOnlyToFiles(logging.Filter):
    """Sends what the training loop logs about an error of the user's to log.txt, but not to the console."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.exc_info and isinstance(record.exc_info[1], _USER_ERRORS)):
            return True
        for handler in logging.getLogger(_DETECTRON2).handlers:
            # The console's streams have names too, which are no files.
            name = getattr(getattr(handler, "stream", None), "name", None)
            if isinstance(name, str) and os.path.isfile(name):
                handler.handle(record)
        return False


def _tell(error: Exception) -> int:
    message = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", message):
        # It arrives with that process's traceback in front of its message.
        own = list(re.finditer(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", message, re.M))
        message = message[own[-1].end() :] if own else message
    sys.stderr.write(f"error: {message.strip()}\n")
    return USER_ERROR
