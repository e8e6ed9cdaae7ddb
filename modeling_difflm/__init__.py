"""DiffLM: synthetic structured data from a latent diffusion model in front of a frozen language model.

The names below are what is stable. They are resolved on first use, so that ``import difflm`` (and ``difflm --help``)
costs nothing: torch, transformers and diffusers are imported only when a model is really wanted.
"""

import os
import sys


if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    # `python -m difflm` runs: Python put the working directory first, and it may be a checkpoint of somebody else's,
    # with a `torch.py` in it.
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

if TYPE_CHECKING:
    from difflm.errors import DiffLMError
    from difflm.modeling_denoiser import DiffLMDenoiser
    from difflm.modeling_difflm import DiffLMConfig, DiffLMModel
    from difflm.pipelines.errors import RecordParseError, SchemaError
    from difflm.pipelines.pipeline_difflm import DiffLMPipeline, DiffLMPipelineOutput
    from difflm.pipelines.record_schema import RecordSchema
    from difflm.training.data import TableError, read_table
    from difflm.training.fitting import fit
    from difflm.training.overlong import RecordTooLongError

_MODULE_OF = {
    "DiffLMConfig": "difflm.modeling_difflm",
    "DiffLMDenoiser": "difflm.modeling_denoiser",
    "DiffLMError": "difflm.errors",
    "DiffLMModel": "difflm.modeling_difflm",
    "DiffLMPipeline": "difflm.pipelines.pipeline_difflm",
    "DiffLMPipelineOutput": "difflm.pipelines.pipeline_difflm",
    "RecordParseError": "difflm.pipelines.errors",
    "RecordSchema": "difflm.pipelines.record_schema",
    "RecordTooLongError": "difflm.training.overlong",
    "SchemaError": "difflm.pipelines.errors",
    "TableError": "difflm.training.data",
    "fit": "difflm.training.fitting",
    "read_table": "difflm.training.data",
}

__all__ = [
    "DiffLMConfig",
    "DiffLMDenoiser",
    "DiffLMError",
    "DiffLMModel",
    "DiffLMPipeline",
    "DiffLMPipelineOutput",
    "RecordParseError",
    "RecordSchema",
    "RecordTooLongError",
    "SchemaError",
    "TableError",
    "__version__",
    "fit",
    "read_table",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
