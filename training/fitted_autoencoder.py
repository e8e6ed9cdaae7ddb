"""What the denoiser learns from, and what a pipeline needs beside it: latents, draft, autoencoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difflm.devices import choose_device
from difflm.files import read_json, write_json
from difflm.modeling_difflm import DiffLMModel, Posterior
from difflm.modeling_draft import ColumnDraft
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.training_digests import record_digest
from difflm.training.draft_stage import FittedColumns
from difflm.training.latents import LatentDataset
from difflm.training.policy import Policy
from difflm.training.preparation import Prepared, Tokenizers
from difflm.training.presets import Preset
from difflm.training.progress import no_file_bars


LATENTS, HELD_OUT_LATENTS, STAGE = "latents.safetensors", "held_out_latents.safetensors", "stage.json"
DRAFT = "draft"


@dataclass
class FittedAutoencoder:
    """What comes before the denoiser.

    Attributes
    ----------
    model : DiffLMModel, optional
        None: it is trained after the denoiser, which then learns the latents of the draft alone.
    draft : ColumnDraft, optional
    tokenizers : Tokenizers
    settings : Preset
    schema : RecordSchema
    latents, held_out_latents : LatentDataset
        Posteriors of the training and of the held-out records, with their condition labels; the former with the
        records' digests.
    condition_classes : list of dict
        Of the [`ConditionEncoder`].
    max_length : int
        Most decoder tokens of a record.
    log : dict
        Figures so far.
    """

    model: DiffLMModel | None
    draft: ColumnDraft | None
    tokenizers: Tokenizers
    settings: Preset
    schema: RecordSchema
    latents: LatentDataset
    held_out_latents: LatentDataset
    condition_classes: list[dict[str, Any]]
    max_length: int
    log: dict[str, Any]

    @classmethod
    def of_posteriors(
        cls,
        prepared: Prepared,
        posteriors: tuple[Posterior, Posterior],
        conditions: ConditionEncoder,
        log: dict[str, Any],
        *,
        model: DiffLMModel | None = None,
        columns: FittedColumns | None = None,
    ) -> FittedAutoencoder:
        """Put together what the parts before gave; ``posteriors`` of the training and of the held-out records."""
        latents, held_out = (
            LatentDataset(
                mean=posterior.mean,
                log_variance=posterior.log_variance,
                labels=conditions.labels(records) if conditions.classes else None,
                class_sizes=conditions.class_sizes or None,
                class_names=conditions.names or None,
            )
            for posterior, records in zip(posteriors, (prepared.train, prepared.held_out), strict=True)
        )
        digests = sorted(record_digest(prepared.schema.serialize(record)) for record in prepared.train)
        latents.record_digests = torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
        return cls(
            model=model,
            draft=None if columns is None else columns.draft,
            tokenizers=prepared.tokenizers,
            settings=prepared.settings,
            schema=prepared.schema,
            latents=latents,
            held_out_latents=held_out,
            condition_classes=conditions.classes,
            max_length=prepared.max_length,
            log=log,
        )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        for model in (self.model, self.draft):
            if model is not None:
                return model.device
        return choose_device(None)

    @property
    def condition_encoder(self) -> ConditionEncoder:
        return ConditionEncoder(self.condition_classes)

    def save(self, folder: str | Path) -> None:
        """Write everything but the frozen decoder and the tokenizers to a folder; ``stage.json`` comes last."""
        folder = Path(folder)
        with no_file_bars():
            if self.model is not None:
                self.model.save_pretrained(folder)
            if self.draft is not None:
                self.draft.save_pretrained(folder / DRAFT)
        self.latents.save(folder / LATENTS)
        self.held_out_latents.save(folder / HELD_OUT_LATENTS)
        write_json(
            folder / STAGE,
            {
                "settings": dataclasses.asdict(self.settings),
                "schema": self.schema.to_dict(),
                "condition_classes": self.condition_classes,
                "max_length": self.max_length,
                "log": self.log,
            },
        )

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> FittedAutoencoder:
        """Read a folder written by `save`.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is none, or a file of it is damaged.
        """
        folder = Path(folder)
        if not (folder / STAGE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no fitted autoencoder (no {STAGE}): run difflm.training.train_autoencoder first."
            )
        stage = read_json(folder / STAGE)
        settings = Preset(**stage["settings"] | {"policy": Policy(**stage["settings"]["policy"])})
        draft: Any = None
        if (folder / DRAFT).is_dir():
            draft = ColumnDraft.from_pretrained(folder / DRAFT, use_safetensors=True)
            draft = draft.to(choose_device(device)).eval()
        model = DiffLMModel.from_pretrained(folder).to(choose_device(device))
        return cls(
            model=model,
            draft=draft,
            tokenizers=Tokenizers.load(settings, reads_text=model.encoder is not None),
            settings=settings,
            schema=RecordSchema.from_dict(stage["schema"]),
            latents=LatentDataset.load(folder / LATENTS),
            held_out_latents=LatentDataset.load(folder / HELD_OUT_LATENTS),
            condition_classes=stage["condition_classes"],
            max_length=stage["max_length"],
            log=stage["log"],
        )
