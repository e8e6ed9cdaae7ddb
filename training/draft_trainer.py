"""Training of the draft: until held-out records no longer gain by it."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from difflm.modeling_difflm import multiplies_bf16
from difflm.modeling_draft import ColumnDraft
from difflm.pipelines.cell_codes import CodedColumn
from difflm.training.draft_layout import new_draft
from difflm.training.keep_best import KeepBest
from difflm.training.policy import Policy
from difflm.training.processes import from_main
from difflm.training.seeds import derived_seed, seeded_generator
from difflm.training.time_budget import TimeBudget


logger = logging.getLogger(__name__)


@dataclass
class FittedDraft:
    """A trained draft and how it went.

    Attributes
    ----------
    draft : ColumnDraft
        In eval mode, with the averaged weights that were best on the held-out records.
    held_out_nats : float
        Of a held-out record's cells given its own noisy latent, see [`ColumnDraft.nats`].
    steps, best_step : int
    seconds : float
    stop_reason : {"held-out nats", "max_seconds", "max_epochs"}
    history : list of dict
        ``step``, ``seconds``, ``train_nats`` and ``held_out_nats`` (of the tokens alone).
    """

    draft: ColumnDraft
    held_out_nats: float
    steps: int
    best_step: int
    seconds: float
    stop_reason: str
    history: list[dict[str, float]] = field(default_factory=list)


def train_draft(
    columns: Sequence[CodedColumn],
    codes: np.ndarray,
    held_out: np.ndarray,
    *,
    told: np.ndarray | None = None,
    policy: Policy | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    **options: object,
) -> FittedDraft:
    """Build a draft of a table and train it on the records' tokens given their noisy latents.

    Everything random in a step depends on the seed and the step alone. Each of several processes takes the same steps.

    Parameters
    ----------
    columns : sequence of CodedColumn
    codes, held_out : int64 array
        Of the training and the held-out rows, ``[rows, columns]``.
    told : int64 array, optional
        What the draft's quantile functions and shares are taken from; default: the training rows.
    policy : Policy, optional
        Its ``column_...`` fields.
    max_seconds : float, optional
    seed : int, default 0
    device : torch.device or str, default "cpu"
    show_progress : bool, default True
    **options
        Further arguments of [`ColumnDraft`].

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    """
    policy = policy or Policy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "draft", 0))
        draft = new_draft(columns, codes if told is None else told, policy, **options)
    network: torch.nn.Module = draft
    network.to(device)
    rows, judged = torch.from_numpy(codes), torch.from_numpy(held_out).to(device)
    # Of few held-out records, several noisy latents each: one draw of the noise would be a poor judge.
    judged = judged.repeat(math.ceil(policy.column_evaluation_records / len(judged)), 1)
    judged = judged[: max(len(held_out), policy.column_evaluation_records)]
    parameters = dict(draft.named_parameters())
    optimizer = torch.optim.AdamW(
        list(parameters.values()),
        lr=policy.column_learning_rate,
        weight_decay=policy.column_weight_decay,
        fused=torch.device(device).type == "cpu",
    )
    average = EMAModel(list(parameters.values()), decay=policy.column_ema_decay, use_ema_warmup=False, foreach=True)
    size = min(policy.column_batch_size, len(rows))
    per_epoch = math.ceil(len(rows) / size)
    interval = min(policy.column_evaluation_interval, max(policy.min_column_evaluation_interval, per_epoch * 2))
    budget, best, history = TimeBudget(max_seconds), KeepBest(), []
    started, step, total, stop_reason = time.monotonic(), 0, 0.0, "max_epochs"
    most = max(policy.column_min_steps, policy.column_max_epochs * per_epoch)
    # Without a total: it ends when held-out records gain no more.
    bar = tqdm(desc="Training the draft", unit="step", disable=not show_progress)
    bf16 = multiplies_bf16(torch.device(device))
    draft.train()
    with bar, _dropout(seed, device):
        while step < most:
            (used,) = from_main(budget.share)
            if used >= 1:
                stop_reason = "max_seconds"
                break
            ramp = min(1.0, (step + 1) / policy.column_ramp_steps)
            for group in optimizer.param_groups:
                group["lr"] = policy.column_learning_rate * ramp
            chosen = _batch(len(rows), size, step, seed)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                loss = draft(rows[chosen].to(device), *_noise(draft, len(chosen), seed, "draft step", step)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), policy.column_max_grad_norm)
            optimizer.step()
            average.step(list(parameters.values()))
            step += 1
            total += float(loss.detach())
            bar.update()
            if step % interval == 0:
                if not math.isfinite(total):
                    raise FloatingPointError("The draft's loss is no number: lower policy's column_learning_rate.")
                with _averaged(average, parameters):
                    nats = _held_out(draft, judged, seed)
                history.append(
                    {
                        "step": step,
                        "seconds": time.monotonic() - started,
                        "train_nats": total / interval,
                        "held_out_nats": nats,
                    }
                )
                total = 0.0
                bar.set_postfix(held_out=f"{nats:.3f} nats")
                shadows = dict(zip(parameters, average.shadow_params, strict=True))
                if best.offer(nats, shadows):
                    best_step = step
                idle = best.evaluations_without_improvement
                if step >= policy.column_min_steps and idle >= policy.column_patience:
                    stop_reason = "held-out nats"
                    break
    if not best.weights:  # no time for an evaluation
        best.weights = {
            name: shadow.clone() for name, shadow in zip(parameters, average.shadow_params, strict=True)
        }
        best_step = step
    best.copy_to(parameters)
    draft.eval()
    noise, spread = _noise(draft, len(judged), seed, "draft held out", 0)
    with torch.no_grad():
        tokens, ranks = draft._located(judged, spread)
        latents = draft.means(tokens, ranks) + draft.latent_noise * noise
        exact = float(draft.nats(latents, judged).double().mean())
    logger.info("The draft: %.2f nats a held-out record after %d steps (%s).", exact, best_step, stop_reason)
    return FittedDraft(draft, exact, step, best_step, time.monotonic() - started, stop_reason, history)


def _batch(count: int, size: int, step: int, seed: int) -> torch.Tensor:
    """A step's rows: shuffled passes, each cut into batches; the last rows of a pass wait for another order."""
    per_epoch = max(1, count // size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=seeded_generator(seed, "draft epoch", epoch))
    return order[place * size : (place + 1) * size]


def _noise(draft: ColumnDraft, count: int, seed: int, purpose: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded_generator(seed, purpose, step)
    noise = torch.randn(count, draft.latent_size, generator=generator)
    spread = torch.rand(count, len(draft.columns), generator=generator, dtype=torch.float64)
    return noise.to(draft.device), spread.to(draft.device)


@torch.no_grad()
def _held_out(draft: ColumnDraft, codes: torch.Tensor, seed: int) -> float:
    draft.eval()
    nats = draft(codes, *_noise(draft, len(codes), seed, "draft held out", 0)).double().mean()
    draft.train()
    return float(nats)


@contextlib.contextmanager
def _averaged(average: EMAModel, parameters: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    """While open, the weights are the averaged ones."""
    average.store(list(parameters.values()))
    average.copy_to(list(parameters.values()))
    try:
        yield
    finally:
        average.restore(list(parameters.values()))


@contextlib.contextmanager
def _dropout(seed: int, device: torch.device | str) -> Iterator[None]:
    """Dropout draws from torch's global generator: seeded, and the caller's state left alone."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, "draft dropout", 0))
        yield
