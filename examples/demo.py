"""``make demo``: fit a DiffLM on the Palmer penguins with real weights, sample it, and check what comes out."""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from difflm.files import write_json
from difflm.pipelines.table_files import write_records
from difflm.training.reports.fit_report import Check, ReportContents, write_report
from difflm.training.reports.table_comparison import (
    ColumnComparison,
    compare_columns,
    format_comparison,
    format_table,
    mean_shape_error_percent,
)
from difflm.training.versions import installed_versions


if TYPE_CHECKING:
    from difflm.pipelines import DiffLMPipeline, DiffLMPipelineOutput

# What the demo promises: it exits with an error if one of these does not hold.
MIN_VALID_FIRST_ATTEMPT = 0.95
MAX_MEAN_SHAPE_ERROR_PERCENT = 15.0
MAX_BODY_MASS_DEVIATION_PERCENT = 10.0
MAX_NULL_RATE_DIFFERENCE = 5.0

# The fit ends by steps and by what held-out records cost, so that a slow or busy machine comes to the same records.
# The language model gets enough steps to write them, too; more are a matter of minutes.
FIT_POLICY = {"floor_steps": 40, "warm_up_max_epochs": 100}
BATCH_SIZE = 100
LANGUAGE_MODEL_SAMPLES = 50
PACKAGES = ("difflm", "torch", "transformers", "diffusers", "llguidance", "sdmetrics", "numpy", "pandas")


@dataclass(frozen=True)
class Sampled:
    """Everything the demo sampled.

    Parameters
    ----------
    output
        Records of the pipeline in memory.
    by_language_model, unconstrained
        Records that the language model wrote, with and without constrained decoding.
    seconds, language_model_seconds
        Time that the first two took.
    reloaded
        The same records from the saved pipeline in a new process, as JSON lines.
    """

    output: "DiffLMPipelineOutput"
    by_language_model: "DiffLMPipelineOutput"
    unconstrained: "DiffLMPipelineOutput"
    seconds: float
    language_model_seconds: float
    reloaded: bytes

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of ``output``."""
        return self.output.records or []

    @property
    def rows_per_second(self) -> float:
        """Records sampled per second, in memory."""
        return len(self.records) / max(self.seconds, 1e-9)

    @property
    def language_model_rows_per_second(self) -> float:
        """The same where the language model writes."""
        return len(self.by_language_model.records or []) / max(self.language_model_seconds, 1e-9)


def penguins_csv() -> Path:
    """Path of the Palmer penguins table (CC0) in the installed package ``palmerpenguins``, which is not imported.

    Raises
    ------
    ModuleNotFoundError
        If the package is missing; the message says what to install.
    """
    spec = importlib.util.find_spec("palmerpenguins")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo needs the package palmerpenguins: pip install 'difflm[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data" / "penguins.csv"


def sample_in_new_process(pipeline: Path, num_samples: int, seed: int, output: Path) -> bytes:
    """Sample the saved pipeline with the ``difflm`` command in a process of its own and return the JSON lines."""
    command = [sys.executable, "-m", "difflm", "sample", str(pipeline), "-o", str(output), "--overwrite"]
    command += ["-n", str(num_samples), "--seed", str(seed), "--batch-size", str(BATCH_SIZE)]
    subprocess.run(command, check=True)
    return output.read_bytes()


def sample(pipe: "DiffLMPipeline", folder: Path, num_samples: int, seed: int) -> Sampled:
    """Sample the pipeline in memory, as it decides and by the language model, and its saved copy in a new process."""
    print(f"\nSampling {num_samples} records", flush=True)
    started = time.monotonic()
    output = pipe(num_samples=num_samples, seed=seed, batch_size=BATCH_SIZE)
    seconds = time.monotonic() - started
    options: dict[str, Any] = {"num_samples": min(LANGUAGE_MODEL_SAMPLES, num_samples), "batch_size": BATCH_SIZE}
    print(f"\nSampling {options['num_samples']} records by the language model", flush=True)
    started = time.monotonic()
    by_language_model = pipe(seed=seed, writer="lm", **options)
    language_model_seconds = time.monotonic() - started
    print(f"\nSampling {options['num_samples']} of its records without constrained decoding", flush=True)
    with warnings.catch_warnings():
        # Only the first attempt counts here: that some rows are given up is what is measured.
        warnings.filterwarnings("ignore", message=".*were given up")
        unconstrained = pipe(seed=seed + 1, writer="lm", constrained=False, max_attempts=1, **options)
    print(f"\nReloading {folder / 'pipeline'} in a new process", flush=True)
    reloaded = sample_in_new_process(folder / "pipeline", num_samples, seed, folder / "reloaded.jsonl")
    return Sampled(output, by_language_model, unconstrained, seconds, language_model_seconds, reloaded)


def records_in_memory(output: "DiffLMPipelineOutput", folder: Path) -> bytes:
    """Write the records as JSON lines, as the ``difflm`` command does, and return the bytes."""
    path = folder / "synthetic.jsonl"
    write_records(output, path)
    return path.read_bytes()


def group_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean body mass (g) and flipper length (mm) per species, missing values left out."""
    numbers = frame[["body_mass_g", "flipper_length_mm"]].astype("float64")
    return numbers.groupby(frame["species"].astype(str)).mean()


def check_bars(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    comparison: Sequence[ColumnComparison],
    *,
    valid_first_attempt: float,
    valid_by_language_model: float,
    reconstruction_own: float,
    reconstruction_shuffled: float,
    identical_after_reload: bool,
) -> list[Check]:
    """Hold the demo's promises against what came out.

    Parameters
    ----------
    real, synthetic
        The penguins and the sampled records.
    comparison
        ``compare_columns(real, synthetic)``.
    valid_first_attempt
        Share of the records that were valid at once, 0 to 1.
    valid_by_language_model
        The same of those that the language model wrote.
    reconstruction_own, reconstruction_shuffled
        Reconstruction loss of held-out records from their own and from other records' latents, in nats per record.
    identical_after_reload
        Whether the reloaded pipeline gave the same bytes.
    """
    error = mean_shape_error_percent(comparison)
    checks = [
        Check(
            "records valid on the first attempt",
            valid_first_attempt >= MIN_VALID_FIRST_ATTEMPT,
            f"{100 * valid_first_attempt:.1f} % (at least {100 * MIN_VALID_FIRST_ATTEMPT:.0f} %)",
        ),
        Check(
            "the language model's records valid on the first attempt",
            valid_by_language_model >= MIN_VALID_FIRST_ATTEMPT,
            f"{100 * valid_by_language_model:.1f} % (at least {100 * MIN_VALID_FIRST_ATTEMPT:.0f} %)",
        ),
        Check(
            "mean shape error per column",
            error <= MAX_MEAN_SHAPE_ERROR_PERCENT,
            f"{error:.1f} % (at most {MAX_MEAN_SHAPE_ERROR_PERCENT:.0f} %)",
        ),
    ]
    means, synthetic_means = group_means(real), group_means(synthetic)
    synthetic_means = synthetic_means.reindex(means.index)
    for species, target in means["body_mass_g"].items():
        got = synthetic_means["body_mass_g"][species]
        deviation = 100 * (got / target - 1)
        checks.append(
            Check(
                f"mean body mass of {species}",
                bool(abs(deviation) <= MAX_BODY_MASS_DEVIATION_PERCENT),
                f"{got:.0f} g, real {target:.0f} g: {deviation:+.1f} % (at most "
                f"±{MAX_BODY_MASS_DEVIATION_PERCENT:.0f} %)",
            )
        )
    order = list(means["flipper_length_mm"].sort_values().index)
    synthetic_order = list(synthetic_means["flipper_length_mm"].dropna().sort_values().index)
    checks.append(
        Check("species in the real order of flipper length", order == synthetic_order, " < ".join(synthetic_order))
    )
    differences = {row.name: row.synthetic_null_percent - row.real_null_percent for row in comparison}
    worst = max(differences, key=lambda name: abs(differences[name]))
    checks += [
        Check(
            "missing values at the real rate in every column",
            abs(differences[worst]) <= MAX_NULL_RATE_DIFFERENCE,
            f"furthest: {worst}, {differences[worst]:+.1f} points (at most ±{MAX_NULL_RATE_DIFFERENCE:.0f})",
        ),
        Check(
            "the reloaded pipeline gives the same bytes",
            identical_after_reload,
            "identical" if identical_after_reload else "different",
        ),
        Check(
            "a record is reconstructed better from its own latent than from another's",
            reconstruction_own < reconstruction_shuffled,
            f"{reconstruction_own:.2f} < {reconstruction_shuffled:.2f} nats per record"
            if reconstruction_own < reconstruction_shuffled
            else f"{reconstruction_own:.2f} is not below {reconstruction_shuffled:.2f} nats per record",
        ),
    ]
    return checks


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def read_latents(pipeline: Path) -> np.ndarray | None:
    """Read the encodings of the training records, shape (records, latent size), that the fit left, if it did."""
    path = pipeline / "latents.safetensors"
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    return load_file(path)["mean"]


def _summary(
    log: dict[str, Any], sampled: Sampled, comparison: Sequence[ColumnComparison], checks: Sequence[Check]
) -> dict[str, Any]:
    from difflm.training.hardware import peak_memory_mib

    return {
        "rows_sampled": len(sampled.records),
        "valid_first_attempt": sampled.output.valid_first_attempt,
        "valid_by_language_model": sampled.by_language_model.valid_first_attempt,
        "valid_by_language_model_unconstrained": sampled.unconstrained.valid_first_attempt,
        "writer": log["writer"],
        "writer_reason": log["writer_reason"],
        "shape_error_percent": {
            "mean": mean_shape_error_percent(comparison),
            "per_column": {row.name: row.shape_error_percent for row in comparison},
        },
        "null_percent": {
            row.name: {"real": row.real_null_percent, "synthetic": row.synthetic_null_percent} for row in comparison
        },
        "reconstruction_own_latent": log["reconstruction_own_latent"],
        "reconstruction_shuffled_latent": log["reconstruction_shuffled_latent"],
        "fit_seconds": log["fit_seconds"],
        "rows_seen": log["rows_seen"],
        "sample_rows_per_second": sampled.rows_per_second,
        "sample_rows_per_second_by_language_model": sampled.language_model_rows_per_second,
        "peak_memory_mib": peak_memory_mib(),
        "checks": [asdict(check) for check in checks],
        "versions": versions(),
    }


def _print_outcome(
    real: pd.DataFrame, sampled: Sampled, comparison: Sequence[ColumnComparison], summary: dict[str, Any]
) -> None:
    print("\nSome synthetic records")
    for record in sampled.records[:5]:
        print("  " + json.dumps(record, ensure_ascii=False))
    print(f"\nReal ({len(real)} records) and synthetic ({len(sampled.records)})")
    print(format_comparison(comparison))
    real_means, synthetic_means = group_means(real), group_means(sampled.output.to_pandas())
    rows = [
        {
            "species": species,
            "real_mass": float(means["body_mass_g"]),
            "mass": float(synthetic_means["body_mass_g"].get(species, float("nan"))),
            "real_flipper": float(means["flipper_length_mm"]),
            "flipper": float(synthetic_means["flipper_length_mm"].get(species, float("nan"))),
        }
        for species, means in real_means.iterrows()
    ]
    headings = {
        "species": "means",
        "real_mass": "body mass g, real",
        "mass": "synthetic",
        "real_flipper": "flipper mm, real",
        "flipper": "synthetic",
    }
    print("\n" + format_table(rows, headings))
    print("\nFigures")
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"  {name}: {value:.4g}")
        elif isinstance(value, int | str):
            print(f"  {name}: {value}")
    print("  versions: " + ", ".join(f"{name} {version}" for name, version in summary["versions"].items()))


def run(folder: Path, *, preset: str, minutes: float | None, num_samples: int, seed: int) -> list[Check]:
    """Run the whole demo into ``folder`` and return its checks.

    Parameters
    ----------
    folder
        Gets ``pipeline/``, ``synthetic.parquet``, ``report.html`` and ``summary.json``.
    preset
        Name of one.
    minutes
        Time limit of the fit; None: it ends by its steps and what held-out records cost.
    num_samples
        Records to sample.
    seed
        Of the fit and of the sampling.
    """
    from difflm import fit
    from difflm.training.data import read_table
    from difflm.training.presets import PRESETS

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    table = penguins_csv()
    real = read_table(table)
    print(f"Palmer penguins: {len(real)} records, {len(real.columns)} columns", flush=True)
    settings = replace(PRESETS[preset], max_minutes=minutes)
    pipe = fit(table, folder / "pipeline", preset=settings, policy=FIT_POLICY, seed=seed, overwrite=True)
    log = json.loads((folder / "pipeline" / "training_log.json").read_text(encoding="utf-8"))
    sampled = sample(pipe, folder, num_samples, seed)
    synthetic = sampled.output.to_pandas()
    comparison = compare_columns(real, synthetic)
    checks = check_bars(
        real,
        synthetic,
        comparison,
        valid_first_attempt=sampled.output.valid_first_attempt,
        valid_by_language_model=sampled.by_language_model.valid_first_attempt,
        reconstruction_own=log["reconstruction_own_latent"],
        reconstruction_shuffled=log["reconstruction_shuffled_latent"],
        identical_after_reload=records_in_memory(sampled.output, folder) == sampled.reloaded,
    )
    write_records(sampled.output, folder / "synthetic.parquet")
    summary = _summary(log, sampled, comparison, checks)
    summary["total_seconds"] = time.monotonic() - started
    _print_outcome(real, sampled, comparison, summary)
    latents = read_latents(folder / "pipeline")
    write_report(_report_contents(real, synthetic, comparison, checks, log, sampled, latents), folder / "report.html")
    write_json(folder / "summary.json", summary, indent=2)
    return checks


def _report_contents(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    comparison: Sequence[ColumnComparison],
    checks: Sequence[Check],
    log: dict[str, Any],
    sampled: Sampled,
    real_latents: np.ndarray | None,
) -> ReportContents:
    latents = sampled.output.latents
    shown = {
        "valid on the first attempt": f"{100 * sampled.output.valid_first_attempt:.1f} %",
        "the same, by the language model": f"{100 * sampled.by_language_model.valid_first_attempt:.1f} %",
        "by it, without constrained decoding": f"{100 * sampled.unconstrained.valid_first_attempt:.1f} %",
        "mean shape error": f"{mean_shape_error_percent(comparison):.1f} %",
        "nats per record, own latent": log["reconstruction_own_latent"],
        "nats per record, another's latent": log["reconstruction_shuffled_latent"],
        "minutes of fitting": log["fit_seconds"] / 60,
        "records seen by the language model": log["rows_seen"],
        "records sampled per second": sampled.rows_per_second,
        "records per second by the language model": sampled.language_model_rows_per_second,
    }
    writer = "a draft of the columns" if log["writer"] == "draft" else "a frozen language model"
    return ReportContents(
        title="DiffLM on the Palmer penguins",
        subtitle=f"{len(real)} real records, {len(synthetic)} synthetic ones: latents from a diffusion model, written "
        f"by {writer}. Fitted in {log['fit_seconds'] / 60:.1f} minutes.",
        real=real,
        synthetic=synthetic,
        comparison=comparison,
        real_latents=real_latents,
        synthetic_latents=None if latents is None else np.asarray(latents, dtype="float64"),
        autoencoder_history=log.get("autoencoder_history", ()),
        denoiser_history=log.get("denoiser_history", ()),
        figures=shown,
        checks=checks,
        records=sampled.records[:8],
    )


def _use_one_thread() -> None:
    """Of so few records the products are small: on a busy machine threads would mostly wait for each other."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the process that samples the saved pipeline, too


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(prog="python examples/demo.py", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--preset", default="small", help="see `difflm fit --help` (default: %(default)s)")
    parser.add_argument(
        "--max-minutes", type=float, help="limit of the fit, in minutes (default: none, it ends by itself)"
    )
    parser.add_argument("--num-samples", type=int, default=200, help="records to sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of fit and sampling (default: %(default)s)")
    arguments = parser.parse_args(argv)
    _use_one_thread()
    checks = run(
        arguments.output_dir,
        preset=arguments.preset,
        minutes=arguments.max_minutes,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
    )
    print("\nChecks")
    for check in checks:
        print(f"  {'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    print(
        "\nWritten: "
        + ", ".join(
            str(arguments.output_dir / name)
            for name in ("pipeline/", "synthetic.parquet", "report.html", "summary.json")
        )
    )
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
