"""Loading a saved pipeline's components with the installed difflm: checked first, and only what is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cell_codes import CellCodes
from .checkpoint_safety import MODELS, OPTIONAL, TOKENIZERS, library_class, read_index, verify, weight_digests
from .deferred_components import DeferredComponent
from .record_schema import RecordSchema


DECODER_ARGUMENTS = ("decoder", "decoder_name_or_path", "decoder_dtype", "decoder_kwargs")


def load_components(folder: Path, arguments: dict[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of [`DiffLMPipeline`] from a saved pipeline.

    Parameters
    ----------
    folder : Path
    arguments : dict
        Of the caller: components by name, which are not loaded then, and the decoder's; they are taken out of it.
    hub : mapping
        How the decoder is downloaded.

    Raises
    ------
    FileNotFoundError, DamagedPipelineError
        See [`verify`].
    """
    index = read_index(folder)
    waiting = _deferrable(index) - arguments.keys()
    verify(folder, index.keys() - waiting)
    of_decoder = {name: arguments.pop(name) for name in DECODER_ARGUMENTS if name in arguments}
    components: dict[str, Any] = dict.fromkeys(OPTIONAL)
    for name, entry in index.items():
        if name in arguments:
            components[name] = arguments.pop(name)
        elif isinstance(entry, list) and not name.startswith("_"):
            cls = _installed_class(name, entry[1])
            options: dict[str, Any] = {"use_safetensors": True} if name in MODELS else {}
            if name == "autoencoder":
                options |= {**of_decoder, **hub}
            if name in waiting:
                entry = (cls.__module__ if name in MODELS else entry[0], entry[1])
                components[name] = DeferredComponent(
                    cls, folder, name, entry, weight_digests(index, [name]), options
                )
            else:
                components[name] = cls.from_pretrained(folder / name, **options)
        elif not name.startswith("_"):
            components[name] = entry
    return components


def _deferrable(index: Mapping[str, Any]) -> set[str]:
    """The components that a pipeline does without whose draft writes all columns."""
    if index.get("writer") != "draft" or not CellCodes(RecordSchema.from_dict(index["record_schema"])).complete:
        return set()
    return {"autoencoder", *TOKENIZERS} & index.keys()


def _installed_class(component: str, class_name: str) -> Any:
    """The class of a component, from the installed packages; of the models only what is needed is imported."""
    try:
        if component == "autoencoder":
            from difflm.modeling_difflm import DiffLMModel

            return DiffLMModel
        if component == "denoiser":
            from difflm.modeling_denoiser import DiffLMDenoiser

            return DiffLMDenoiser
        if component == "draft":
            from difflm.modeling_draft import ColumnDraft

            return ColumnDraft
    except ImportError as error:
        raise ImportError("Loading without remote code needs the difflm package: `pip install difflm`.") from error
    return library_class(component, class_name)
