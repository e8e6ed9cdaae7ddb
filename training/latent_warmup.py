"""Warm-up of the latents: the posterior learns to tell records apart before the LLM has read one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from difflm.modeling_difflm import DiffLMModel, Posterior
from difflm.training.autoencoder_losses import AutoencoderObjective
from difflm.training.keep_best import KeepBest
from difflm.training.policy import Policy
from difflm.training.time_budget import TimeBudget


def warmed_up_parts(model: DiffLMModel) -> tuple[str, ...]:
    """The parts that it trains; of latents that come from outside only the draft."""
    if model.config.column_latent_noise:
        return ("record_draft",)
    return ("column_features", "column_decoder", "posterior_mean", "posterior_log_variance", "record_draft")


def warm_up_latents(
    objective: AutoencoderObjective,
    values: Tensor,
    labels: Callable[[int], list[int]] | None = None,
    held_out: tuple[Tensor, Sequence[list[int]]] | None = None,
    *,
    steps: int = 1500,
    max_seconds: float | None = None,
    seed: int = 0,
    policy: Policy | None = None,
    show_progress: bool = True,
) -> int:
    """Train features, posterior, [`ColumnDecoder`] and [`RecordDraft`] as a small VAE of the records' columns.

    Its steps cost next to nothing beside those through the LLM, which then begins to read the latents soon.

    Parameters
    ----------
    objective : AutoencoderObjective
        Of a model with feature columns, whose quantiles are fitted, or with latents that come from outside.
    values : Tensor
        The rows' feature values, or these latents, see [`~DiffLMModel.encode`].
    labels : callable, optional
        Gives the tokens of a row; needed where the model makes a draft.
    held_out : (Tensor, sequence of list of int), optional
        Values and tokens of other rows: the weights that are best for them are kept.
    steps : int, default 1500
        At most; the policy limits the passes over a table, too.
    max_seconds : float, optional
    seed : int, default 0
    policy : Policy, optional
        Its ``warm_up_...`` fields.
    show_progress : bool, default True

    Returns
    -------
    int
        The steps made.
    """
    policy = policy or Policy()
    model = objective.autoencoder
    parameters = {
        name: parameter
        for name, parameter in objective.named_parameters()
        if name.removeprefix("autoencoder.").split(".")[0] in warmed_up_parts(model)
    }
    batch_size = min(policy.warm_up_batch_size, len(values))
    steps = min(steps, policy.warm_up_max_epochs * math.ceil(len(values) / batch_size))
    peak = policy.warm_up_learning_rate
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=peak, weight_decay=0.0)
    # Of its own, so that a resumed fit, which has no warm-up, draws what an uninterrupted one draws.
    generator = torch.Generator(model.device).manual_seed(seed)
    budget, best, made = TimeBudget(max_seconds), KeepBest(), 0
    judge = None
    if held_out is not None:
        judge = functools.partial(_held_out_loss, objective, *held_out, beta=policy.warm_up_beta)
    was_training = objective.training
    objective.train()
    bar = tqdm(total=steps, desc="Warming up the latents", unit="step", disable=not show_progress)
    with bar, torch.random.fork_rng():
        torch.manual_seed(seed)  # of the draft's dropout
        while made < steps:
            passed = budget.share
            if passed >= 1:
                break
            share = max(made / steps, passed)
            ramp = min(1.0, (made + 1) / policy.warm_up_ramp_steps)
            for group in optimizer.param_groups:
                group["lr"] = peak * ramp * 0.5 * (1 + math.cos(math.pi * share))
            rows = torch.randint(len(values), (batch_size,), generator=generator, device=model.device)
            chosen = values[rows.to(values.device)].to(model.device)
            tokens = None if labels is None else _padded(list(map(labels, rows.tolist())), model.device)
            posterior = _posterior(model, chosen)
            loss = objective.column_loss(posterior.sample(generator), chosen, tokens)
            loss = (loss + policy.warm_up_beta * posterior.kl()).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), policy.warm_up_max_grad_norm)
            optimizer.step()
            made += 1
            bar.update()
            if made % policy.warm_up_evaluation_interval == 0:
                bar.set_postfix(loss=f"{loss.item():.1f}")
                if judge is not None:
                    best.offer(judge(), parameters)
        if judge is not None and judge() > best.loss:
            best.copy_to(parameters)
    objective.zero_grad()
    objective.train(was_training)
    return made


def _posterior(model: DiffLMModel, values: Tensor) -> Posterior:
    """The posterior as if the text said nothing."""
    if not model.config.column_latent_noise:
        return model.encode_features(values)
    columns = model.encode_columns(values)
    prior = values.new_zeros(len(values), model.config.text_latent_size)
    mean, log_variance = (torch.cat([part, prior], dim=1) for part in (columns.mean, columns.log_variance))
    return Posterior(mean, log_variance, columns.num_given)


@torch.no_grad()
def _held_out_loss(
    objective: AutoencoderObjective, values: Tensor, labels: Sequence[list[int]], *, beta: float
) -> float:
    model = objective.autoencoder
    objective.eval()
    values, tokens = values.to(model.device), None
    if model.record_draft is not None:
        tokens = _padded(labels, model.device)
    posterior = _posterior(model, values)
    latents = posterior.mean
    if posterior.num_given:
        latents = posterior.sample(torch.Generator(model.device).manual_seed(0))
    loss = (objective.column_loss(latents, values, tokens) + beta * posterior.kl()).mean().item()
    objective.train()
    return loss


def _padded(labels: Sequence[list[int]], device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=-100).to(device)
