#!/usr/bin/env python3
"""Train or evaluate the detector that a YAML config describes: `longtail-det2 train`."""

import sys

from longtail_det2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
