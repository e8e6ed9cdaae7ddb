"""Train the denoiser on a fitted autoencoder's latents and save the pipeline: the second half of a fit.

    python -m difflm.training.train_denoiser --autoencoder autoencoder --save_dir out --output_dir checkpoints

``--autoencoder`` is the folder that ``python -m difflm.training.train_autoencoder`` wrote. Options that are not given
are those of ``difflm fit``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from difflm.pipelines.checkpoint_safety import INDEX
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_stage import train_denoiser
from difflm.training.fit_time import FitTime, seconds_used
from difflm.training.fitted_autoencoder import FittedAutoencoder
from difflm.training.fitting import assemble, save_pipeline
from difflm.training.processes import is_main_process
from difflm.training.script_arguments import parse
from difflm.training.script_results import check_result_folder, save_result


@dataclass
class ScriptArguments:
    """Folders and network; the training's own options are [`DenoiserTrainingArguments`]'."""

    autoencoder: str = field(metadata={"help": "Folder that train_autoencoder wrote."})
    save_dir: str = field(metadata={"help": "Folder for the pipeline; an earlier one is replaced."})
    output_dir: str = field(default="denoiser_checkpoints", metadata={"help": "Folder for checkpoints."})
    denoiser: str = field(default="{}", metadata={"help": "Arguments of DiffLMDenoiser to change, as JSON."})
    unconditional: bool = field(default=False, metadata={"help": "Learn no conditions on columns."})
    seed: int | None = field(default=None, metadata={"help": "Default: the autoencoder's."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint, if there is one."})
    show_progress: bool = field(default=True, metadata={"help": "Show a bar with rate, ETA and losses."})


def main(words: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    script, denoiser_kwargs = parse(ScriptArguments, DenoiserTrainingArguments, words)
    try:
        check_result_folder(script.save_dir, INDEX)
        fitted = FittedAutoencoder.load(script.autoencoder)
        changes = json.loads(script.denoiser)
        fitted.settings = replace(fitted.settings, denoiser=fitted.settings.denoiser | changes)
        if script.unconditional:
            fitted.condition_classes = []
            for latents in (fitted.latents, fitted.held_out_latents):
                latents.labels = latents.class_sizes = latents.class_names = None
        denoiser, log = train_denoiser(
            fitted,
            script.output_dir,
            max_seconds=FitTime(fitted.settings, lm_leads=True).denoiser(seconds_used(fitted.log), last=True),
            seed=fitted.log["seed"] if script.seed is None else script.seed,
            resume=script.resume,
            show_progress=script.show_progress,
            denoiser_kwargs=denoiser_kwargs,
        )
        fitted.log |= log
        fitted.log["fit_seconds"] = seconds_used(fitted.log)
        pipeline = assemble(fitted, denoiser)
        save_result(script.save_dir, lambda folder: save_pipeline(pipeline, fitted, folder))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not is_main_process():  # of several processes one speaks
        return 0
    best = min(entry["validation_loss"] for entry in log["denoiser_history"])
    print(
        f"Best validation loss {best:.4f} in {log['denoiser_steps']} steps ({log['denoiser_stop_reason']}), "
        f"{log['denoiser_seconds']:.0f} s. Pipeline saved to {script.save_dir}."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
