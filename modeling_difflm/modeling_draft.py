"""The draft of DiffLM: latents with a block for each column, and a small decoder that writes records from them.

Each coded column of a table (see ``CellCodes``) has a block of the latent: a number the rank of its value among the
training rows, through the inverse normal, a choice a learned embedding of unit variance. Blocks are read with Gaussian
noise of constant size, the posterior's. The decoder writes column by column, from the noisy latent and the columns
before, as an autoregressive network over columns does (TabularARGN, arXiv 2501.12012); what the latent diffusion
leaves undecided below the posterior's noise it settles by what it has written already.

This file is also stored beside the weights of a published model, so it imports nothing from the ``difflm`` package.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


#: Codes of a cell without a value, and of one that is to be written.
MISSING = -(2**63)
UNKNOWN = -(2**63) + 1
NUM_FREQUENCIES = 8
#: Rows that are written together, whatever their number: matrix products of other shapes differ in the last bits.
CHUNK = 256
#: Latents of more dimensions reach the columns through so many.
MAX_VIEW_SIZE = 64
#: Less likely bins are drawn from evenly: rounding would decide.
LEAST_MASS = 1e-12


class Drawing(NamedTuple):
    """How tokens are drawn, see [`ColumnDraft.write`]."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class DraftBlock(nn.Module):
    """LayerNorm, Linear, SiLU, dropout, Linear around a skip connection.

    What is dropped is dropped in all of a row's columns: drawing it for each would cost as much as the products.
    """

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_in = nn.Linear(hidden_size, 2 * hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[rows, ..., hidden_size]``."""
        inner = nn.functional.silu(self.linear_in(self.norm(hidden)))
        if self.training:
            ones = torch.ones(len(inner), *[1] * (inner.ndim - 2), inner.shape[-1], device=inner.device)
            inner = inner * self.dropout(ones).to(inner.dtype)
        return hidden + self.linear_out(inner)


class ColumnDraft(ModelMixin, ConfigMixin):  # type: ignore[misc]  # the two bases annotate config_name differently
    """Encodes a record's cells to a latent with a block for each column, and writes cells from latents.

    Parameters
    ----------
    columns : list of dict
        Per coded column ``name``, ``kind`` ("number" or "choice"), ``num_tokens``, ``nullable`` and ``ordered``
        (whether it is a finer part of the column before it), and of numbers ``num_knots``. A token is a choice or a
        bin of a number's values; the last one stands for a gap where the column is nullable.
    hidden_size : int, default 256
    num_blocks : int, default 2
    dropout : float, default 0.2
        In the blocks: without, the draft learns the training rows by heart.
    choice_size : int, default 4
        Most dimensions of a choice's block.
    number_noise, choice_noise : float, default 0.08, 0.5
        Standard deviation of the posterior in the blocks, whose variance is 1.

    Attributes
    ----------
    knot_values, knot_ranks : Tensor
        int64, all numbers' quantile functions one after the other: linear between knots; a value that repeats is two
        knots with the ranks of its first and its last row.
    bin_knots : Tensor
        int64, where the bins begin and end among their column's knots.
    token_counts : Tensor
        int64, training rows of each token.

    Raises
    ------
    ValueError
        If there are no columns, or one is described wrongly.
    """

    knot_values: Tensor
    knot_ranks: Tensor
    bin_knots: Tensor
    token_counts: Tensor

    # The dtype of a pipeline's load is its decoder's: here, rounding would only change what is written.
    _keep_in_fp32_modules = [  # type: ignore[assignment]
        *("embeddings", "trunk", "narrow", "views", "vectors"),
        *("token_inputs", "rank_inputs", "blocks", "norm", "heads"),
    ]

    @register_to_config
    def __init__(
        self,
        columns: list[dict[str, Any]],
        hidden_size: int = 256,
        num_blocks: int = 2,
        dropout: float = 0.2,
        choice_size: int = 4,
        number_noise: float = 0.08,
        choice_noise: float = 0.5,
    ) -> None:
        super().__init__()
        if not columns:
            raise ValueError("A draft needs at least one column.")
        for column in columns:
            if column["kind"] not in ("number", "choice") or column["num_tokens"] < 1:
                raise ValueError(f"The draft's column {column['name']!r} is described wrongly: {column}.")
        if not (number_noise > 0 and choice_noise > 0):
            raise ValueError("The posterior's noise must be above 0.")
        self.columns = [dict(column) for column in columns]
        self._tokens = _ranges([column["num_tokens"] for column in columns])
        self._knots = _ranges([column.get("num_knots", 0) for column in columns])
        self._bins = _ranges([self._num_bins(column) + 1 if _is_number(column) else 0 for column in columns])
        self._blocks = _ranges(self._block_sizes(choice_size))
        self.register_buffer("knot_values", torch.zeros(self._knots[-1].stop, dtype=torch.int64))
        self.register_buffer("knot_ranks", torch.zeros(self._knots[-1].stop, dtype=torch.int64))
        self.register_buffer("bin_knots", torch.zeros(self._bins[-1].stop, dtype=torch.int64))
        self.register_buffer("token_counts", torch.ones(self._tokens[-1].stop, dtype=torch.int64))
        self.embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(column["num_tokens"], block.stop - block.start)
                for i, (column, block) in enumerate(zip(columns, self._blocks, strict=True))
                if not _is_number(column) and block.stop > block.start
            }
        )
        count, view_size = len(columns), min(self.latent_size, MAX_VIEW_SIZE)
        self.trunk = nn.Sequential(
            nn.Linear(self.latent_size, 2 * hidden_size), nn.SiLU(), nn.Linear(2 * hidden_size, hidden_size)
        )
        self.narrow = nn.Linear(self.latent_size, view_size) if view_size < self.latent_size else nn.Identity()
        self.views = nn.Parameter(torch.randn(count, view_size, hidden_size) * 0.02)
        self.vectors = nn.Parameter(torch.randn(count, hidden_size) * 0.3)
        self.token_inputs = nn.Embedding(self._tokens[-1].stop, hidden_size)
        self.rank_inputs = nn.Parameter(torch.randn(count, 2 + 2 * NUM_FREQUENCIES, hidden_size) * 0.1)
        self.blocks = nn.ModuleList(DraftBlock(hidden_size, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, column["num_tokens"]) for column in columns)
        nn.init.normal_(self.token_inputs.weight, std=0.3)
        for head in self.heads:
            nn.init.normal_(cast(nn.Linear, head).weight, std=0.02)

    def _block_sizes(self, choice_size: int) -> list[int]:
        sizes = [
            1 + column["nullable"] if _is_number(column) else min(column["num_tokens"] - 1, choice_size)
            for column in self.columns
        ]
        if not any(sizes):  # a table of constants
            sizes[0] = 1
        return sizes

    @staticmethod
    def _num_bins(column: Mapping[str, Any]) -> int:
        return int(column["num_tokens"]) - bool(column["nullable"])

    @property
    def latent_size(self) -> int:
        """Dimensions of a latent."""
        return self._blocks[-1].stop

    @property
    def latent_noise(self) -> Tensor:
        """The posterior's standard deviation in each dimension, ``[latent_size]``."""
        noise = [
            self.config["number_noise" if _is_number(column) else "choice_noise"]
            for column, block in zip(self.columns, self._blocks, strict=True)
            for _ in range(block.start, block.stop)
        ]
        return torch.tensor(noise, device=self.device)

    @torch.no_grad()
    def set_statistics(
        self, knot_values: Tensor, knot_ranks: Tensor, bin_knots: Tensor, token_counts: Tensor
    ) -> None:
        """Store what is known of the training rows, in the form of the attributes; the heads begin at the tokens'
        shares.

        Raises
        ------
        ValueError
            If a shape differs or knots are not in order.
        """
        given = {
            "knot_values": knot_values,
            "knot_ranks": knot_ranks,
            "bin_knots": bin_knots,
            "token_counts": token_counts,
        }
        for name, value in given.items():
            buffer = getattr(self, name)
            if value.shape != buffer.shape or value.dtype != torch.int64:
                raise ValueError(f"{name} must be int64 of shape {tuple(buffer.shape)}, got {tuple(value.shape)}.")
        for knots in self._knots:
            if any(bool((part[knots].diff() < 0).any()) for part in (knot_values, knot_ranks)):
                raise ValueError("The knots of a number must ascend.")
        for name, value in given.items():
            getattr(self, name).copy_(value)
        for head, tokens in zip(self.heads, self._tokens, strict=True):
            cast(nn.Linear, head).bias.copy_(self._shares(tokens).log())

    # ---------------------------------------------------------------- codes, tokens, ranks

    def _shares(self, tokens: slice) -> Tensor:
        counts = self.token_counts[tokens].float() + 0.1
        return counts / counts.sum()

    def _quantiles(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """A number's knots as values and as shares of the rows, and the shares at which its bins begin and end."""
        ranks = self.knot_ranks[self._knots[i]].double()
        shares = ranks / ranks[-1].clamp(min=1)
        return self.knot_values[self._knots[i]].double(), shares, shares[self.bin_knots[self._bins[i]]]

    def _share_range(self, i: int, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Between which shares of the rows a number's codes lie, float64."""
        values, shares, _ = self._quantiles(i)
        return tuple(_interpolate(codes.double() + half, values, shares) for half in (-0.5, 0.5))  # type: ignore[return-value]

    def _located(self, codes: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes as tokens and as ranks, ``[rows, columns]`` each.

        ``spread``, ``[rows, columns]``, float64 in [0, 1): where in its range of ranks a number is put.
        """
        tokens, ranks = [], []
        for i, column in enumerate(self.columns):
            if not column["nullable"] and bool((codes[:, i] == MISSING).any()):
                raise ValueError(f"The draft's column {column['name']!r} never had a gap.")
            token, rank = self._of_column(i, codes[:, i], 0.5 if spread is None else spread[:, i])
            tokens.append(token)
            ranks.append(rank)
        return torch.stack(tokens, 1), torch.stack(ranks, 1)

    def _of_column(self, i: int, codes: Tensor, spread: Tensor | float) -> tuple[Tensor, Tensor]:
        """Tokens and ranks of one column's codes, ``[rows]`` each."""
        column = self.columns[i]
        missing = codes == MISSING
        if not _is_number(column):
            return codes.masked_fill(missing, column["num_tokens"] - 1), torch.zeros(len(codes), device=codes.device)
        low, high = self._share_range(i, codes.masked_fill(missing, 0))
        inside = low + (high - low) * spread
        _, _, edges = self._quantiles(i)
        token = torch.searchsorted(edges[1:-1].contiguous(), inside, right=True)
        rank = self._rank(i, inside).masked_fill(missing, 0.0).to(self.vectors.dtype)
        return token.masked_fill(missing, column["num_tokens"] - 1), rank

    def _rank(self, i: int, shares: Tensor) -> Tensor:
        """Shares of the rows through the inverse normal; the ends count as half a row."""
        edge = 0.5 / max(1, int(self.knot_ranks[self._knots[i]][-1]))
        return torch.special.ndtri(shares.clamp(edge, 1 - edge))

    # ---------------------------------------------------------------- encoding

    @torch.no_grad()
    def encode(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mean of records.

        Parameters
        ----------
        codes : Tensor
            int64, ``[rows, columns]``.
        generator : torch.Generator, optional
            On the CPU. A value that repeats has a range of ranks: it is put anywhere in it; without, in its middle.

        Returns
        -------
        Tensor
            ``[rows, latent_size]``.
        """
        tokens, ranks = self._located(codes.to(self.device), self._spread(codes, generator))
        return self.means(tokens, ranks)

    def _spread(self, codes: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if generator is None:
            return None
        return torch.rand(codes.shape, generator=generator, dtype=torch.float64).to(self.device)

    def means(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """The posterior's mean, ``[rows, latent_size]``, of tokens and ranks, ``[rows, columns]`` each."""
        parts = []
        for i, (column, block) in enumerate(zip(self.columns, self._blocks, strict=True)):
            if block.stop == block.start:
                continue
            shares = self._shares(self._tokens[i])
            if not _is_number(column):
                weight = cast(nn.Embedding, self.embeddings[str(i)]).weight
                mean = (weight * shares[:, None]).sum(0)
                deviation = ((weight - mean).square() * shares[:, None]).sum(0).sqrt()
                parts.append(((weight - mean) / (deviation + 1e-4))[tokens[:, i]])
                continue
            parts.append(ranks[:, i : i + 1])
            if column["nullable"]:
                share = float(shares[-1])
                gap = (tokens[:, i] == column["num_tokens"] - 1).float()
                parts.append(((gap - share) / math.sqrt(share * (1 - share)))[:, None])
        return torch.cat(parts, dim=1)

    # ---------------------------------------------------------------- the decoder

    def _start(self, latents: Tensor) -> Tensor:
        """What each column knows of the latent, ``[rows, columns, hidden_size]``."""
        views = torch.einsum("bl,clw->bcw", self.narrow(latents), self.views)
        return self.trunk(latents)[:, None] + self.vectors + views

    def _given(self, tokens: Tensor, ranks: Tensor, columns: slice) -> Tensor:
        """What written cells tell those behind, ``[rows, columns, hidden_size]``."""
        places = torch.special.ndtr(ranks)
        waves = places[..., None] * (math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=ranks.device))
        features = torch.cat([places[..., None], ranks[..., None] / 2, waves.sin(), waves.cos()], dim=-1)
        first = torch.tensor([tokens.start for tokens in self._tokens[columns]], device=tokens.device)
        return self.token_inputs(tokens + first) + torch.einsum("bcf,cfw->bcw", features, self.rank_inputs[columns])

    def _decided(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def token_nats(self, latents: Tensor, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Nats of each record's tokens, ``[rows]``: the loss that the draft is trained by."""
        losses = [
            nn.functional.cross_entropy(logits.float(), tokens[:, i], reduction="none")
            for i, logits in enumerate(self._logits(latents, tokens, ranks))
        ]
        return torch.stack(losses).sum(0)

    def _logits(self, latents: Tensor, tokens: Tensor, ranks: Tensor) -> list[Tensor]:
        """Of each column's tokens, ``[rows, num_tokens]``, given the latent and the columns before."""
        given = self._given(tokens, ranks, slice(None))
        hidden = self._decided(self._start(latents) + given.cumsum(1) - given)
        return [head(hidden[:, i]) for i, head in enumerate(self.heads)]

    def forward(self, codes: Tensor, noise: Tensor, spread: Tensor | None = None) -> Tensor:
        """Nats of each record's tokens given its noisy latent, ``[rows]``.

        Parameters
        ----------
        codes : Tensor
            int64, ``[rows, columns]``.
        noise : Tensor
            Unit Gaussian, ``[rows, latent_size]``.
        spread : Tensor, optional
            float64 in [0, 1), ``[rows, columns]``, see [`~ColumnDraft.encode`].
        """
        with torch.no_grad():
            tokens, ranks = self._located(codes, spread)
        return self.token_nats(self.means(tokens, ranks) + self.latent_noise * noise, tokens, ranks)

    @torch.no_grad()
    def nats(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Nats of each record's cells given its latent, exactly as :meth:`write` draws them, ``[rows]``.

        Parameters
        ----------
        latents : Tensor
            ``[rows, latent_size]``, with the posterior's noise.
        codes : Tensor
            int64, ``[rows, columns]``. A value out of the training range costs as much as the rarest within it.
        """
        tokens, ranks = self._located(codes, None)
        logits = self._logits(latents, tokens, ranks)
        total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for i, column in enumerate(self.columns):
            chances = logits[i].double().softmax(dim=1)
            own = chances.gather(1, tokens[:, i : i + 1])[:, 0]
            if _is_number(column):
                missing = codes[:, i] == MISSING
                low, high = self._share_range(i, codes[:, i].masked_fill(missing, 0))
                parts = self._bin_shares(i, latents, low[:, None], high[:, None])
                inside = (chances[:, : parts.shape[1]] * parts).sum(dim=1)
                own = torch.where(missing, own, torch.maximum(inside, 1e-9 * own))
            total -= own.log()
        return total.float()

    def _within(self, i: int, latents: Tensor) -> tuple[Tensor, float]:
        """Mean and standard deviation of a number's rank given its dimension of the latent, float64."""
        variance = float(self.config["number_noise"]) ** 2
        return latents[:, self._blocks[i].start].double() / (1 + variance), math.sqrt(variance / (1 + variance))

    def _bin_shares(self, i: int, latents: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Which share of a number's bins, ``[rows, bins]``, lies between two shares of the rows, ``[rows, 1]``."""
        _, _, edges = self._quantiles(i)
        starts, ends = edges[:-1], edges[1:]
        first, last = torch.maximum(starts, low), torch.minimum(ends, high)
        last = torch.maximum(first, last)
        whole = self._mass(i, latents, starts.expand_as(first), ends.expand_as(first))
        evenly = (last - first) / (ends - starts).clamp(min=1e-300)  # the bin is too far from the latent
        return torch.where(whole > LEAST_MASS, self._mass(i, latents, first, last) / whole, evenly)

    def _mass(self, i: int, latents: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """How likely a number's share of the rows lies between two, given its dimension of the latent alone."""
        mean, deviation = self._within(i, latents)
        ends = [torch.special.ndtri(share.clamp(0.0, 1.0)) for share in (low, high)]
        if low.ndim > 1:
            mean = mean[:, None]
        lower, upper = ((end - mean) / deviation for end in ends)
        # By the nearer tail: far from the mean a difference of two ones is nothing.
        upper_tail = lower > 0
        lower, upper = torch.where(upper_tail, -upper, lower), torch.where(upper_tail, -lower, upper)
        return torch.special.ndtr(upper) - torch.special.ndtr(lower)

    # ---------------------------------------------------------------- writing

    @torch.no_grad()
    def write(
        self,
        latents: Tensor,
        uniforms: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        limits: Mapping[int, Any] | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Write cells.

        Parameters
        ----------
        latents : Tensor
            ``[rows, latent_size]``.
        uniforms : Tensor
            float64 in [0, 1), ``[rows, 2 * columns]``: what row i becomes depends on its own alone.
        temperature, top_k, top_p : float, int, float, default 1.0, None, None
            Of the tokens; a temperature of 0 takes the likeliest, and the middle of its values.
        limits : mapping, optional
            Column index to the codes it may have (int64, MISSING included where a gap is allowed), or to a closed
            range of codes ``(low, high)``; of a column with finer parts, two tuples with a code for each part. A
            range excludes gaps, but as ``(low, high, True)``; where the training rows have nothing in it, a value is
            drawn evenly.
        given : Tensor, optional
            int64, ``[rows, columns]``: cells to keep, UNKNOWN where one is to be written.

        Returns
        -------
        Tensor
            int64, ``[rows, columns]``.
        """
        drawing = Drawing(temperature, top_k, top_p)
        output = torch.empty(len(latents), len(self.columns), dtype=torch.int64, device=self.device)
        for start in range(0, len(latents), CHUNK):
            rows = slice(start, min(start + CHUNK, len(latents)))
            filled = (0, 0, 0, CHUNK - (rows.stop - rows.start))
            known = torch.full((CHUNK, len(self.columns)), UNKNOWN, device=self.device)
            if given is not None:
                known[: rows.stop - rows.start] = given[rows].to(self.device)
            codes = self._write(
                nn.functional.pad(latents[rows].to(self.device, self.vectors.dtype), filled),
                nn.functional.pad(uniforms[rows].to(self.device), filled, value=0.5),
                known,
                limits or {},
                drawing,
            )
            output[rows] = codes[: rows.stop - rows.start]
        return output

    def _write(
        self,
        latents: Tensor,
        uniforms: Tensor,
        given: Tensor,
        limits: Mapping[int, Any],
        drawing: Drawing,
    ) -> Tensor:
        hidden = self._start(latents)
        before, written = torch.zeros_like(hidden[:, 0]), list[Tensor]()
        lows: list[int] = []  # of a range over a column and its finer parts
        highs: list[int] = []
        at_low = at_high = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        for i, column in enumerate(self.columns):
            logits = self.heads[i](self._decided(hidden[:, i] + before)).double()
            first, second = uniforms[:, 2 * i], uniforms[:, 2 * i + 1]
            if drawing.temperature == 0:
                second = torch.full_like(second, 0.5)
            allowed, bounds, gaps = limits.get(i), None, True
            if isinstance(allowed, tuple):
                lows, highs = ([*end] if isinstance(end, Sequence) else [end] for end in allowed[:2])
                gaps = len(allowed) > 2 and bool(allowed[2])
                at_low = at_high = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
                allowed = None
            elif not column.get("ordered"):
                lows, highs = [], []
            if lows:
                low, high = lows.pop(0), highs.pop(0)
                bounds = torch.where(at_low, low, _LEAST), torch.where(at_high, high, _MOST)
            if column.get("ordered"):  # there is a gap where the column before has one
                gaps = False
            codes = self._choose(i, latents, logits, first, second, allowed, bounds, gaps, drawing)
            if column.get("ordered"):
                codes = torch.where(written[-1] == MISSING, MISSING, codes)
            own = given[:, i]
            codes = torch.where(own == UNKNOWN, codes, own)
            if bounds is not None:
                at_low, at_high = at_low & (codes == low), at_high & (codes == high)
            written.append(codes)
            token, rank = self._of_column(i, codes, second)
            before = before + self._given(token[:, None], rank[:, None], slice(i, i + 1))[:, 0]
        return torch.stack(written, dim=1)

    def _choose(
        self,
        i: int,
        latents: Tensor,
        logits: Tensor,
        first: Tensor,
        second: Tensor,
        allowed: Tensor | None,
        bounds: tuple[Tensor, Tensor] | None,
        gaps: bool,
        drawing: Drawing,
    ) -> Tensor:
        """One column's codes: a token by the first uniform numbers, a value of its bin by the second."""
        column = self.columns[i]
        gap = column["num_tokens"] - 1 if column["nullable"] else None
        barred = torch.zeros_like(logits, dtype=torch.bool)
        shares = None  # of the rows, within the bounds
        if allowed is not None and _is_number(column):
            return self._choose_listed(i, latents, logits, first, allowed.to(latents.device), drawing)
        if allowed is not None:
            barred[:] = True
            barred[:, torch.where(allowed == MISSING, -1 if gap is None else gap, allowed).to(barred.device)] = False
        if gap is not None and not gaps:
            barred[:, gap] = True
        if bounds is not None:
            count = self._num_bins(column)
            if not _is_number(column):
                choices = torch.arange(count, device=logits.device)
                barred[:, :count] |= (choices < bounds[0][:, None]) | (choices > bounds[1][:, None])
            else:
                shares = self._share_range(i, bounds[0])[0], self._share_range(i, bounds[1])[1]
                parts = self._bin_shares(i, latents, shares[0][:, None], shares[1][:, None])
                logits = logits.clone()
                logits[:, :count] += parts.clamp(min=1e-300).log()
                barred[:, :count] |= parts <= 0
        lost = barred.all(dim=1) if gap is None or gaps else barred[:, :gap].all(dim=1)  # the data has nothing there
        logits = logits.masked_fill(barred & ~lost[:, None], -math.inf)
        tokens = _draw(logits, first, drawing)
        if not _is_number(column):
            codes = tokens
        else:
            codes = self._value(i, latents, tokens.clamp(max=self._num_bins(column) - 1), second, shares)
        codes = codes if gap is None else codes.masked_fill((tokens == gap) & ~(lost & (not gaps)), MISSING)
        if bounds is None:
            return codes
        evenly = bounds[0].double() + second * (bounds[1].double() - bounds[0].double() + 1)
        codes = torch.where(lost, evenly.floor().long(), codes)
        return torch.where(codes == MISSING, codes, codes.clamp(bounds[0], bounds[1]))

    def _choose_listed(
        self,
        i: int,
        latents: Tensor,
        logits: Tensor,
        uniforms: Tensor,
        allowed: Tensor,
        drawing: Drawing,
    ) -> Tensor:
        """A number out of a list, as likely as the draft finds each; a gap may be one of them."""
        chances, scores = logits.softmax(dim=1), []
        for code in allowed:
            if code == MISSING:
                scores.append(chances[:, -1] if self.columns[i]["nullable"] else torch.zeros_like(chances[:, 0]))
                continue
            low, high = self._share_range(i, code.expand(len(latents)))
            parts = self._bin_shares(i, latents, low[:, None], high[:, None])
            scores.append((chances[:, : parts.shape[1]] * parts).sum(dim=1))
        likely = torch.stack(scores, dim=1).clamp(min=1e-12).log()
        return allowed[_draw(likely, uniforms, drawing)]

    def _value(
        self, i: int, latents: Tensor, tokens: Tensor, uniforms: Tensor, within: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """A number within its bin, by its rank's posterior given its own dimension of the latent."""
        values, shares, edges = self._quantiles(i)
        low, high = edges[tokens], edges[tokens + 1]
        if within is not None:
            low = torch.maximum(low, torch.minimum(within[0], high))
            high = torch.minimum(high, torch.maximum(within[1], low))
        mean, deviation = self._within(i, latents)
        lower, upper = ((torch.special.ndtri(share) - mean) / deviation for share in (low, high))
        # By the nearer tail, as in `_mass`.
        flip = lower > 0
        lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        drawn = torch.where(flip, 1 - uniforms, uniforms)
        start, end = torch.special.ndtr(lower), torch.special.ndtr(upper)
        place = torch.special.ndtri(start + (end - start) * drawn)
        place = torch.special.ndtr(mean + deviation * torch.where(flip, -place, place))
        plain = low + (high - low) * uniforms  # the bin is too far from the latent
        place = torch.where((end - start > LEAST_MASS) & place.isfinite(), place, plain)
        # Just inside: at its ends a bin meets the values of its neighbours.
        margin = 1e-9 * (high - low)
        place = torch.minimum(torch.maximum(place, low + margin), high - margin)
        return _interpolate(place, shares, values).round().long()


_LEAST, _MOST = -(2**53), 2**53


def _is_number(column: Mapping[str, Any]) -> bool:
    return column["kind"] == "number"


def _ranges(sizes: Sequence[int]) -> list[slice]:
    """Consecutive ranges of these sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [slice(start, stop) for start, stop in zip(starts[:-1], starts[1:], strict=True)]


def _interpolate(points: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Linear between ascending knots, constant beyond them; where an x repeats, from its first y to its last."""
    if len(xs) == 1:
        return ys.expand_as(points)
    after = torch.searchsorted(xs, points.contiguous()).clamp(1, len(xs) - 1)
    low, high = xs[after - 1], xs[after]
    share = ((points - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return ys[after - 1] + share * (ys[after] - ys[after - 1])


def _draw(logits: Tensor, uniforms: Tensor, drawing: Drawing) -> Tensor:
    """A token per row by the inverse of its cumulative distribution, ``[rows]``."""
    top_k, top_p = drawing.top_k, drawing.top_p
    if drawing.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits / drawing.temperature
    if top_k is not None and 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -math.inf)
    chances = logits.softmax(dim=1)
    if top_p is not None and top_p < 1:
        ordered, order = chances.sort(dim=1, descending=True, stable=True)
        kept = ordered.cumsum(dim=1) - ordered < top_p
        chances = torch.zeros_like(chances).scatter(1, order, ordered * kept)
    reached = chances.cumsum(dim=1)
    tokens = torch.searchsorted(reached, (uniforms * reached[:, -1])[:, None], right=True)[:, 0]
    # Rounding may lead past the last token that has a chance.
    last = chances.shape[1] - 1 - (chances.flip(1) > 0).to(torch.uint8).argmax(dim=1)
    return torch.minimum(tokens, last)
