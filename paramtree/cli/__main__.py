"""``python -m paramtree.cli`` is the command ``paramtree``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
