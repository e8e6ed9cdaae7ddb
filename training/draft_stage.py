"""The first part of a table's fit: the draft of its columns, and the latents to which it reads the records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflm.devices import choose_device
from difflm.files import read_json, write_json
from difflm.modeling_difflm import Posterior
from difflm.modeling_draft import ColumnDraft
from difflm.pipelines.cell_codes import MISSING
from difflm.training.draft_trainer import train_draft
from difflm.training.preparation import Prepared
from difflm.training.progress import no_file_bars
from difflm.training.seeds import seeded_generator


LATENTS, LOG = "column_latents.safetensors", "draft_log.json"


@dataclass
class FittedColumns:
    """A draft and what the later parts need of it.

    Attributes
    ----------
    draft : ColumnDraft
    latents : (Tensor, Tensor)
        Posterior means of the training and of the held-out records, ``[records, draft.latent_size]``, on the CPU.
    log : dict
        Figures of its training.
    """

    draft: ColumnDraft
    latents: tuple[Tensor, Tensor]
    log: dict[str, Any]

    @property
    def posteriors(self) -> tuple[Posterior, Posterior]:
        """Of the training and of the held-out records."""
        train, held_out = (Posterior(means, (2 * self.noise.log()).expand_as(means)) for means in self.latents)
        return train, held_out

    @property
    def noise(self) -> Tensor:
        """The posterior's standard deviations, ``[draft.latent_size]``, on the CPU."""
        return self.draft.latent_noise.cpu()

    @torch.no_grad()
    def nats(self, prepared: Prepared, most: int, seed: int) -> float:
        """Of the cells of so many held-out records, of which the language model's evaluation sees the same latents."""
        if prepared.codes is None:
            raise ValueError("These records have no cells that a draft writes.")
        means = self.latents[1][:most]
        codes = torch.from_numpy(prepared.codes.encode(prepared.held_out[:most]))
        latents = with_evaluation_noise(means, self.noise, seed)
        return float(self.draft.nats(latents.to(self.draft.device), codes.to(self.draft.device)).double().mean())

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` reads."""
        folder = Path(folder)
        with no_file_bars():
            self.draft.save_pretrained(folder)
        save_file({"train": self.latents[0].contiguous(), "held_out": self.latents[1].contiguous()}, folder / LATENTS)
        write_json(folder / LOG, self.log)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> FittedColumns:
        """Read a folder written by `save`."""
        folder = Path(folder)
        tensors = load_file(folder / LATENTS)
        draft: Any = ColumnDraft.from_pretrained(folder, use_safetensors=True)
        draft = draft.to(choose_device(device)).eval()
        return cls(draft, (tensors["train"], tensors["held_out"]), read_json(folder / LOG))


def with_evaluation_noise(means: Tensor, noise: Tensor, seed: int) -> Tensor:
    """Latents as they are sampled, with the posterior's noise in the first dimensions: the same for the same seed."""
    drawn = torch.randn(len(means), len(noise), generator=seeded_generator(seed, "evaluation", 0))
    size = len(noise)
    return torch.cat([means[:, :size] + (drawn * noise.cpu()).to(means), means[:, size:]], dim=1)


def fit_columns(
    prepared: Prepared,
    *,
    max_seconds: float | None = None,
    seed: int = 0,
    device: str | None = None,
    show_progress: bool = True,
) -> FittedColumns | None:
    """Train the draft of the columns that have codes, until held-out records gain no more; None if there are none.

    Parameters
    ----------
    prepared : Prepared
    max_seconds : float, optional
    seed : int, default 0
    device : str, optional
        See [`choose_device`].
    show_progress : bool, default True
    """
    if prepared.codes is None:
        return None
    codes = [prepared.codes.encode(part) for part in (prepared.train, prepared.held_out)]
    fitted = train_draft(
        prepared.codes.columns,
        *codes,
        told=_told(prepared, codes[0]),
        policy=prepared.settings.policy,
        max_seconds=max_seconds,
        seed=seed,
        device=choose_device(device),
        show_progress=show_progress,
    )
    draft = fitted.draft
    means = []
    for number, part in enumerate(codes):
        generator = seeded_generator(seed, "ranks of equal values", number)
        with torch.no_grad():
            means.append(draft.encode(torch.from_numpy(part).to(draft.device), generator).float().cpu())
    log = {
        "draft_seconds": fitted.seconds,
        "draft_steps": fitted.steps,
        "draft_stop_reason": fitted.stop_reason,
        "draft_nats": fitted.held_out_nats,
        "draft_history": fitted.history,
    }
    return FittedColumns(draft, (means[0], means[1]), log)


def _told(prepared: Prepared, codes: np.ndarray) -> np.ndarray:
    """Codes of which the draft may keep quantiles: unless ranges are told exactly, without the values at their ends.

    The ``rare_below`` smallest and largest of a number or date are replaced by steps up to the ends that are told.
    """
    if prepared.disclosure.get("ranges", "exact") == "exact" or prepared.codes is None:
        return codes
    codes, place = codes.copy(), 0
    for name in prepared.codes.names:
        column = prepared.schema.column(name)
        if column.minimum is not None:
            low, high = (end[0] for end in column.rules.coded_range(None, None, True))
            known = codes[:, place] != MISSING
            codes[known, place] = _without_ends(codes[known, place], low, high, prepared.disclosure["rare_below"])
        place += len(column.rules.coded_parts())
    return codes


def _without_ends(codes: np.ndarray, low: int, high: int, count: int) -> np.ndarray:
    """Codes in ascending order, of which the first and the last ``count`` are steps from ``low`` and to ``high``."""
    if len(codes) <= 2 * count:
        return np.linspace(low, high, len(codes)).round().astype(np.int64)
    codes = np.sort(codes)
    codes[:count] = np.linspace(low, codes[count], count + 1)[:-1].round()
    codes[-count:] = np.linspace(codes[-1 - count], high, count + 1)[1:].round()
    return codes
