"""The ``difflm`` command; a file for each sub-command."""

from difflm.cli.command import main


__all__ = ["main"]
