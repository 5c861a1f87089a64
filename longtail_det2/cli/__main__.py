"""`python -m longtail_det2.cli` is `longtail-det2`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
