"""DiffLM in tabular.py: fitted within the budget, sampled from any prior, and kept for the next run."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from difflm.files import atomic_file, write_text
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
    "difflm_lm": "diffusion",
}
# Fits of their own: fields of the preset.
SETTINGS: dict[str, dict[str, Any]] = {"difflm_no_draft": {"column_draft": False}}
# Who writes, where that is not what the fit decided.
WRITERS = {"difflm_lm": "lm"}


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

    A method with settings of its own has its fit beside the folder.
    """
    from difflm import fit
    from difflm.pipelines import DiffLMPipeline
    from difflm.training.preparation import resolve_settings

    prior = PRIORS[method]
    settings = dataclasses.replace(resolve_settings(preset, max_minutes=budget_minutes), **SETTINGS.get(method, {}))
    if method in SETTINGS:
        folder = folder.with_name(f"{folder.name}-{method}")
    details: dict[str, Any] = {"preset": preset, "prior": prior}
    if not (folder / "model_index.json").is_file():
        fit(
            tables["train"],
            folder,
            preset=settings,
            seed=seed,
            validation=tables["validation"],
            overwrite=True,  # one that was cut off would get more than the budget if it went on
        )
    kept = json.loads((folder / "difflm_fit.json").read_text(encoding="utf-8"))
    wanted = dataclasses.asdict(settings) | {"rows": len(tables["train"])}
    for name, value in (kept["settings"] | {"rows": kept["rows"]}).items():
        # The batch size is the machine's choice.
        if name != "batch_size" and value != wanted.get(name):
            raise SystemExit(f"{folder} holds a fit with {name} {value}, not {wanted.get(name)}: name another folder")
    # From the log: a fit that is used again, for another prior say, took as long.
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    details |= {"fit_seconds": round(log["fit_seconds"], 1), "rows_seen": log["rows_seen"]}
    details["epochs"] = round(log["rows_seen"] / log["rows"], 2)
    details |= {name: log[name] for name in ("hardware", "fit_cpu_seconds", "peak_memory_mib") if name in log}
    nats = ("reconstruction_own_latent", "reconstruction_shuffled_latent", "reconstruction_draft_alone", "draft_nats")
    details |= {name: round(log[name], 3) for name in nats if log.get(name) is not None}
    parts_of_fit = ("draft_seconds", "denoiser_seconds", "encoding_seconds", "autoencoder_seconds")
    details |= {name: round(log[name], 1) for name in parts_of_fit if name in log} | {"writer": log["writer"]}
    # Row i depends on the seed and i alone: rows sampled before are the first.
    parts, sampled = [], {"sample_seconds": 0.0, "validity_rate": 1.0}
    writer = WRITERS.get(method, "auto")
    name = f"rows-{prior}{'' if writer == 'auto' else f'-{writer}'}"
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
        result = pipe(num_samples=size, seed=seed, latents=part, first_row=done, writer=writer)
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


def _notes(path: Path) -> dict[str, float]:
    """What was noted of kept rows; the time limit that they were sampled under among it."""
    return {"sample_minutes": 0.0} | json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _count(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
