"""A trial, no part of the package: latents with a block for each column, written by an autoregressive draft alone.

    python examples/benchmarks/trials/column_blocks.py adult --data-dir DATA --rows 29304

A number's block is its Gaussianised rank (ties spread), a category's a learned embedding of unit variance, a gap's a
flag. Blocks are read with noise ``sigma``, the posterior's; the diffusion ends at that noise level instead of at zero,
so that the denoiser never learns what lies below it. The draft writes column by column from the noisy latent and the
columns before. Prints losses, CPU seconds and the figures of the evaluation as JSON (README.md here has a table).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import nn


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tabular_data import load

from difflm.modeling_denoiser import DenoiserNetwork, precondition
from difflm.training.denoiser_losses import edm_loss_weight
from difflm.training.evaluation.figures import evaluate_tables


def normal_cdf(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


class NumberColumn:
    """Tokens are distinct values, or quantile bins; a token's value is drawn from the training values it holds."""

    def __init__(self, name, values, most_bins):
        self.name, self.known = name, np.sort(values[~np.isnan(values)])
        distinct = np.unique(self.known)
        self.edges = distinct  # a token holds what lies above the edge before it, up to its own
        if len(distinct) > most_bins:
            shares = np.linspace(0, 1, most_bins + 1)[1:]
            self.edges = np.unique(np.quantile(self.known, shares, method="inverted_cdf"))
        self.nullable = bool(np.isnan(values).any())
        self.size = len(self.edges) + 1  # the last token: missing

    def encode(self, series, rng):
        values = pd.to_numeric(series).to_numpy(float)
        missing = np.isnan(values)
        values = np.where(missing, self.known[0], values)
        tokens = np.searchsorted(self.edges, values).clip(0, self.size - 2)
        low, high = (np.searchsorted(self.known, values, side) for side in ("left", "right"))
        shares = (low + (high - low).clip(1) * rng.random(len(values))) / len(self.known)
        ranks = ndtri(shares.clip(0.5 / len(self.known), 1 - 0.5 / len(self.known)))
        tokens[missing], ranks[missing] = self.size - 1, 0.0
        return tokens, ranks

    def decode(self, tokens, rng):
        missing = tokens == self.size - 1
        tokens = np.where(missing, 0, tokens)
        high = np.searchsorted(self.known, self.edges[tokens], "right")
        low = np.where(tokens > 0, np.searchsorted(self.known, self.edges[(tokens - 1).clip(0)], "right"), 0)
        at = (low + ((high - low) * rng.random(len(tokens))).astype(int)).clip(0, len(self.known) - 1)
        ranks = np.where(missing, 0.0, ndtri((at + 0.5) / len(self.known)))
        return np.where(missing, np.nan, self.known[at]), ranks


class CategoryColumn:
    def __init__(self, name, series):
        self.name, self.levels = name, list(series.astype(str).value_counts().index)
        self.size = len(self.levels)

    def encode(self, series, rng):
        codes = {level: code for code, level in enumerate(self.levels)}
        return series.astype(str).map(codes).fillna(0).astype(int).to_numpy(), np.zeros(len(series))

    def decode(self, tokens, rng):
        return np.array(self.levels, dtype=object)[tokens], np.zeros(len(tokens))


class Autoencoder(nn.Module):
    """Blocks of the columns, and a draft that writes them one after the other."""

    def __init__(self, columns, tokens, width, category_size, number_scale, dropout):
        super().__init__()
        self.columns, self.number_scale = columns, number_scale
        counts = [torch.bincount(tokens[:, i], minlength=c.size) + 0.1 for i, c in enumerate(columns)]
        self.shares = [count / count.sum() for count in counts]
        self.embeddings = nn.ModuleDict()
        self.latent_size = 0
        for i, column in enumerate(columns):
            if isinstance(column, CategoryColumn):
                size = min(column.size - 1, category_size)
                self.embeddings[str(i)] = nn.Embedding(column.size, size)
            else:
                size = 1 + column.nullable
            self.latent_size += size
        number, frequencies = len(columns), 8
        self.frequencies = math.pi * 2.0 ** torch.arange(frequencies)
        self.trunk = nn.Sequential(nn.Linear(self.latent_size, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.views = nn.Parameter(torch.randn(number, self.latent_size, width) * 0.02)
        self.vectors = nn.Parameter(torch.randn(number, width) * 0.3)
        self.token_inputs = nn.ModuleList([nn.Embedding(column.size, width) for column in columns])
        self.rank_inputs = nn.Parameter(torch.randn(number, 2 + 2 * frequencies, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, column.size) for column in columns])
        for embedding, head, shares in zip(self.token_inputs, self.heads, self.shares, strict=True):
            nn.init.normal_(embedding.weight, std=0.3)
            nn.init.normal_(head.weight, std=0.02)
            head.bias.data = shares.log()

    def encode(self, tokens, ranks):
        """``[rows, latent_size]``: the posterior's mean."""
        parts = []
        for i, column in enumerate(self.columns):
            shares = self.shares[i]
            if isinstance(column, CategoryColumn):
                weight = self.embeddings[str(i)].weight
                mean = (weight * shares[:, None]).sum(0)
                deviation = ((weight - mean).square() * shares[:, None]).sum(0).sqrt()
                parts.append(((weight - mean) / (deviation + 1e-4))[tokens[:, i]])
                continue
            parts.append(ranks[:, i : i + 1] * self.number_scale)
            if column.nullable:
                share = float(shares[-1])
                missing = (tokens[:, i] == column.size - 1).float()
                parts.append(((missing - share) / math.sqrt(share * (1 - share)))[:, None])
        return torch.cat(parts, dim=1)

    def start(self, latents):
        return self.trunk(latents)[:, None] + self.vectors + torch.einsum("bl,clw->bcw", latents, self.views)

    def given(self, i, tokens, ranks):
        places = normal_cdf(ranks)[:, None]
        waves = places * self.frequencies
        features = torch.cat([places, ranks[:, None] / 2, waves.sin(), waves.cos()], dim=1)
        return self.token_inputs[i](tokens) + features @ self.rank_inputs[i]

    def logits(self, i, hidden):
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.heads[i](self.norm(hidden))

    def nats(self, latents, tokens, ranks):
        """Of each record, ``[rows]``."""
        given = [self.given(i, tokens[:, i], ranks[:, i]) for i in range(len(self.columns))]
        given = torch.stack(given, dim=1)
        hidden = self.start(latents) + given.cumsum(1) - given
        losses = [
            nn.functional.cross_entropy(self.logits(i, hidden[:, i]), tokens[:, i], reduction="none")
            for i in range(len(self.columns))
        ]
        return torch.stack(losses).sum(0)

    def write(self, latents, rng, generator):
        hidden, before, table = self.start(latents), 0.0, {}
        for i, column in enumerate(self.columns):
            chances = self.logits(i, hidden[:, i] + before).softmax(dim=1)
            tokens = torch.multinomial(chances, 1, generator=generator)[:, 0]
            table[column.name], ranks = column.decode(tokens.numpy(), rng)
            before = before + self.given(i, tokens, torch.tensor(ranks, dtype=torch.float32))
        return table


def batches(rows, size, steps, generator):
    order, at = torch.randperm(rows, generator=generator), 0
    for step in range(steps):
        if at + size > rows:
            order, at = torch.randperm(rows, generator=generator), 0
        yield step, order[at : at + size]
        at += size


def rate(step, steps, highest, warm_up):
    return highest * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-5


def fit_autoencoder(model, train, held_out, o, generator):
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.learning_rate, weight_decay=0.02, fused=True)
    best, kept, total, noise = math.inf, None, 0.0, torch.Generator().manual_seed(5)
    every = max(20, o.draft_steps // 10)
    for step, rows in batches(len(train[0]), o.batch, o.draft_steps, generator):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, o.draft_steps, o.learning_rate, 50)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(train[0][rows], train[1][rows])
            latents = latents + o.sigma * torch.randn(latents.shape, generator=generator)
            loss = model.nats(latents, train[0][rows], train[1][rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss)
        if (step + 1) % every == 0:
            model.eval()
            with torch.no_grad():
                latents = model.encode(*held_out)
                latents = latents + o.sigma * torch.randn(latents.shape, generator=noise.manual_seed(5))
                nats = float(model.nats(latents, *held_out).mean())
            model.train()
            print(f"draft {step + 1}: {total / every:.3f} nats, held out {nats:.3f}", flush=True)
            total = 0.0
            if nats < best:
                best, kept = nats, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return best


def fit_denoiser(latents, scale, o, generator):
    network = DenoiserNetwork(latents.shape[1], o.width, 4, 0.0, ())
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    above = normal_cdf(torch.tensor((math.log(o.sigma) - o.p_mean) / o.p_std))
    total = 0.0
    for step, rows in batches(len(latents), 512, o.denoiser_steps, generator):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, o.denoiser_steps, 2e-3, 200)
        clean = latents[rows]
        places = (torch.rand(1, generator=generator) + torch.arange(len(clean)) / len(clean)) % 1  # stratified
        places = (above + (1 - above) * places).clamp(1e-4, 1 - 1e-4)
        sigma = (o.p_mean + o.p_std * math.sqrt(2) * torch.erfinv(2 * places - 1)).exp()[:, None]
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        denoised = precondition(network, noisy, sigma, sigma_data=scale)
        loss = (edm_loss_weight(sigma, scale) * (denoised - clean).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        total += float(loss)
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - min(0.999, (step + 1) / (step + 10)))
        if (step + 1) % 1000 == 0:
            print(f"denoiser {step + 1}: {total / 1000:.4f}", flush=True)
            total = 0.0
    network.load_state_dict(average)
    return network.eval()


@torch.no_grad()
def diffuse(network, rows, size, scale, o, generator):
    """Heun's method from 80 times the scale down to the posterior's noise, where it ends."""
    first, last, count = 80.0 ** (1 / 7), o.sigma ** (1 / 7), o.steps
    sigmas = [(first + i / (count - 1) * (last - first)) ** 7 for i in range(count)]
    latents = torch.randn(rows, size, generator=generator) * 80
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (latents - precondition(network, latents, now, sigma_data=scale)) / now
        euler = latents + (then - now) * slope
        other = (euler - precondition(network, euler, then, sigma_data=scale)) / then
        latents = latents + (then - now) * 0.5 * (slope + other)
    return latents


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, default=0.5, help="the posterior's noise, where the diffusion ends")
    parser.add_argument("--number-scale", type=float, default=1.0, help="of a number's block beside a category's")
    parser.add_argument("--prior", choices=("diffusion", "encode", "none"), default="diffusion")
    parser.add_argument("--draft-steps", type=int, default=800)
    parser.add_argument("--draft-width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--bins", type=int, default=128)
    parser.add_argument("--category-size", type=int, default=4)
    parser.add_argument("--denoiser-steps", type=int, default=4000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--p-mean", type=float, default=-0.2)
    parser.add_argument("--p-std", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    o = parser.parse_args()
    o.hub_dataset = o.spec = None
    torch.set_num_threads(1)
    torch.manual_seed(o.seed)
    rng, generator = np.random.default_rng(o.seed), torch.Generator().manual_seed(o.seed)
    tables, spec = load(o, o.table)
    table = tables["train"].reset_index(drop=True)
    numbers = set(spec.numerical)
    columns = [
        NumberColumn(name, pd.to_numeric(table[name]).to_numpy(float), o.bins)
        if name in numbers
        else CategoryColumn(name, table[name])
        for name in table
    ]

    def encoded(frame):
        parts = [column.encode(frame[column.name], rng) for column in columns]
        tokens = torch.tensor(np.stack([part[0] for part in parts], 1))
        return tokens, torch.tensor(np.stack([part[1] for part in parts], 1), dtype=torch.float32)

    train, held_out = encoded(table), encoded(tables["validation"])
    model = Autoencoder(columns, train[0], o.draft_width, o.category_size, o.number_scale, o.dropout)
    started = time.process_time()
    nats = fit_autoencoder(model, train, held_out, o, generator)
    seconds = {"draft": time.process_time() - started}
    model.eval()
    with torch.no_grad():
        means = model.encode(*train).float()
    started = time.process_time()
    if o.prior == "diffusion":
        scale = means.std(0)
        network = fit_denoiser(means, scale, o, generator)
        seconds["denoiser"] = time.process_time() - started
        started = time.process_time()
        latents = diffuse(network, o.rows, means.shape[1], scale, o, generator)
    else:
        latents = means[torch.randint(len(means), (o.rows,), generator=generator)]
        latents = latents * (o.prior == "encode") + o.sigma * torch.randn(latents.shape, generator=generator)
    seconds["diffuse"] = time.process_time() - started
    started = time.process_time()
    with torch.no_grad():
        rows = pd.DataFrame(model.write(latents, rng, generator))[list(table.columns)]
    seconds["write"] = time.process_time() - started
    for name, dtype in table.dtypes.items():
        rows[name] = rows[name].map({"True": True, "False": False}) if dtype.kind == "b" else rows[name].astype(dtype)
    found = evaluate_tables(
        table, rows, spec, holdout=tables["test"], validation=tables["validation"], seeds=1, seed=0, upper_bound=False
    ).to_dict()["figures"]
    options = {name: value for name, value in vars(o).items() if name not in ("data_dir", "hub_dataset", "spec")}
    figures = {name: round(figure["mean"], 4) for name, figure in found.items()}
    seconds = {name: round(value, 1) for name, value in seconds.items()}
    result = {"options": options, "held_out_nats": round(nats, 3), "cpu_seconds": seconds, "figures": figures}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
