"""Entry point of the ``difflm`` command and of ``python -m difflm``."""

import sys

from difflm.cli import main


if __name__ == "__main__":
    sys.exit(main())
