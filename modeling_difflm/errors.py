"""The one base class of the errors that difflm raises on purpose."""


class DiffLMError(Exception):
    """Base of the errors that difflm raises on purpose; the message names the thing and the remedy."""
