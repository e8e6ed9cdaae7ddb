"""Command-line options that stand for the fields of a dataclass: only those that were given count."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser


def parse(script: type, training: type, words: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """Parse a script's own options, and those of its training.

    Parameters
    ----------
    script : type
        Dataclass of the script's options.
    training : type
        Dataclass of the training's; a field of both is the script's.
    words : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    tuple
        An instance of ``script``, and the training's options that were given, by name: the others are left to the
        fit's own choice.
    """
    own = {field.name for field in dataclasses.fields(script)}
    parser = HfArgumentParser([training, script], conflict_handler="resolve")  # type: ignore[list-item]
    for action in parser._actions:
        if action.dest not in own:
            action.default = argparse.SUPPRESS
    found = vars(parser.parse_args(words))
    return script(**{name: found.pop(name) for name in own}), found
