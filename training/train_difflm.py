"""``python -m difflm.training.train_difflm``: both halves of a fit, with the options of ``difflm fit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    from difflm.__main__ import main as command

    return command(["fit", *(sys.argv[1:] if words is None else words)])


if __name__ == "__main__":
    raise SystemExit(main())
