"""Re-export of the configuration, which lives beside the model so that one file loads from the Hub."""

from difflm.modeling_difflm import DiffLMConfig


__all__ = ["DiffLMConfig"]
