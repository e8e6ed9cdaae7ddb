"""The two scripts in a row: a table becomes an autoencoder and latents, latents become a denoiser."""

from __future__ import annotations

import json

from difflm.modeling_difflm import DiffLMModel
from difflm.pipelines.record_schema import RecordSchema
from difflm.training import train_autoencoder
from difflm.training.latents import LatentDataset


def test_a_table_becomes_an_autoencoder_and_latents(model_folders, small_table, tmp_path):
    small_table.to_csv(tmp_path / "table.csv", index=False)
    train_autoencoder.main(
        [
            *("--data", str(tmp_path / "table.csv"), "--save_dir", str(tmp_path / "saved")),
            *("--output_dir", str(tmp_path / "checkpoints"), "--max_steps", "4", "--eval_steps", "2"),
            *("--encoder", model_folders["encoder"], "--decoder", model_folders["decoder"]),
            *("--model_kwargs", json.dumps({"latent_size": 4, "decoder_dtype": "float32"})),
            *("--disable_tqdm", "True", "--use_cpu", "True", "--save_strategy", "no"),
        ]
    )
    model = DiffLMModel.from_pretrained(tmp_path / "saved")
    assert model.config.latent_size == 4
    schema = RecordSchema.from_dict(json.loads((tmp_path / "saved" / "schema.json").read_text()))
    assert list(schema.names) == list(small_table.columns)
    latents = LatentDataset.load(tmp_path / "saved" / "latents.safetensors")
    assert latents.mean.shape == (54, 4)
    assert latents.log_variance.shape == (54, 4)
