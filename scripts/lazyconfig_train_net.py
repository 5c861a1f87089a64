#!/usr/bin/env python3
"""Trains or evaluates a detector that a lazy (Python) config describes (`--help` shows how)."""

import sys
import warnings

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

from longtail_det2.cli.arguments import parse_args  # noqa: E402

if __name__ == "__main__":
    args = parse_args(lazy=True)  # before PyTorch is imported, so that --help takes no time
    from longtail_det2.cli.run import run
    from longtail_det2.engine.lazy import main

    sys.exit(run(main, args))
