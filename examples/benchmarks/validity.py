"""Are all sampled records valid? Checked by the `jsonschema` library, against JSON Schemas, on hostile tables too.

    python examples/benchmarks/validity.py PIPELINE [--num-samples 10000] [--json PATH]

First the fitted pipeline, then tables made to break parsers, each with the pipeline's real tokenizer and an untrained
two-layer decoder: it writes noise wherever the grammar lets it, so nothing but the grammar can make a record valid.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from difflm import DiffLMDenoiser, DiffLMPipeline, RecordSchema
from difflm.build_difflm import from_encoder_decoder
from difflm.files import write_json


HOSTILE: dict[str, pd.DataFrame] = {
    "names with quotes, spaces, braces, unicode": pd.DataFrame(
        {
            'say "hi"': [1, 2, 3],
            " lead, trail ": ["a", "b", "a"],
            "{brace}[0]": [True, False, True],
            "zoë 漢字 🐧": [0.5, 1.5, 2.5],
            "back\\slash\nline": ["x", None, "y"],
        }
    ),
    "200 columns": pd.DataFrame({f"c{i:03d}": [i, i + 1, i + 2] for i in range(200)}),
    "a 500-value category": pd.DataFrame({"code": [f"v {i:03d}" for i in range(500)] * 3, "n": range(1500)}),
    "numbers": pd.DataFrame(
        {
            "negative": [-12.25, -0.5, 3.0],
            "tiny": [1e-7, 2.5e-6, 0.0],
            "huge": [10**15, -(10**15), 7],
            "beyond 2**53": [2**60, 2**61, 2**62],
        }
    ),
    "strings": pd.DataFrame(
        {
            "empty": ["", "null", "true", "1.5", ""] * 12,
            "free": [f'note "{i}"\twith, {{braces}} and ünïcödé \\ {i * 7919}' for i in range(60)],
            "all null": [None] * 60,
        }
    ),
}


def untrained_pipeline(frame: pd.DataFrame, like: DiffLMPipeline, record_format: str) -> DiffLMPipeline:
    """A pipeline of random weights for a table, with another pipeline's tokenizers."""
    torch.manual_seed(0)
    config = like.autoencoder.config
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=like.autoencoder.decoder.config.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    )
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = BertModel(BertConfig(vocab_size=len(like.encoder_tokenizer), **sizes))
    schema = RecordSchema.infer(frame, record_format=record_format)
    return DiffLMPipeline(
        autoencoder=from_encoder_decoder(encoder, decoder, latent_size=8, num_injection_tokens=2).eval(),
        denoiser=DiffLMDenoiser(latent_size=8, hidden_size=16, num_blocks=1),
        scheduler=like.scheduler,
        encoder_tokenizer=like.encoder_tokenizer,
        decoder_tokenizer=like.decoder_tokenizer,
        record_schema=schema.to_dict(),
        max_new_tokens=8192,
    )


def check(name: str, pipe: DiffLMPipeline, num_samples: int) -> dict[str, Any]:
    """Sample, and count the records that the independent validator accepts."""
    pipe.set_progress_bar_config(disable=True)
    validator = jsonschema.Draft202012Validator(pipe.schema.json_schema(bounded=True))
    started, returned, parsed, valid = time.monotonic(), 0, 0, 0
    for output in pipe.stream(num_samples, 1000, seed=0, max_attempts=1, num_inference_steps=20):
        returned += output.report.requested
        parsed += output.report.first_attempt_parsed
        valid += sum(validator.is_valid(json.loads(json.dumps(record))) for record in output.records)
    row = {
        "table": name,
        "record_format": pipe.schema.record_format,
        "sampled": returned,
        "parsed": parsed,
        "valid": valid,
        "valid_percent": 100.0 * valid / returned,
        "seconds": time.monotonic() - started,
    }
    print(
        f"{name:<45} {row['record_format']:<7} {valid:>6} of {returned} valid ({row['valid_percent']:.2f} %)",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a fitted pipeline")
    parser.add_argument("--num-samples", type=int, default=10_000, help="of the pipeline (default: %(default)s)")
    parser.add_argument("--hostile-samples", type=int, default=1000, help="per hostile table (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    fitted = DiffLMPipeline.from_pretrained(arguments.pipeline)
    rows = [
        check(name, untrained_pipeline(frame, fitted, record_format), arguments.hostile_samples)
        for name, frame in HOSTILE.items()
        for record_format in ("values", "json")
    ]
    rows.append(check("the fitted pipeline", fitted, arguments.num_samples))
    if arguments.json:
        write_json(arguments.json, rows)
    if any(row["valid"] != row["sampled"] for row in rows):
        raise SystemExit("Not every record is valid.")


if __name__ == "__main__":
    main()
