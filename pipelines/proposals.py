"""Guessing the tokens that a row chooses next, so that one pass of the decoder settles several choices at once.

A guess is what the row would draw, by its own random numbers and under its grammar, if the record's draft alone had
its say (see `RecordDraft`), and what the decoder added to it on average in the rows before. The decoder judges it:
guesses change how many passes a record takes, never its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .token_sampling import SamplingError, choose_tokens


#: A pass costs about as much as feeding so many tokens, beside those it feeds: on a processor it reads the weights,
#: elsewhere it starts kernels. Constants, so that what is guessed, and so how bf16 rounds, is the same every time.
_TOKENS_PER_PASS = {"cpu": 40.0}
_TOKENS_PER_PASS_ELSEWHERE = 500.0
#: Guesses by which a place's acceptance is taken to be known beforehand: so many, of which so many stood.
_PRIOR_TRIED, _PRIOR_STOOD = 3.0, 2.0
#: What the decoder adds to a place is averaged over about so many rows.
_ROWS_HEARD = 50


class DraftProposals:
    """Guesses by the draft of an injection.

    Parameters
    ----------
    injection : Injection
        With `draft` [rows, places, size] and `draft_module`.
    head : nn.Linear
        The decoder's output layer.
    options : mapping
        `temperature`, `top_k` and `top_p` of `choose_tokens`.
    """

    def __init__(self, injection: Any, head: nn.Linear, options: Mapping[str, Any]) -> None:
        self._draft, self._module, self._options = injection.draft, injection.draft_module, options
        ids = self._module.token_ids
        rows = head.weight[ids.to(head.weight.device)].to(self._draft)
        self._to_logits = rows @ self._module.to_hidden.weight.to(rows)
        self._bias = rows @ self._module.to_hidden.bias.to(rows)
        if head.bias is not None:
            self._bias = self._bias + head.bias[ids.to(head.bias.device)].to(rows)
        self._ids = ids.cpu().numpy()
        self._column = np.full(head.weight.shape[0], -1)
        self._column[self._ids] = np.arange(len(self._ids))
        self._tokens_per_pass = _TOKENS_PER_PASS.get(head.weight.device.type, _TOKENS_PER_PASS_ELSEWHERE)
        self._tried = np.full(self._draft.shape[1], _PRIOR_TRIED)
        self._stood = np.full(self._draft.shape[1], _PRIOR_STOOD)
        self._added = np.zeros((self._draft.shape[1], len(self._ids)), dtype=np.float32)
        self._heard = np.zeros(self._draft.shape[1])

    @classmethod
    def of(cls, injection: Any, head: Any, options: Mapping[str, Any]) -> DraftProposals | None:
        """Where there is a draft, and a head that turns it into tokens."""
        readable = isinstance(head, nn.Linear) and head.weight.is_floating_point()
        return cls(injection, head, options) if injection.draft_module is not None and readable else None

    def places(self, located: Sequence[tuple[int, int]]) -> list[int]:
        """The draft's place behind each token, by its column and tokens since (see `locate`), or -1."""
        columns, since = torch.tensor(located).T
        return self._module.places(columns, since).tolist()

    def guess(
        self, rows: Sequence[int], places: Sequence[int], choices: Sequence[np.ndarray], uniforms: Sequence[float]
    ) -> list[int | None]:
        """What each row draws at a place by its draft alone; None where the draft knows no token that is allowed."""
        known = [self._known(allowed) for allowed in choices]
        guesses: list[int | None] = [None] * len(rows)
        asked = [row for row, allowed in enumerate(known) if len(allowed)]
        if asked:
            at = [places[row] for row in asked]
            logits = self._logits([rows[row] for row in asked], at)
            logits = logits + torch.from_numpy(self._added[at]).to(logits)
            try:
                drawn = choose_tokens(
                    logits,
                    [known[row] for row in asked],
                    [uniforms[row] for row in asked],
                    columns=self._ids,
                    **self._options,
                )
            except SamplingError:  # a draft of no numbers: the decoder says what is wrong
                return guesses
            for row, token in zip(asked, drawn, strict=True):
                guesses[row] = token
        return guesses

    def hear(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        choices: Sequence[np.ndarray],
        logits: Tensor,
        columns: np.ndarray | None,
    ) -> None:
        """Learn from the decoder's logits [choices, columns] what it adds to the draft at these places."""
        told = [choice for choice, place in enumerate(places) if place >= 0]
        if not told:
            return
        decoder = logits[torch.tensor(told, device=logits.device)].float().cpu().numpy()
        draft = self._logits([rows[choice] for choice in told], [places[choice] for choice in told])
        for choice, whole, alone in zip(told, decoder, draft.float().cpu().numpy(), strict=True):
            ids, place = self._known(choices[choice]), places[choice]
            if len(ids) < 2:
                continue
            own = self._column[ids]
            added = whole[ids if columns is None else np.searchsorted(columns, ids)] - alone[own]
            self._heard[place] = min(self._heard[place] + 1, _ROWS_HEARD)
            self._added[place, own] += (added - added.mean() - self._added[place, own]) / self._heard[place]

    def _logits(self, rows: Sequence[int], places: Sequence[int]) -> Tensor:
        """By the draft alone, of the tokens that it knows."""
        index = torch.tensor([rows, places], device=self._draft.device)
        return torch.addmm(self._bias, self._draft[index[0], index[1]], self._to_logits.T)

    def _known(self, allowed: np.ndarray) -> np.ndarray:
        """The allowed tokens that the draft knows."""
        return self._ids[allowed[self._ids]] if allowed.dtype == np.bool_ else allowed[self._column[allowed] >= 0]

    def chance(self, place: int) -> float:
        """The share of the guesses at this place that stand."""
        return float(self._stood[place] / self._tried[place])

    def pays(self, chance: float, tokens: int, rows: int) -> bool:
        """Whether `tokens` that are needed with this chance are to be fed along in a pass of so many rows.

        If they are needed, the row spares its share of a pass; if not, they were fed in vain.
        """
        return chance * self._tokens_per_pass / rows >= (1 - chance) * tokens

    def learn(self, place: int, stood: bool) -> None:
        """Count a guess that was judged."""
        self._tried[place] += 1
        self._stood[place] += stood
