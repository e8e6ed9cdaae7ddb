"""A fit in two processes: it equals one process's, and what a killed process leaves is resumed by two and by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.fitting import fit
from difflm.training.policy import Policy
from difflm.training.presets import Preset


# Products of other sizes and sums in another order: rounding, in fp32, and what Adam makes of it in a few steps.
TOLERANCE = 3e-3
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def run(table: str, output: str, encoder: str, decoder: str, resume: bool = False) -> None:
    """54 training rows in batches of 6: no batch is cut short, which several processes would fill up."""
    preset = Preset(
        encoder=encoder,
        decoder=decoder,
        epochs=2.0,
        max_minutes=None,
        batch_size=6,
        denoiser_steps=20,
        model={
            "decoder_dtype": "float32",
            "latent_size": 8,
            "num_injection_tokens": 3,
            "injection_hidden_size": 32,
            "injection_token_size": 16,
            "draft_dropout": 0.0,  # each process has its own
        },
        denoiser={"hidden_size": 32, "num_blocks": 2},
        policy=Policy(column_min_steps=20, column_max_epochs=20, floor_steps=18, min_floor_steps=18),
    )
    fit(
        pd.read_csv(table),
        output,
        preset=preset,
        show_progress=False,
        resume=resume,
        training_kwargs={"latent_warmup_steps": 50, "encoder_bf16": False, "save_steps": 5, "eval_steps": 5},
        denoiser_kwargs={"bf16": False, "checkpoint_steps": 5, "eval_steps": 5},
    )


def die_in(stage: str) -> None:
    """Let the second process be killed in the 13th step of a stage, without a word to the first."""
    if not stage or os.environ["RANK"] != "1":
        return
    trainer, name = {
        "autoencoder": (AutoencoderTrainer, "compute_loss"),
        "denoiser": (DenoiserTrainer, "_training_step"),
    }[stage]
    calls, step = iter(range(100)), getattr(trainer, name)

    def dying(*args, **kwargs):
        if next(calls) == 12:
            os.kill(os.getpid(), 9)
        return step(*args, **kwargs)

    setattr(trainer, name, dying)


def in_two_processes(arguments: list[str], *, dies_in: str = "", resume: bool = False) -> subprocess.CompletedProcess:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(Path(__file__))]
    return subprocess.run(
        [sys.executable, *launch, dies_in, "resume" * resume, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,  # on a busy machine
        check=False,
    )


def stored(folder: Path) -> dict[str, torch.Tensor]:
    files = ["autoencoder/model.safetensors", "latents.safetensors"]
    files += [f"{part}/diffusion_pytorch_model.safetensors" for part in ("draft", "denoiser")]
    return {f"{file}: {name}": value for file in files for name, value in load_file(folder / file).items()}


@pytest.fixture(scope="module")
def inputs(model_folders, small_table, tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("processes")
    small_table.to_csv(folder / "table.csv", index=False)
    return folder, [model_folders["encoder"], model_folders["decoder"]]


@pytest.fixture(scope="module")
def alone(inputs) -> dict[str, torch.Tensor]:
    folder, models = inputs
    run(str(folder / "table.csv"), str(folder / "alone"), *models)
    return stored(folder / "alone")


def assert_same(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = stored(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=TOLERANCE, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert not (folder / "checkpoints").exists()


def test_two_processes_fit_what_one_fits(inputs, alone):
    folder, models = inputs
    finished = in_two_processes([str(folder / "table.csv"), str(folder / "two"), *models])
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert_same(folder / "two", alone)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_killed_process_ends_all_and_the_fit_is_resumed(inputs, alone, stage):
    folder, models = inputs
    output = folder / f"killed in the {stage}"
    arguments = [str(folder / "table.csv"), str(output), *models]
    killed = in_two_processes(arguments, dies_in=stage)
    assert killed.returncode != 0
    assert not (output / "model_index.json").exists()
    assert list((output / "checkpoints" / stage).glob("checkpoint-*"))
    if stage == "autoencoder":
        finished = in_two_processes(arguments, resume=True)
        assert finished.returncode == 0, finished.stderr[-3000:]
    else:
        run(*arguments, resume=True)
    assert_same(output, alone)


if __name__ == "__main__":
    die_in(sys.argv[1])
    run(*sys.argv[3:], resume=sys.argv[2] == "resume")
