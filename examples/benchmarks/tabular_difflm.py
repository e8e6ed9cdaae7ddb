"""DiffLM in tabular.py: fitted within the budget, sampled from any prior, and kept for the next run."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.modeling_outputs import BaseModelOutput

from difflm.files import atomic_file, write_text
from difflm.pipelines.packed_attention import supports
from difflm.training.evaluation.tables import subsample


# Sampled between two looks at the clock.
ROWS_AT_ONCE = 500
# Name of the method to the prior that its latents are drawn from.
PRIORS = {
    "difflm": "diffusion",
    "difflm_gmm": "gmm",
    "difflm_gaussian": "gaussian",
    "difflm_encode": "encode",
    "difflm_no_draft": "diffusion",
    "difflm_draft_alone": "diffusion",
}
# Fits of their own: fields of DiffLMConfig.
MODELS: dict[str, dict[str, Any]] = {"difflm_no_draft": {"draft_places": None}}


def sample_difflm(
    method: str,
    tables: dict[str, pd.DataFrame],
    count: int,
    folder: Path,
    seed: int,
    preset: str,
    budget_minutes: float,
    sample_minutes: float,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit a DiffLM within the budget and sample it within its time, unless ``folder`` holds the results.

    A method with a model of its own has its fit beside the folder.
    """
    from difflm import fit
    from difflm.pipelines import DiffLMPipeline
    from difflm.training.preparation import resolve_settings

    prior = PRIORS[method]
    if method in MODELS:
        folder = folder.with_name(f"{folder.name}-{method}")
    details: dict[str, Any] = {"preset": preset, "prior": prior}
    if not (folder / "model_index.json").is_file():
        fit(
            tables["train"],
            folder,
            preset=preset,
            seed=seed,
            max_minutes=budget_minutes,
            validation=tables["validation"],
            model_kwargs=MODELS.get(method),
            overwrite=True,  # one that was cut off would get more than the budget if it went on
        )
    kept = json.loads((folder / "difflm_fit.json").read_text(encoding="utf-8"))
    wanted = dataclasses.asdict(resolve_settings(preset, max_minutes=budget_minutes)) | {"rows": len(tables["train"])}
    for name, value in (kept["settings"] | {"rows": kept["rows"]}).items():
        # The batch size is the machine's choice.
        if name != "batch_size" and value != wanted.get(name):
            raise SystemExit(f"{folder} holds a fit with {name} {value}, not {wanted.get(name)}: name another folder")
    # From the log: a fit that is used again, for another prior say, took as long.
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    details |= {"fit_seconds": round(log["fit_seconds"], 1), "rows_seen": log["rows_seen"]}
    details["epochs"] = round(log["rows_seen"] / log["rows"], 2)
    details |= {name: log[name] for name in ("hardware", "fit_cpu_seconds", "peak_memory_mib") if name in log}
    nats = ("reconstruction_own_latent", "reconstruction_shuffled_latent", "reconstruction_draft_alone")
    details |= {name: round(log[name], 3) for name in nats if log.get(name) is not None}
    # Row i depends on the seed and i alone: rows sampled before are the first.
    parts, sampled = [], {"sample_seconds": 0.0, "validity_rate": 1.0}
    alone = method == "difflm_draft_alone"
    name = f"rows-{prior}{'-draft' if alone else ''}"
    known = [
        path
        for path in folder.glob(f"{name}-[0-9]*.parquet")
        if (_count(path) == count or (_count(path) < count and prior == "diffusion"))
        and path.with_suffix(".json").is_file()
        and _notes(path)["sample_minutes"] <= sample_minutes
    ]
    if known:
        most = max(known, key=_count)
        parts, sampled = [pd.read_parquet(most)], _notes(most)
        del sampled["sample_minutes"]
    done = sum(map(len, parts))
    seconds_left = 60 * sample_minutes - sampled["sample_seconds"]
    if done == count or (done and seconds_left <= 0):
        return parts[0], details | sampled
    pipe, started = DiffLMPipeline.from_pretrained(folder), time.monotonic()
    latents = None
    if prior != "diffusion":
        # Ten thousand rows are enough for a mixture; encoding more takes minutes.
        records = subsample(tables["train"], 10_000, seed)
        latents = pipe.prior_latents(prior, count, records=records, seed=seed)
    valid = done * sampled["validity_rate"]
    while done < count and time.monotonic() - started < seconds_left:
        size = min(ROWS_AT_ONCE, count - done)
        part = None if latents is None else latents[done : done + size]
        with silenced(pipe.autoencoder.decoder) if alone else contextlib.nullcontext():
            result = pipe(num_samples=size, seed=seed, latents=part, first_row=done)
        parts.append(result.to_pandas())
        valid += size * float(result.valid_first_attempt)
        done += size
    rows = pd.concat(parts, ignore_index=True)
    seconds = round(sampled["sample_seconds"] + time.monotonic() - started, 1)
    sampled = {"sample_seconds": seconds, "validity_rate": valid / done}
    kept = folder / f"{name}-{done}.parquet"
    notes = json.dumps(sampled | {"sample_minutes": sample_minutes})
    with atomic_file(kept) as temporary:
        rows.to_parquet(temporary)
    write_text(kept.with_suffix(".json"), notes)
    return rows, details | sampled


@contextlib.contextmanager
def silenced(decoder: Any) -> Iterator[None]:
    """While open, the language model's layers say nothing: tokens are drawn from what the draft says alone."""
    if not supports(decoder):
        raise SystemExit("the draft alone can only be sampled with a decoder that runs packed")
    layers = decoder.base_model
    before = layers.forward
    layers.forward = lambda inputs_embeds, **kwargs: BaseModelOutput(torch.zeros_like(inputs_embeds))
    try:
        yield
    finally:
        layers.forward = before


def _notes(path: Path) -> dict[str, float]:
    """What was noted of kept rows; the time limit that they were sampled under among it."""
    return {"sample_minutes": 0.0} | json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _count(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
