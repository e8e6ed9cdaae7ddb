"""Train the autoencoder alone and encode the records: the first half of a fit, with every TrainingArguments option.

    python -m difflm.training.train_autoencoder --data data.csv --save_dir autoencoder --output_dir checkpoints

``--save_dir`` gets the autoencoder (``from_pretrained``), ``schema.json`` and ``latents.safetensors``, which
``python -m difflm.training.train_denoiser`` trains on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, set_seed

from difflm.files import write_json
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.encode_latents import encode_latents
from difflm.training.latents import LatentDataset
from difflm.training.record_dataset import RecordDataset
from difflm.training.stages import load_model, read_data, resolve_settings, split_records


@dataclass
class ScriptArguments:
    """What is trained on what."""

    data: str = field(metadata={"help": "Table: .csv, .tsv, .parquet, .jsonl or .json."})
    save_dir: str = field(metadata={"help": "Folder for the trained autoencoder and the latents."})
    validation: str | None = field(default=None, metadata={"help": "Held-out table. None: a tenth of the data."})
    preset: str = field(default="small", metadata={"help": "tiny, small or paper: models and record format."})
    encoder: str | None = field(default=None, metadata={"help": "Encoder instead of the preset's."})
    decoder: str | None = field(default=None, metadata={"help": "Frozen causal LM instead of the preset's."})
    injection: str | None = field(default=None, metadata={"help": "kv_memory, soft_prompt or embedding."})
    record_format: str | None = field(default=None, metadata={"help": "json or values."})
    max_length: int = field(default=1024, metadata={"help": "Most decoder tokens of a record."})
    model_kwargs: str = field(default="{}", metadata={"help": "Further fields of DiffLMConfig, as JSON."})


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    parts: Any = (ScriptArguments, AutoencoderTrainingArguments)
    script, args = HfArgumentParser(parts).parse_args_into_dataclasses(args=arguments)
    settings = resolve_settings(
        script.preset,
        encoder=script.encoder,
        decoder=script.decoder,
        injection=script.injection,
        record_format=script.record_format,
    )
    frame = read_data(script.data)
    schema = RecordSchema.infer(frame, record_format=settings.record_format)
    records = schema.to_records(frame)
    if script.validation is None:
        train, held_out = split_records(records, args.seed)
    else:
        train, held_out = records, schema.to_records(read_data(script.validation))
    set_seed(args.seed)
    model, (encoder_tokenizer, decoder_tokenizer) = load_model(
        settings, json.loads(script.model_kwargs), schema, train
    )
    train_set, held_out_set = (
        RecordDataset(part, schema, encoder_tokenizer, decoder_tokenizer, model.config.eos_token_id, script.max_length)
        for part in (train, held_out)
    )
    pad = encoder_tokenizer.pad_token_id or 0
    trainer = AutoencoderTrainer(model, args, train_set, held_out_set, pad)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_metrics("eval", trainer.keep_best())
    folder = Path(script.save_dir)
    model.save_pretrained(folder)
    write_json(folder / "schema.json", schema.to_dict())
    posterior = encode_latents(model, train_set, encoder_pad_token_id=pad, show_progress=not args.disable_tqdm)
    LatentDataset(mean=posterior.mean, log_variance=posterior.log_variance).save(folder / "latents.safetensors")


if __name__ == "__main__":
    main()
