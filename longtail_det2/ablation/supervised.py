"""Runs a command that ends when the process that started it ends, however that ends.

    python -m longtail_det2.ablation.supervised PARENT COMMAND ...

Without this, trainings would go on after a `kill -9` of the command that runs them, and be in the way of its
next start. Linux does it; elsewhere the command runs on, and the lock of the output folder tells of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def main(arguments: Sequence[str]) -> int:
    """Becomes the command.

    Args:
        arguments: the process id of the parent, then the command.

    Returns:
        1 where the parent has ended already; else it does not return.
    """
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1
    return os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
