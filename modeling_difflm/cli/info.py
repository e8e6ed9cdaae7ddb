"""``difflm info``: describe a fitted pipeline, from its JSON files and safetensors headers alone."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from difflm.cli.options import HelpFormatter, check_pipeline
from difflm.errors import DamagedPipelineError
from difflm.files import read_json


COMPONENTS = ("autoencoder", "denoiser", "draft", "scheduler")
AUTOENCODER_KEYS = (
    "encoder_name_or_path",
    "encoder_training",
    "decoder_name_or_path",
    "decoder_dtype",
    "latent_size",
    "injection",
    "num_injection_tokens",
    "pooling",
)
DENOISER_KEYS = ("hidden_size", "num_blocks", "class_names")
DRAFT_KEYS = ("hidden_size", "num_blocks", "number_noise", "choice_noise")
TRAINING_KEYS = (
    "fit_seconds",
    "hardware",
    "rows",
    "rows_seen",
    "writer_reason",
    "reconstruction_own_latent",
    "reconstruction_shuffled_latent",
    "reconstruction_draft_alone",
    "kl",
)
# Longest header that safetensors itself accepts: more means that this is no such file.
MAX_HEADER_BYTES = 100_000_000


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file: tensor name to dtype, shape and place. No tensor is read.

    Raises
    ------
    DamagedPipelineError
        If the file is cut off or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise DamagedPipelineError(f"{path}: cut off or no safetensors file; copy the pipeline anew")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise DamagedPipelineError(f"{path}: broken safetensors header; copy the pipeline anew") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end > size:
        raise DamagedPipelineError(f"{path}: cut off ({size} bytes of {8 + length + end}); copy the pipeline anew")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def find_schema(folder: Path, index: dict[str, Any]) -> dict[str, Any] | None:
    """Find the record schema in a pipeline's JSON files: a file of its own, or an entry of the index."""
    candidates: list[Any] = [index]
    candidates += [read_json(path) for path in sorted(folder.glob("*.json")) if "schema" in path.name]
    for candidate in candidates:
        for entry in (candidate, *candidate.values()):
            if isinstance(entry, dict) and "columns" in entry and "record_format" in entry:
                return entry
    return None


def _describe_weights(folder: Path) -> dict[str, Any] | None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    tensors = [entry for path in files for entry in read_safetensors_header(path).values()]
    return {
        "parameters": sum(math.prod(entry["shape"]) for entry in tensors),
        "dtypes": sorted({entry["dtype"] for entry in tensors}),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _describe_component(folder: Path) -> dict[str, Any] | None:
    configs = [folder / "config.json", folder / "scheduler_config.json"]
    config = next((read_json(path) for path in configs if path.is_file()), None)
    if config is None:
        return None
    known = {"autoencoder": AUTOENCODER_KEYS, "denoiser": DENOISER_KEYS, "draft": DRAFT_KEYS}
    keys = known.get(folder.name, ("_class_name",))
    description = {key.lstrip("_"): config[key] for key in keys if key in config}
    if weights := _describe_weights(folder):
        description["weights"] = weights
    return description


def describe(pipeline: str | Path) -> dict[str, Any]:
    """Describe a fitted pipeline as a JSON-able dictionary.

    Parameters
    ----------
    pipeline
        Folder that ``difflm fit`` wrote.

    Returns
    -------
    dict
        ``path``, ``class_name``, ``writer``, ``bytes`` (all files), one entry per component with its settings and
        ``weights`` (``parameters``, ``dtypes``, ``bytes``), ``record_format`` and ``columns``, and ``training`` (the
        figures at the end of the fit), as far as the files tell.

    Raises
    ------
    FileNotFoundError
        If there is no pipeline in the folder.
    DamagedPipelineError
        If one of its files is damaged.
    """
    folder = check_pipeline(str(pipeline))
    index = read_json(folder / "model_index.json")
    class_name = index.get("_class_name")
    description: dict[str, Any] = {
        "path": str(pipeline),
        "class_name": class_name[-1] if isinstance(class_name, list) else class_name,
        "writer": index.get("writer", "lm"),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }
    for name in COMPONENTS:
        if component := _describe_component(folder / name):
            description[name] = component
    if schema := find_schema(folder, index):
        description["record_format"] = schema["record_format"]
        description["columns"] = schema["columns"]
    log = folder / "training_log.json"
    if log.is_file():
        content = read_json(log)
        description["training"] = {key: content[key] for key in TRAINING_KEYS if content.get(key) is not None}
    return description


def _column_line(column: dict[str, Any]) -> str:
    kind = str(column.get("kind"))
    details = []
    if column.get("categories"):
        categories = [str(value) for value in column["categories"]]
        shown = ", ".join(categories[:6]) + (", ..." if len(categories) > 6 else "")
        details.append(f"{len(categories)}: {shown}")
    elif column.get("minimum") is not None:
        details.append(f"{column['minimum']} to {column['maximum']}")
    if column.get("decimals"):
        details.append(f"{column['decimals']} decimal{'s' if column['decimals'] > 1 else ''}")
    if column.get("max_length"):
        details.append(f"at most {column['max_length']} characters")
    if column.get("nullable"):
        details.append("may be missing")
    return f"  {column.get('name', '?')}: {kind}" + (f" ({'; '.join(details)})" if details else "")


def render(description: dict[str, Any]) -> str:
    """Lay a description out as text for people."""
    lines = [f"{description['path']}: {description['class_name']}, {description['bytes'] / 2**20:.1f} MiB"]
    why = description.get("training", {}).get("writer_reason")
    who = "draft" if description["writer"] == "draft" else "language model"
    lines.append(f"records are written by the {who}" + (f" ({why})" if why else ""))
    for name in COMPONENTS:
        if name not in description:
            continue
        component = dict(description[name])
        weights = component.pop("weights", None)
        lines.append(f"{name}")
        if weights:
            lines.append(
                f"  {weights['parameters']:,} parameters in {weights['bytes'] / 2**20:.1f} MiB "
                f"({', '.join(weights['dtypes'])})"
            )
        lines += [f"  {key}: {value}" for key, value in component.items() if value is not None]
    if "columns" in description:
        lines.append(f"{len(description['columns'])} columns, written as {description['record_format']}")
        lines += [_column_line(column) for column in description["columns"]]
    if description.get("training"):
        lines.append("training")
        lines += [
            f"  {key}: {value:.4g}" if isinstance(value, float) else f"  {key}: {value}"
            for key, value in description["training"].items()
            if key != "writer_reason"
        ]
    return "\n".join(lines)


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    info = commands.add_parser(
        "info",
        help="describe a fitted pipeline",
        description="Describe a fitted pipeline: its models, columns and how its training ended. Loads no weights.",
        formatter_class=HelpFormatter,
    )
    info.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    info.add_argument("--json", action="store_true", help="print one JSON object (default: text for people)")
    info.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Describe; return the exit status."""
    description = describe(arguments.pipeline)
    if arguments.json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        print(render(description))
    return 0
