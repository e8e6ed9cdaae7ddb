"""The ``difflm`` command: its sub-commands, and what a user is told when one of them fails.

Nothing heavy is imported until the arguments are known to be right: ``difflm fit --help`` loads neither torch nor
transformers, and a mistyped option is reported at once.
"""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from difflm import __version__
from difflm.cli import card, evaluate, fit, info, push, sample, space
from difflm.cli.options import HelpFormatter
from difflm.errors import DiffLMError


# In the order of the help. A module adds its parser, and sets `run` and, if it has more to say, `interrupted`.
COMMANDS = (fit, sample, evaluate, info, card, push, space)
USER_ERROR = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``difflm`` with its sub-commands."""
    parser = argparse.ArgumentParser(
        prog="difflm",
        description="Synthetic structured data from a latent diffusion model in front of a frozen language model.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"difflm {__version__}")
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show the whole traceback of an error, and where a warning comes from (default: one line)",
    )
    names = ",".join(module.__name__.rpartition(".")[2] for module in COMMANDS)
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{names}}}")
    for module in COMMANDS:
        module.add_command(commands)
    return parser


def _raised_by_us(error: BaseException) -> bool:
    """Tell a refusal of ours from a defect: our own code raised it, on purpose."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "difflm"


def user_message(error: BaseException) -> str | None:
    """Return the one line that tells a user what went wrong, or None if the error is a defect of the program."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in str(error):
        where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"no space left on the disk{where}; free some and run again (a fit goes on with --resume)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    refusal = isinstance(error, OSError) or isinstance(error, ValueError | ImportError) and _raised_by_us(error)
    return " ".join(str(error).split()) if refusal or isinstance(error, DiffLMError) else None


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: Any = None,
) -> None:
    """Print a warning as the command's errors are printed: one line, without a place in the code."""
    print(f"difflm: warning: {' '.join(str(message).split())}", file=file or sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``difflm`` command.

    Parameters
    ----------
    argv
        The words after ``difflm``; default: those of the process.

    Returns
    -------
    int
        0 if all went well, 1 if fewer records than wanted became valid, 2 for an error of the user's (one line on
        stderr), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words)
    try:
        with warnings.catch_warnings():
            if not arguments.traceback:
                warnings.showwarning = _tell_warning
            return arguments.run(arguments)
    except KeyboardInterrupt:
        told = getattr(arguments, "interrupted", None)
        print(f"difflm: {told(arguments, words) if told else 'interrupted; nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `difflm info out | head`: the reader has what it wanted. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = user_message(error)
        if message is None or arguments.traceback:
            raise
        print(f"difflm: error: {message}", file=sys.stderr)
        return USER_ERROR
