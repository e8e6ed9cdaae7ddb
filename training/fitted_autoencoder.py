"""What the first stage leaves for the second: the autoencoder, the records' latents, and what a pipeline needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflm.devices import choose_device
from difflm.files import read_json, write_json
from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.conditions import ConditionEncoder
from difflm.pipelines.record_schema import RecordSchema
from difflm.training.latents import LatentDataset
from difflm.training.policy import Policy
from difflm.training.preparation import Tokenizers, load_tokenizer
from difflm.training.presets import Preset
from difflm.training.progress import no_file_bars


LATENTS, HELD_OUT_LATENTS, STAGE = "latents.safetensors", "held_out_latents.safetensors", "stage.json"


@dataclass
class FittedAutoencoder:
    """The first stage's result.

    Attributes
    ----------
    model : DiffLMModel
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
        Figures of the stage.
    """

    model: DiffLMModel
    tokenizers: Tokenizers
    settings: Preset
    schema: RecordSchema
    latents: LatentDataset
    held_out_latents: LatentDataset
    condition_classes: list[dict[str, Any]]
    max_length: int
    log: dict[str, Any]

    @property
    def condition_encoder(self) -> ConditionEncoder:
        return ConditionEncoder(self.condition_classes)

    def save(self, folder: str | Path) -> None:
        """Write everything but the frozen decoder and the tokenizers to a folder; ``stage.json`` comes last."""
        folder = Path(folder)
        with no_file_bars():
            self.model.save_pretrained(folder)
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
        return cls(
            model=DiffLMModel.from_pretrained(folder).to(choose_device(device)),
            tokenizers=Tokenizers(load_tokenizer(settings.encoder), load_tokenizer(settings.decoder)),
            settings=settings,
            schema=RecordSchema.from_dict(stage["schema"]),
            latents=LatentDataset.load(folder / LATENTS),
            held_out_latents=LatentDataset.load(folder / HELD_OUT_LATENTS),
            condition_classes=stage["condition_classes"],
            max_length=stage["max_length"],
            log=stage["log"],
        )
