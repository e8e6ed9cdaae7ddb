"""Fit a denoiser to the latents of a training set.

Example
-------
python -m difflm.training.train_denoiser --latents_file run/latents.safetensors --save_dir run/denoiser \
    --output_dir run/denoiser_checkpoints --hidden_size 512 --max_seconds 600 --resume auto
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from difflm.files import write_json
from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer, DenoiserTrainingResult
from difflm.training.latents import LatentDataset


RESULT_FILE = "training_result.json"


@dataclass
class DenoiserScriptArguments:
    """Files and network of the script; the training's own arguments are [`DenoiserTrainingArguments`]."""

    latents_file: str = field(metadata={"help": "Safetensors file of training latents, written by LatentDataset."})
    save_dir: str = field(metadata={"help": "Folder for the trained denoiser."})
    validation_latents_file: str | None = field(
        default=None, metadata={"help": "File of held-out latents. None: a share of the training latents."}
    )
    hidden_size: int = field(default=512, metadata={"help": "Width of the denoiser."})
    num_blocks: int = field(default=4, metadata={"help": "Number of residual blocks."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability inside the blocks."})
    unconditional: bool = field(default=False, metadata={"help": "Ignore the labels of the latents file."})


def build_denoiser(script_args: DenoiserScriptArguments, data: LatentDataset) -> DiffLMDenoiser:
    """Build a denoiser that fits the latents, with their classes and the digests of their records."""
    conditional = data.labels is not None and not script_args.unconditional
    denoiser = DiffLMDenoiser(
        latent_size=data.mean.shape[1],
        hidden_size=script_args.hidden_size,
        num_blocks=script_args.num_blocks,
        dropout=script_args.dropout,
        class_sizes=data.class_sizes if conditional else None,
        class_names=data.class_names if conditional else None,
    )
    if data.record_digests is not None:
        denoiser.set_record_digests(data.record_digests)
    return denoiser


def run(script_args: DenoiserScriptArguments, training_args: DenoiserTrainingArguments) -> DenoiserTrainingResult:
    """Train, save the denoiser and write ``training_result.json`` beside it."""
    data = LatentDataset.load(script_args.latents_file)
    validation_file = script_args.validation_latents_file
    validation_data = LatentDataset.load(validation_file) if validation_file is not None else None
    torch.manual_seed(training_args.seed)  # For the initial weights; the trainer seeds everything else itself.
    denoiser = build_denoiser(script_args, data)
    result = DenoiserTrainer(denoiser, training_args, data, validation_data).train()
    denoiser.save_pretrained(script_args.save_dir)
    write_json(Path(script_args.save_dir) / RESULT_FILE, asdict(result), indent=2)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    parser = HfArgumentParser([DenoiserScriptArguments, DenoiserTrainingArguments])  # type: ignore[list-item]
    script_args, training_args = parser.parse_args_into_dataclasses(args=list(argv) if argv is not None else None)
    try:
        result = run(script_args, training_args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"Best validation loss {result.best_validation_loss:.4f} at step {result.best_step} of {result.steps} "
        f"({result.stop_reason}), {result.seconds:.0f} s. Denoiser saved to {script_args.save_dir}."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
