"""What command-line tools write: results that may be cut off by `| head`, and errors in one safe line."""

import os
import sys

from longtail_det2.utils.wording import printable


def tell(text: str) -> None:
    """Write text and a line end to standard output; work goes on if nobody reads it any more (`| head`)."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_error(error: object) -> int:
    """Write `error: ...` to standard error in one line without control characters; return exit status 2."""
    text = " ".join(line.strip() for line in str(error).splitlines())
    sys.stderr.write(f"error: {printable(text, most=10_000)}\n")
    return 2
