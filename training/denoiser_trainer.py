"""Training of the latent denoiser on accelerate: the EDM loss, averaged weights, early stopping, checkpoints.

Several processes take the same steps as one: each computes its part of the batch. What a clock or Ctrl-C decides is
decided once, and the main process writes the checkpoints.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from difflm.devices import choose_device
from difflm.files import atomic_folder, write_json
from difflm.modeling_denoiser import DiffLMDenoiser, precondition
from difflm.modeling_difflm import multiplies_bf16
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_losses import edm_losses
from difflm.training.denoiser_state import DenoiserTrainingResult, DenoiserTrainingState
from difflm.training.interrupts import deferred_interrupt
from difflm.training.keep_best import KeepBest
from difflm.training.latents import LatentDataset
from difflm.training.noisy_latents import NoisyLatents, NoisyLatentSampler
from difflm.training.policy import Policy
from difflm.training.processes import (
    are_several_on_cpus,
    from_main,
    is_main_process,
    num_processes,
    process_index,
    summed,
    wait_for_everyone,
)
from difflm.training.seeds import derived_seed, seeded_generator
from difflm.training.time_budget import TimeBudget


CHECKPOINT_PREFIX = "checkpoint-"
TENSORS_FILE = "training_state.safetensors"
STATE_FILE = "training_state.json"


class DenoiserTrainer:
    """Fit a [`DiffLMDenoiser`] to the latents of the training records.

    The loss is that of Karras et al. (2022), equation 8 and table 1; with a noise floor only levels above it are
    learned, and the latents are the posterior means. An exponential moving average of the weights is
    evaluated on a fixed set of noisy validation latents, and the best average is what the denoiser holds at the end.
    Everything random in step n depends on the seed and n only, so a resumed run takes the same steps.

    Parameters
    ----------
    denoiser : DiffLMDenoiser
        Trained in place; its latent statistics are set from `train_data`.
    args : DenoiserTrainingArguments
        Budgets and hyperparameters.
    train_data : LatentDataset
        Training latents, at least 2 rows.
    validation_data : LatentDataset, optional
        Held-out latents. None: `args.validation_fraction` of the training latents, chosen by the seed.
    policy : Policy, optional
        Its ``denoiser_evaluation_batch_size``.
    clock : callable, default time.monotonic
        Returns the time in seconds.

    Raises
    ------
    ValueError
        If there are too few latents, or their size or labels do not fit the denoiser.
    """

    def __init__(
        self,
        denoiser: DiffLMDenoiser,
        args: DenoiserTrainingArguments,
        train_data: LatentDataset,
        validation_data: LatentDataset | None = None,
        *,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.args = args = args.resolved(float(denoiser.config["noise_floor"]))
        self.peak_learning_rate = cast(float, args.learning_rate)
        self.policy = policy or Policy()
        # The main process's: what is left of a fit's time is measured by each.
        self.max_seconds = None if args.max_seconds is None else from_main(args.max_seconds)[0]
        self.budget = TimeBudget(self.max_seconds, clock=clock)
        self.device = choose_device(args.device)
        self.bf16 = args.bf16 and multiplies_bf16(self.device)
        if validation_data is None:
            train_data, validation_data = self._split(train_data)
        for name, data in (("training", train_data), ("validation", validation_data)):
            self._check_data(denoiser, name, data)
        self.train_data = train_data
        self.validation_data = validation_data
        network: torch.nn.Module = denoiser
        network.to(self.device)
        self.denoiser = denoiser
        self.sampler = NoisyLatentSampler(denoiser, args, self.device)
        noise_floor = self.sampler.noise_floor
        statistics = (
            train_data.noise_floor_statistics(noise_floor)
            if noise_floor
            else train_data.statistics(sample_posterior=args.sample_posterior)
        )
        denoiser.scaler.set_latent_statistics(*statistics)
        self.sigma_data = denoiser.sigma_data
        self.parameters = dict(denoiser.named_parameters())
        # Of accelerate's, placement and the exchange of gradients; its mixed precision is one for the whole process,
        # and this stage's is its own.
        self.network = Accelerator(cpu=are_several_on_cpus()).prepare_model(denoiser.network, device_placement=False)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=self.peak_learning_rate,
            weight_decay=args.weight_decay,
            fused=self.device.type == "cpu",  # one pass over the weights
        )
        self.ema = EMAModel(list(self.parameters.values()), decay=args.ema_decay, foreach=True)
        self.best = KeepBest()
        self.best.weights = self._averages()
        self.state = DenoiserTrainingState()
        self._validation_examples = self.sampler.validation_examples(validation_data)
        self._fingerprint = self._data_fingerprint()

    def train(self) -> DenoiserTrainingResult:
        """Train until a budget is spent or the validation loss stops improving.

        Returns
        -------
        DenoiserTrainingResult
            History and outcome; the denoiser holds the best averaged weights and is in eval mode.

        Raises
        ------
        FloatingPointError
            If the loss is no longer finite.
        KeyboardInterrupt
            On Ctrl-C, after the step under way and a checkpoint; a second Ctrl-C does not wait.
        ValueError
            If the checkpoint to resume from is missing or belongs to other latents or another denoiser.
        """
        args, state = self.args, self.state
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
            state = self.state
        self.budget.start(state.seconds)
        self.denoiser.train()
        with self._progress_bar() as bar, deferred_interrupt() as signalled:
            interrupted = False
            while (stop_reason := self._stop_reason()) is None:
                learning_rate = self._learning_rate()
                loss = self._training_step(learning_rate)
                state.step += 1
                state.interval_loss_sum += loss
                state.interval_steps += 1
                interrupted = self._look_at_the_clock(signalled)
                if state.step % args.eval_steps == 0:
                    self._evaluate_and_record(learning_rate)
                    interrupted = self._look_at_the_clock(signalled)
                if interrupted:
                    break
                if args.checkpoint_steps and state.step % args.checkpoint_steps == 0:
                    self._save_periodic_checkpoint()
                self._show_progress(bar, loss)
            if stop_reason is not None and (not state.history or state.history[-1]["step"] != state.step):
                self._evaluate_and_record(self._learning_rate())
                interrupted = self._look_at_the_clock(signalled)
            if stop_reason is None or interrupted:
                self._save_periodic_checkpoint()
                raise KeyboardInterrupt
        if args.checkpoint_steps:
            self._save_periodic_checkpoint()
        self.best.copy_to(self.parameters)
        self.denoiser.eval()
        best_loss = state.best_validation_loss
        return DenoiserTrainingResult(
            history=[dict(entry) for entry in state.history],
            best_step=state.best_step,
            best_validation_loss=math.nan if best_loss is None else best_loss,
            steps=state.step,
            seconds=state.seconds,
            stop_reason=stop_reason,
        )

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the EDM loss of the averaged weights on the fixed noisy validation latents."""
        examples, size = self._validation_examples, self.policy.denoiser_evaluation_batch_size
        parameters = list(self.parameters.values())
        current = [parameter.detach().clone() for parameter in parameters]
        self.ema.copy_to(parameters)
        was_training = self.denoiser.training
        self.denoiser.eval()
        total = 0.0
        try:
            for start in range(process_index() * size, len(examples), num_processes() * size):
                batch = examples.slice(slice(start, start + size))
                total += float(self._losses(batch, self.denoiser.network).double().sum())
        finally:
            for parameter, value in zip(parameters, current, strict=True):
                parameter.copy_(value)
            self.denoiser.train(was_training)
        return float(summed(torch.tensor(total, dtype=torch.float64))) / len(examples)

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write everything needed to continue to the folder `path`, which appears whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written, for example on a full disk; checkpoints written before stay.
        """
        target = Path(path)
        tensors: dict[str, torch.Tensor] = {}
        for (name, parameter), average in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"ema.{name}"] = average
            tensors[f"best.{name}"] = self.best.weights[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        # Clones: safetensors refuses tensors that share memory, and the averages may alias nothing else.
        tensors = {name: value.cpu().clone() for name, value in tensors.items()}
        document = {
            "state": asdict(self.state),
            "ema_optimization_step": self.ema.optimization_step,
            "data_fingerprint": self._fingerprint,
            "arguments": asdict(self.args),
        }
        try:
            with atomic_folder(target) as temporary:
                save_file(tensors, temporary / TENSORS_FILE)
                write_json(temporary / STATE_FILE, document, indent=2)
        except OSError as error:
            raise OSError(
                f"The checkpoint {str(target)!r} could not be written ({error}); those written before are whole. "
                "Free some space and resume."
            ) from error

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Continue from a folder written by `save_checkpoint`.

        Raises
        ------
        ValueError
            If it is not a checkpoint, or belongs to other latents or another denoiser.
        """
        folder = Path(path)
        if not (folder / STATE_FILE).is_file() or not (folder / TENSORS_FILE).is_file():
            raise ValueError(f"{str(folder)!r} is not a checkpoint of the denoiser's training.")
        document = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if document["data_fingerprint"] != self._fingerprint:
            raise ValueError(
                f"The checkpoint {str(folder)!r} was trained on other latents (or with another seed or split): "
                "give the same ones, or train into another folder."
            )
        tensors = load_file(folder / TENSORS_FILE)
        saved = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("model.")}
        expected = {f"model.{name}": tuple(value.shape) for name, value in self.parameters.items()}
        if saved != expected:
            raise ValueError(
                f"The checkpoint {str(folder)!r} belongs to a denoiser of another size: "
                "give the same latent_size, hidden_size, num_blocks and class_sizes."
            )
        with torch.no_grad():
            for index, (name, parameter) in enumerate(self.parameters.items()):
                parameter.copy_(tensors[f"model.{name}"])
                self.ema.shadow_params[index].copy_(tensors[f"ema.{name}"])
                self.best.weights[name].copy_(tensors[f"best.{name}"])
                prefix, suffix = "optimizer.", f".{name}"
                self.optimizer.state[parameter] = {
                    key[len(prefix) : -len(suffix)]: value
                    if key == f"{prefix}step{suffix}"  # AdamW keeps its step counts on the CPU.
                    else value.to(self.device)
                    for key, value in tensors.items()
                    if key in {f"{prefix}{kind}{suffix}" for kind in ("step", "exp_avg", "exp_avg_sq")}
                }
        self.ema.optimization_step = document["ema_optimization_step"]
        self.state = DenoiserTrainingState(**document["state"])
        loss = self.state.best_validation_loss
        self.best.loss = math.inf if loss is None else loss
        self.best.evaluations_without_improvement = self.state.evaluations_without_improvement

    # One step

    def _training_step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        step = self.state.step
        batch = self.sampler.training_batch(self.train_data, step)
        rows = len(batch)
        own = batch.slice(
            slice(rows * process_index() // num_processes(), rows * (process_index() + 1) // num_processes())
        )
        with self._reproducible_dropout(step):
            # A share of the batch's mean: gradients are averaged over the processes.
            loss = self._losses(own, self.network).sum() * num_processes() / rows
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.args.max_grad_norm)
        value = float(summed(loss.detach())) / num_processes()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The denoiser's loss is {value} at step {step + 1}: lower learning_rate ({self.args.learning_rate})."
            )
        self.optimizer.step()
        self.ema.step(list(self.parameters.values()))
        return value

    def _losses(self, batch: NoisyLatents, network: torch.nn.Module) -> torch.Tensor:
        """Weighted squared error of each example with ``network`` for F, shape (batch,)."""
        noisy = batch.latents + batch.sigma[:, None] * batch.noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            denoised = precondition(network, noisy, batch.sigma, batch.labels, sigma_data=self.sigma_data)
        return edm_losses(denoised, batch.latents, batch.sigma, self.sigma_data)

    # Budgets, evaluation, bookkeeping

    def _averages(self) -> dict[str, torch.Tensor]:
        """Copies of the averaged weights, by the names of the weights."""
        return {
            name: value.detach().clone() for name, value in zip(self.parameters, self.ema.shadow_params, strict=True)
        }

    def _look_at_the_clock(self, signalled: threading.Event) -> bool:
        """Take the main process's time, and say whether any process has got a Ctrl-C."""
        (self.state.seconds,) = from_main(self.budget.seconds)
        return bool(summed(torch.tensor(int(signalled.is_set()))))

    def _budget_spent(self) -> float:
        """Share of the nearer budget that is spent."""
        args, state = self.args, self.state
        by_steps = state.step / args.max_steps if args.max_steps is not None else 0.0
        by_time = state.seconds / self.max_seconds if self.max_seconds is not None else 0.0
        return max(by_steps, by_time)

    def _stop_reason(self) -> str | None:
        args, state = self.args, self.state
        if args.max_steps is not None and state.step >= args.max_steps:
            return "max_steps"
        if self.max_seconds is not None and state.seconds >= self.max_seconds:
            return "max_seconds"
        patience = args.early_stopping_patience
        if patience and state.evaluations_without_improvement >= patience:
            return "early_stopping"
        return None

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine, over whichever budget is nearer its end."""
        args, spent = self.args, min(1.0, self._budget_spent())
        floor = args.final_learning_rate_ratio
        rate = self.peak_learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * spent)))
        if args.warmup_ratio > 0:
            next_step = (self.state.step + 1) / args.max_steps if args.max_steps is not None else 0.0
            # A purely timed run does not know how long its first step takes: it starts at a hundredth of the peak.
            rate *= min(1.0, max(next_step, spent, 0.01 * args.warmup_ratio) / args.warmup_ratio)
        return rate

    def _evaluate_and_record(self, learning_rate: float) -> None:
        state = self.state
        validation_loss = self.evaluate()
        train_loss = state.interval_loss_sum / state.interval_steps if state.interval_steps else math.nan
        state.history.append(
            {
                "step": state.step,
                "seconds": state.seconds,
                "train_loss": train_loss,
                "validation_loss": validation_loss,
                "learning_rate": learning_rate,
            }
        )
        state.interval_loss_sum, state.interval_steps = 0.0, 0
        if self.best.offer(validation_loss, self._averages()):
            state.best_validation_loss, state.best_step = validation_loss, state.step
        state.evaluations_without_improvement = self.best.evaluations_without_improvement

    def _save_periodic_checkpoint(self) -> None:
        if self.args.output_dir is None:
            return
        folder = Path(self.args.output_dir)
        if not is_main_process():
            wait_for_everyone()
            return
        self.save_checkpoint(folder / f"{CHECKPOINT_PREFIX}{self.state.step:08d}")
        for _, old in _checkpoints(folder)[: -self.args.checkpoint_limit]:
            shutil.rmtree(old, ignore_errors=True)
        wait_for_everyone()

    def _checkpoint_to_resume(self) -> Path | None:
        if self.args.resume is None:
            return None
        if self.args.resume != "auto":
            return Path(self.args.resume)
        found = _checkpoints(Path(str(self.args.output_dir)))
        return found[-1][1] if found else None

    def _progress_bar(self) -> "tqdm[Any]":
        return tqdm(
            total=self.args.max_steps,
            initial=self.state.step,
            desc="Training the denoiser",
            unit="step",
            disable=not self.args.show_progress,
        )

    def _show_progress(self, bar: "tqdm[Any]", loss: float) -> None:
        # The total is an estimate where time is the nearer budget, so that the bar's ETA is right.
        bar.total = max(self.state.step, round(self.state.step / max(self._budget_spent(), 1e-9)))
        losses = {"loss": f"{loss:.3f}"}
        if self.state.history:
            losses["validation"] = f"{self.state.history[-1]['validation_loss']:.4f}"
        bar.set_postfix(losses, refresh=False)
        bar.update()

    # Data and randomness

    def _split(self, data: LatentDataset) -> tuple[LatentDataset, LatentDataset]:
        if len(data) < 2:
            raise ValueError(f"The denoiser needs at least 2 latents, one for validation; got {len(data)}.")
        order = torch.randperm(len(data), generator=seeded_generator(self.args.seed, "split", 0))
        held_out = min(max(1, round(len(data) * self.args.validation_fraction)), len(data) - 1)
        return data.select(order[held_out:].sort().values), data.select(order[:held_out].sort().values)

    @staticmethod
    def _check_data(denoiser: DiffLMDenoiser, name: str, data: LatentDataset) -> None:
        if len(data) < 1:
            raise ValueError(f"There are no {name} latents.")
        latent_size = denoiser.config["latent_size"]
        if data.mean.shape[1] != latent_size:
            raise ValueError(
                f"The {name} latents have {data.mean.shape[1]} dimensions and the denoiser's latent_size is "
                f"{latent_size}."
            )
        if denoiser.class_sizes and data.labels is None:
            raise ValueError(f"The denoiser has class_sizes, but the {name} latents have no labels.")
        if data.labels is not None and denoiser.class_sizes:
            denoiser.check_labels(data.labels, len(data))

    @contextlib.contextmanager
    def _reproducible_dropout(self, step: int) -> Iterator[None]:
        """Dropout draws from torch's global generator: seed it per step, and leave the caller's state alone."""
        if not self.denoiser.config["dropout"]:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            purpose = "dropout" if num_processes() == 1 else f"dropout of process {process_index()}"
            torch.manual_seed(derived_seed(self.args.seed, purpose, step))
            yield

    def _data_fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for data in (self.train_data, self.validation_data):
            for tensor in (data.mean, data.log_variance, data.labels):
                if tensor is not None:
                    digest.update(tensor.contiguous().cpu().numpy().tobytes())
        digest.update(f"seed {self.args.seed}".encode())
        return digest.hexdigest()


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Whole checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        (int(path.name.removeprefix(CHECKPOINT_PREFIX)), path)
        for path in folder.glob(f"{CHECKPOINT_PREFIX}*")
        if path.name.removeprefix(CHECKPOINT_PREFIX).isdigit() and (path / STATE_FILE).is_file()
    ]
    return sorted(found)
