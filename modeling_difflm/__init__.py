"""DiffLM: synthetic structured data from a latent diffusion model in front of a frozen language model.

The names below are resolved on first use, so that ``import difflm`` (and ``difflm --help``) costs nothing:
torch, transformers and diffusers are imported only when a model is really wanted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

if TYPE_CHECKING:
    from difflm.modeling_denoiser import DiffLMDenoiser
    from difflm.modeling_difflm import DiffLMConfig, DiffLMModel
    from difflm.pipelines.pipeline_difflm import DiffLMPipeline, DiffLMPipelineOutput
    from difflm.pipelines.record_schema import RecordSchema

_MODULE_OF = {
    "DiffLMConfig": "difflm.modeling_difflm",
    "DiffLMModel": "difflm.modeling_difflm",
    "DiffLMDenoiser": "difflm.modeling_denoiser",
    "DiffLMPipeline": "difflm.pipelines.pipeline_difflm",
    "DiffLMPipelineOutput": "difflm.pipelines.pipeline_difflm",
    "RecordSchema": "difflm.pipelines.record_schema",
}

__all__ = [
    "DiffLMConfig",
    "DiffLMDenoiser",
    "DiffLMModel",
    "DiffLMPipeline",
    "DiffLMPipelineOutput",
    "RecordSchema",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
