#!/usr/bin/env python3
"""Trains or evaluates a detector that a YAML config describes (`--help` shows how)."""

import sys

from longtail_det2.engine.cli import parse_args, run
from longtail_det2.engine.trainer import main

if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
