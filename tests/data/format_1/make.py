"""Makes the checkpoints beside it, and what is sampled from them, with the difflm that is imported (commit 25f3e31).

Usage: ``python make.py FOLDER-FOR-THE-TINY-MODELS``.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import KarrasVeScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from ways import sampled

from difflm import DiffLMDenoiser, DiffLMModel, DiffLMPipeline, RecordSchema
from difflm.training import stages
from difflm.training.presets import Preset
from difflm.training.train_difflm import fit


HERE = Path(__file__).parent
SMALL = {
    "decoder_dtype": "float32",
    "latent_size": 6,
    "num_injection_tokens": 2,
    "injection_hidden_size": 16,
    "injection_token_size": 8,
}
COLUMNS = {"feature_size": 16, "column_embedding_size": 8, "draft_size": 4}


def byte_tokenizer(specials: list[str], **names: Any) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if "[CLS]" in specials:
        ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def write_models(folder: Path) -> None:
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    encoder = BertModel(
        BertConfig(
            vocab_size=259,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    decoder.save_pretrained(folder / "decoder")
    byte_tokenizer(["<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="</s>").save_pretrained(
        folder / "decoder"
    )
    encoder.save_pretrained(folder / "encoder")
    byte_tokenizer(
        ["[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "encoder")


def flat_table() -> pd.DataFrame:
    """Every kind of plain column."""
    rng, rows = np.random.default_rng(0), 90
    weight = rng.normal(20, 5, rows).round(1)
    weight[::9] = np.nan
    days = pd.Timestamp("2024-01-31") + pd.to_timedelta(rng.integers(0, 12, rows), unit="D")
    hours = pd.to_timedelta(rng.integers(0, 15, rows), unit="h")
    seen = pd.Series(pd.Timestamp("2024-03-01 08:00", tz="Europe/Berlin") + hours)
    kinds = ["ünï", "cat", "dog, big"]
    return pd.DataFrame(
        {
            "age": rng.integers(-3, 2000, rows),
            "weight": weight,
            "share": (rng.random(rows) ** 4).round(5).astype("float32"),
            "legs": pd.array(rng.choice([2, 4], rows), dtype="Int8"),
            "tame": pd.array(np.where(rng.random(rows) < 0.2, None, rng.random(rows) < 0.7), dtype="boolean"),
            "kind": pd.Categorical(rng.choice(kinds, rows), kinds, ordered=True),
            "born": days,
            "seen": seen.where(rng.random(rows) < 0.9),
            "note": ["".join(rng.choice(list('ab ,"\n'), rng.integers(1, 9))) for _ in range(rows)],
        }
    )


def nested_records() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "name": "".join(rng.choice(list("abc_"), 5)),
            "price": float(rng.integers(1, 900)) / 4,
            "when": f"2024-0{rng.integers(1, 9)}-11",
            "tags": [str(tag) for tag in rng.choice(["x", "y"], rng.integers(0, 3))],
            "size": None if row % 7 == 0 else {"w": int(rng.integers(1, 5)), "deep": {"ok": bool(row % 2)}},
        }
        for row in range(60)
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    models_folder = Path(sys.argv[1])
    write_models(models_folder)
    stages.MIN_ROWS_TO_WARM_UP = 10
    flat, nested = flat_table(), nested_records()
    asked = {
        "values": {
            "rows": flat.head(3),
            "condition": {"kind": ["cat", "dog, big"], "age": (10, 500), "tame": True},
            "given": [{"kind": "cat", "weight": 21.5, "note": "a"}, {"age": 17, "tame": False, "note": ""}],
        },
        "json": {
            "rows": nested[:3],
            "condition": {"price": (3.5, 100.0)},
            "given": [{"name": "abc", "when": "2024-01-11", "tags": ["x"]}],
        },
        "text": {"rows": [{"text": f"def f():\n    return {i}\n"} for i in range(3)], "condition": {}, "given": [{}]},
    }
    texts = {}
    for name, data in (("values", flat), ("json", nested), ("text", None)):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        if data is None:
            text_pipeline(models_folder, folder)
        else:
            fitted(name, data, models_folder, folder)
        # As saved: the order of nested keys was lost on the way.
        pipe = DiffLMPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        asked[name]["rows"] = rows = pipe.schema.to_records(asked[name]["rows"])
        texts[name] = sampled(pipe, rows, asked[name]["condition"], asked[name]["given"])
        for path in folder.rglob("*.py"):
            path.unlink()
        config = folder / "autoencoder" / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings |= {"decoder_name_or_path": "decoder", "encoder_name_or_path": "encoder"}
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(HERE / "decoder", ignore_errors=True)
    shutil.copytree(models_folder / "decoder", HERE / "decoder")
    content = json.dumps({"asked": asked, "texts": texts}, indent=1, ensure_ascii=False)
    (HERE / "sampled.json").write_text(content + "\n", encoding="utf-8")


def fitted(name: str, data: Any, models_folder: Path, folder: Path) -> None:
    columns = name == "values"
    preset = Preset(
        encoder=str(models_folder / "encoder"),
        decoder=str(models_folder / "decoder"),
        record_format=name,
        epochs=1.0,
        max_minutes=None,
        batch_size=8,
        denoiser_steps=20,
        model=SMALL | COLUMNS | {"injection": "kv_memory" if columns else "soft_prompt"},
        denoiser={"hidden_size": 16, "num_blocks": 2},
        column_features=columns,
        column_embeddings=columns,
    )
    fit(data, folder, preset=preset, training_kwargs={"latent_warmup_steps": 20}, show_progress=False)


def text_pipeline(models_folder: Path, folder: Path) -> None:
    """Of raw texts, which `fit` did not take."""
    torch.manual_seed(1)
    encoder, decoder = (str(models_folder / name) for name in ("encoder", "decoder"))
    model = DiffLMModel.from_encoder_decoder(encoder, decoder, injection="embedding", **SMALL)
    pipe = DiffLMPipeline(
        autoencoder=model.eval(),
        denoiser=DiffLMDenoiser(latent_size=6, hidden_size=16, num_blocks=2, num_record_digests=1).eval(),
        scheduler=KarrasVeScheduler(sigma_min=0.002, sigma_max=80.0, s_churn=10.0, s_noise=1.0),
        encoder_tokenizer=AutoTokenizer.from_pretrained(encoder),
        decoder_tokenizer=AutoTokenizer.from_pretrained(decoder),
        record_schema=RecordSchema.for_text(max_length=30).to_dict(),
        max_new_tokens=90,
    )
    pipe.save_pretrained(folder)


if __name__ == "__main__":
    main()
