"""The one base class of the errors that difflm raises on purpose, and those that every part of it raises."""


class DiffLMError(Exception):
    """Base of the errors that difflm raises on purpose; the message names the thing and the remedy."""


class ArgumentError(DiffLMError, ValueError):
    """An argument has the wrong type, is out of range, or does not go with another one."""


class DamagedPipelineError(DiffLMError, ValueError):
    """A saved pipeline is incomplete, altered, or of a newer layout; the message names the file and the remedy."""
