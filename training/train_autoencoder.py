"""Train the autoencoder alone and encode the records: the first half of a fit, with every TrainingArguments option.

    python -m difflm.training.train_autoencoder --data data.csv --save_dir autoencoder --output_dir checkpoints

``--save_dir`` gets the autoencoder (``from_pretrained``) and all that ``python -m difflm.training.train_denoiser``
needs to end the fit. Options that are not given are those of ``difflm fit``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from difflm.pipelines.conditions import ConditionEncoder
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.decoder_context import within_context
from difflm.training.fit_parts import FitParts
from difflm.training.fit_time import Writer
from difflm.training.fitted_autoencoder import STAGE
from difflm.training.preparation import prepare, resolve_settings
from difflm.training.script_arguments import parse
from difflm.training.script_results import check_result_folder, save_result


@dataclass
class ScriptArguments:
    """What is trained on what."""

    data: str = field(metadata={"help": "Table: .csv, .tsv, .parquet, .jsonl or .json."})
    save_dir: str = field(metadata={"help": "Folder for the autoencoder and the latents; an earlier one is replaced."})
    output_dir: str = field(default="checkpoints", metadata={"help": "Folder for checkpoints."})
    validation: str | None = field(default=None, metadata={"help": "Held-out table. None: a tenth of the data."})
    domain: str = field(default="tables", metadata={"help": "What the data is."})
    preset: str = field(default="small", metadata={"help": "tiny, small or paper: models and record format."})
    encoder: str | None = field(default=None, metadata={"help": "Encoder instead of the preset's."})
    decoder: str | None = field(default=None, metadata={"help": "Frozen causal LM instead of the preset's."})
    injection: str | None = field(default=None, metadata={"help": "kv_memory, soft_prompt or embedding."})
    record_format: str | None = field(default=None, metadata={"help": "json or values."})
    epochs: float | None = field(default=None, metadata={"help": "Most passes over the table."})
    max_minutes: float | None = field(default=None, metadata={"help": "Limit of both scripts together."})
    batch_size: int | None = field(default=None, metadata={"help": "Records of a training step."})
    max_length: int = field(default=1024, metadata={"help": "Most decoder tokens of a record."})
    overlong: str = field(default="refuse", metadata={"help": "What becomes of longer records: refuse or drop."})
    writer: str = field(default="auto", metadata={"help": "Who writes the records: auto, lm or draft."})
    seed: int = field(default=0, metadata={"help": "Seed of every random choice."})
    read_options: str = field(default="{}", metadata={"help": "How the data is read, as JSON."})
    model_kwargs: str = field(default="{}", metadata={"help": "Further fields of DiffLMConfig, as JSON."})
    policy: str = field(default="{}", metadata={"help": "Constants of training to change, as JSON."})


def main(words: Sequence[str] | None = None) -> None:
    """Run the script."""
    script, training_kwargs = parse(ScriptArguments, AutoencoderTrainingArguments, words)
    check_result_folder(script.save_dir, STAGE)
    resume_from = training_kwargs.pop("resume_from_checkpoint", None)
    names = ("encoder", "decoder", "injection", "record_format", "epochs", "max_minutes", "batch_size")
    chosen = {name: getattr(script, name) for name in names}
    prepared = prepare(
        script.data,
        resolve_settings(script.preset, **chosen, policy=json.loads(script.policy)),
        validation=script.validation,
        domain=script.domain,
        read_options=json.loads(script.read_options),
        max_length=script.max_length,
        overlong=cast(Literal["refuse", "drop"], script.overlong),
        seed=script.seed,
    )
    model_kwargs = json.loads(script.model_kwargs)
    prepared = within_context(prepared, model_kwargs)
    conditions = ConditionEncoder.fit(prepared.train, prepared.schema.columns)
    parts = FitParts(
        prepared,
        conditions,
        writer=cast(Writer, script.writer),
        seed=script.seed,
        show_progress=not training_kwargs.get("disable_tqdm", False),
        model_kwargs=model_kwargs,
        training_kwargs=training_kwargs,
    )
    columns = parts.draft()
    checkpoint = None if resume_from is None else Path(resume_from)
    model, log = parts.autoencoder(columns, Path(script.output_dir), resume_from=checkpoint)
    fitted = parts.encoded(model, columns, log)
    save_result(script.save_dir, fitted.save)


if __name__ == "__main__":
    main()
