"""How a fitted DiffLM is used: noise -> latent -> record. Names are resolved on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from difflm.pipelines.errors import RecordParseError, SchemaError
    from difflm.pipelines.pipeline_difflm import DiffLMPipeline, DiffLMPipelineOutput
    from difflm.pipelines.record_schema import RecordSchema

_MODULE_OF = {
    "DiffLMPipeline": "difflm.pipelines.pipeline_difflm",
    "DiffLMPipelineOutput": "difflm.pipelines.pipeline_difflm",
    "RecordParseError": "difflm.pipelines.errors",
    "RecordSchema": "difflm.pipelines.record_schema",
    "SchemaError": "difflm.pipelines.errors",
}

__all__ = ["DiffLMPipeline", "DiffLMPipelineOutput", "RecordParseError", "RecordSchema", "SchemaError"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
