"""Run training in its processes; what a user can get wrong ends in one line and exit code 2."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import ProcessExitedException

from longtail_det2.engine.launch import launch
from longtail_det2.engine.training_step import NonFiniteLossError
from longtail_det2.utils.console import tell_error
from longtail_det2.utils.errors import ConfigError, DataError

from .inputs import parse_args

__all__ = ["parse_args", "run"]

_USER_ERRORS = (ConfigError, DataError, NonFiniteLossError)
_DETECTRON2, _TRAINING_LOOP = "detectron2", "detectron2.engine.train_loop"


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Run ``main(args)`` in all processes of the job.

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
    """Send what the training loop logs about an error of the user's to log.txt, but not to the console."""

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
    return tell_error(message.strip())
