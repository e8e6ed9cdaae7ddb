"""The packed loop writes what transformers' generate writes, for several architectures and every injection."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from difflm.modeling_difflm import DiffLMConfig, Injection, RecordDraft, bias_tokens
from difflm.pipelines import packed_linear
from difflm.pipelines.decode_rows import decode_rows
from difflm.pipelines.packed_attention import ATTENTION_NAME, UnsupportedDecoderError, _split, packed, supports
from difflm.pipelines.proposals import DraftProposals
from difflm.pipelines.record_grammar import RecordConstraint
from difflm.pipelines.token_sampling import RecordLogitsProcessor, RowRandom
from difflm.pipelines.value_grammars import ValueSpec


SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.3,  # far from uniform, so that attention matters
}
ROWS = 12


def make_decoder(name: str) -> PreTrainedModel:
    """A tiny decoder, in float64: two ways to the same logits then choose the same tokens on every processor."""
    return _make_decoder(name).double().eval()


def _make_decoder(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    if name == "granite":  # scales its logits: its output layer is not one plain linear map
        return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=2.0))
    if name == "gemma2":  # soft-capped attention, which the packed attention does not know
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8))
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=258, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, initializer_range=0.3
        )
    )


@pytest.fixture(scope="module", params=["llama", "gpt2", "granite"])
def decoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_decoder(request.param)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return make_decoder("llama")


@pytest.fixture(scope="module")
def constraint(decoder_tokenizer: PreTrainedTokenizerFast) -> RecordConstraint:
    return RecordConstraint.compile(
        decoder_tokenizer,
        vocab_size=258,
        bos_token_id=0,
        eos_token_id=1,
        fixed_segments=['{"age": ', ', "city": ', ', "note": ', ', "x": ', "}"],
        values=[
            ValueSpec("age", "integer", minimum=0, maximum=120, nullable=True),
            ValueSpec("city", "category", texts=('"Rome"', '"Romford"', '"Oslo"')),
            ValueSpec("note", "text", max_length=5),
            ValueSpec("x", "decimal", decimals=2, minimum=-4, maximum=4, bounded=True),
        ],
    )


def make_injection(kind: str, decoder: PreTrainedModel, rows: int = ROWS) -> Injection:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "kv_memory":
        heads = getattr(decoder.config, "num_key_value_heads", 4)
        return Injection(past_key_values=[(noise(rows, heads, 3, 8), noise(rows, heads, 3, 8)) for _ in range(2)])
    if kind == "soft_prompt":
        return Injection(prefix_embeds=noise(rows, 5, 32))
    if kind == "columns":
        return Injection(prefix_embeds=noise(rows, 5, 32), token_bias=noise(rows, 3, 32))
    if kind in ("draft", "sure draft"):
        config = DiffLMConfig(
            decoder_hidden_size=32,
            draft_places=[2, 1, 5] if kind == "draft" else [14, 20, 20, 20],
            draft_token_ids=list(range(1, 258)),
            separator_token_ids=[5],
            draft_size=4,
        )
        module = RecordDraft(config).double()
        module.to_hidden.weight.data, module.to_hidden.bias.data = noise(32, 4), noise(32)
        if kind == "sure draft":  # outweighs what the decoder says: most guesses stand
            module.to_hidden.weight.data *= 8
            return Injection(draft=noise(rows, 74, 4), draft_module=module)
        return Injection(
            prefix_embeds=noise(rows, 5, 32),
            token_bias=noise(rows, 3, 32),
            draft=noise(rows, 8, 4),
            draft_module=module,
        )
    return Injection(token_bias=noise(rows, 1, 32))


def randoms(rows: int = ROWS) -> list[RowRandom]:
    return [RowRandom(3, row) for row in range(rows)]


@torch.no_grad()
def reference(
    decoder: PreTrainedModel, injection: Injection, processor: RecordLogitsProcessor, new: int
) -> list[list[int]]:
    """The same by `generate`: tokens up to EOS."""
    embeddings = decoder.get_input_embeddings()
    arguments = {}
    with bias_tokens(decoder, injection):
        embeds = embeddings(torch.zeros(ROWS, 1, dtype=torch.long))
        if injection.prefix_embeds is not None:
            embeds = torch.cat([injection.prefix_embeds, embeds], dim=1)
        if injection.past_key_values is not None:
            arguments["past_key_values"] = DynamicCache()
            for layer, (key, value) in enumerate(injection.past_key_values):
                arguments["past_key_values"].update(key, value, layer)
            embeds = embeds.expand(-1, injection.length + 1, -1)
        written = decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            logits_processor=LogitsProcessorList([processor]),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=1,
            pad_token_id=1,
            **arguments,
        ).tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in written]


@pytest.mark.parametrize("kind", ["kv_memory", "soft_prompt", "embedding", "columns", "draft"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 40, "top_p": 0.9}], ids=["plain", "top"])
def test_same_tokens_as_generate(
    decoder: PreTrainedModel, constraint: RecordConstraint, kind: str, options: dict[str, float]
) -> None:
    injection = make_injection(kind, decoder)
    if kind in ("columns", "draft"):  # the comma; three columns for four values: the last is shared
        injection.separator_ids = torch.tensor(constraint.fixed[1][:1])
    expected = reference(decoder, injection, RecordLogitsProcessor(constraint, randoms(), **options), 100)
    for batch_size in (1, 5, 64):
        found = decode_rows(decoder, injection, constraint, randoms(), batch_size=batch_size, **options)
        assert found == expected
    assert len({constraint.text(row) for row in expected}) == ROWS
    assert len({len(row) for row in expected}) > 1  # rows finish at different times


def count_passes(decoder: PreTrainedModel, run: Callable[[], list[list[int]]]) -> tuple[list[list[int]], int]:
    """What `run` returns, and how many passes it took."""
    passes: list[int] = []
    handle = decoder.base_model.register_forward_hook(lambda module, args, output: passes.append(1))
    found = run()
    handle.remove()
    return found, len(passes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.6},
        {"max_new_tokens": 40},
        {"constrained": False, "max_new_tokens": 30},
    ],
    ids=str,
)
def test_guesses_change_no_token(
    llama: PreTrainedModel, constraint: RecordConstraint, options: dict[str, Any]
) -> None:
    injection = make_injection("sure draft", llama)
    injection.separator_ids = torch.tensor(constraint.fixed[1][:1])
    if options.get("constrained", True):
        given = [None, {"age": "7"}, None, {"note": '"a"'}, {"city": '"Rome"', "x": "0.25"}, None]
        options = options | {"given_texts": given * (ROWS // len(given))}

    def write(batch_size: int, most_guesses: int) -> tuple[list[list[int]], int]:
        arguments = {"batch_size": batch_size, "most_guesses": most_guesses, **options}
        return count_passes(llama, lambda: decode_rows(llama, injection, constraint, randoms(), **arguments))

    plain, plain_passes = write(1, 0)
    for batch_size, most_guesses in ((1, 1), (5, 3), (64, 32), (64, 0)):
        assert write(batch_size, most_guesses)[0] == plain
    guessed, passes = write(1, 32)
    assert guessed == plain
    assert passes < 0.7 * plain_passes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_guesses_and_neighbours_change_no_token_of_real_weights(
    real_models: tuple[Any, ...], dtype: torch.dtype
) -> None:
    """Not by rounding either: every token has the same logits, to the last bit, whatever is fed along with it."""
    if not packed_linear._multiplies(dtype):
        pytest.skip("the products of this processor differ by how many tokens they are of")
    decoder, tokenizer, rows = copy.deepcopy(real_models[1]).to(dtype), real_models[3], 6
    constraint = RecordConstraint.compile(
        tokenizer,
        vocab_size=decoder.config.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        fixed_segments=["", ",", ",", ""],
        values=[
            ValueSpec("x", "decimal", decimals=4, minimum=0, maximum=1, bounded=True),
            ValueSpec("city", "category", texts=("Rome", "Romford", "Oslo", "Bergen")),
            ValueSpec("note", "text", max_length=25),
        ],
    )
    texts = tokenizer(["0.123456789", "Rome", "Romford", "Oslo", "Bergen"])["input_ids"]
    torch.manual_seed(0)
    module = RecordDraft(
        DiffLMConfig(
            decoder_hidden_size=decoder.config.hidden_size,
            draft_places=[8, 5, 4],
            draft_token_ids=sorted({token for text in texts for token in text}),
            separator_token_ids=tokenizer(",")["input_ids"],
            draft_size=4,
        )
    )
    module.to_hidden.weight.data = torch.randn(decoder.config.hidden_size, 4)
    injection = Injection(
        draft=torch.randn(rows, 17, 4), draft_module=module, separator_ids=torch.tensor(tokenizer(",")["input_ids"])
    )

    def write(batch_size: int, most_guesses: int) -> tuple[list[list[int]], int]:
        arguments = {"batch_size": batch_size, "most_guesses": most_guesses}
        return count_passes(decoder, lambda: decode_rows(decoder, injection, constraint, randoms(rows), **arguments))

    plain, plain_passes = write(1, 0)
    guessed, passes = write(1, 32)
    assert guessed == plain
    assert passes < 0.9 * plain_passes
    for batch_size, most_guesses in ((4, 2), (6, 0)):
        assert write(batch_size, most_guesses)[0] == plain


def test_guesses_of_a_draft_that_knows_nothing(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    """Its guesses never stand, or are no numbers: they cost a few tokens, and are given up."""
    injection = make_injection("sure draft", llama)
    injection.separator_ids = torch.tensor(constraint.fixed[1][:1])
    plain = decode_rows(llama, injection, constraint, randoms(), most_guesses=0)
    ids = injection.draft_module.token_ids
    for other in (ids.flip(0), ids[:0], ids[:1]):
        injection.draft_module.token_ids = other.sort().values
        assert decode_rows(llama, injection, constraint, randoms()) == plain
    injection.draft_module.token_ids = ids
    proposals = DraftProposals.of(injection, llama.get_output_embeddings(), {})
    before = proposals.chance(2)
    for _ in range(50):
        proposals.learn(2, stood=False)
    assert proposals.chance(2) < 0.1 < before == proposals.chance(1)
    assert proposals.pays(before, 1, rows=1) and not proposals.pays(proposals.chance(2), 3, rows=8)
    injection.draft[:] = math.nan
    allowed = np.arange(9, 30)
    assert DraftProposals.of(injection, llama.get_output_embeddings(), {}).guess([0], [1], [allowed], [0.5]) == [None]


def test_a_decoder_that_always_gives_all_logits(constraint: RecordConstraint) -> None:
    decoder = make_decoder("granite")
    injection = make_injection("draft", decoder)
    injection.separator_ids = torch.tensor(constraint.fixed[1][:1])
    expected = decode_rows(decoder, injection, constraint, randoms())
    whole = decoder.forward

    def forward(input_ids=None, inputs_embeds=None, position_ids=None, past_key_values=None, use_cache=None):
        return whole(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    decoder.forward = forward
    assert decode_rows(decoder, injection, constraint, randoms()) == expected


def test_same_tokens_as_generate_without_constraint(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    injection = make_injection("kv_memory", llama)
    processor = RecordLogitsProcessor(constraint, randoms(), constrained=False, temperature=0.5)
    expected = reference(llama, injection, processor, 12)
    found = decode_rows(
        llama,
        injection,
        constraint,
        randoms(),
        constrained=False,
        temperature=0.5,
        batch_size=5,
        max_new_tokens=12,
    )
    assert found == expected
    assert max(map(len, found)) == 12


def test_the_injection_decides_the_row(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    first = make_injection("kv_memory", llama)
    assert first.past_key_values is not None
    second = Injection(past_key_values=[(key.roll(1, 0), value.roll(1, 0)) for key, value in first.past_key_values])
    decoded = []
    for injection in (first, second):
        same = [RowRandom(0, 0) for _ in range(ROWS)]
        decoded.append(decode_rows(llama, injection, constraint, same))
    assert decoded[1] == decoded[0][-1:] + decoded[0][:-1]
    assert len({tuple(row) for row in decoded[0]}) > 1


def test_given_cells_hold_and_finished_rows_are_reported(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    given = [{"age": str(row), "city": '"Oslo"'} for row in range(ROWS - 1)]
    given.append({"age": "7", "city": '"Rome"', "note": '"a"', "x": "0.25"})  # nothing is left to decode
    done: list[int] = []
    found = decode_rows(
        llama,
        make_injection("embedding", llama),
        constraint,
        randoms(),
        given_texts=given,
        batch_size=4,
        on_rows_done=done.append,
    )
    texts = [constraint.text(row) for row in found]
    assert all(text.startswith(f'{{"age": {row}, "city": "Oslo", ') for row, text in enumerate(texts[:-1]))
    assert texts[-1] == '{"age": 7, "city": "Rome", "note": "a", "x": 0.25}'
    assert sum(done) == ROWS
    assert len(done) > 1


def test_records_are_cut_at_max_new_tokens(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    found = decode_rows(llama, make_injection("embedding", llama), constraint, randoms(), max_new_tokens=20)
    assert [len(row) for row in found] == [20] * ROWS


def test_only_choices_cost_a_pass(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    passes: list[int] = []
    handle = llama.model.register_forward_hook(lambda module, args, output: passes.append(1))
    given = [{"age": "7", "note": '"a"', "x": "0.25"}]  # two choices are left at most: "Ro|Os", then "m|e"
    decode_rows(llama, make_injection("embedding", llama, 1), constraint, randoms(1), given_texts=given)
    handle.remove()
    assert len(passes) in (1, 2)


def test_the_decoder_is_left_as_it_was(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    before = {name: dict(vars(module)) for name, module in llama.named_modules()}
    config = llama.config.to_dict()
    failing = [*randoms(ROWS - 1), SimpleNamespace(look_ahead=lambda place: 1 / 0)]
    with pytest.raises(ZeroDivisionError):
        decode_rows(llama, make_injection("embedding", llama), constraint, failing)
    assert {name: vars(module) for name, module in llama.named_modules()} == before
    assert llama.config.to_dict() == config
    assert llama.config._attn_implementation == "sdpa"


def test_a_decoder_is_packed_once_at_a_time(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    with packed(llama, 2), pytest.raises(RuntimeError, match="decoding already: hold its lock"):
        decode_rows(llama, make_injection("embedding", llama), constraint, randoms())


def test_the_attention_belongs_to_one_decoder(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    """Another model of the same configuration object, and another owner of the name, change nothing."""
    injection = make_injection("kv_memory", llama)
    expected = decode_rows(llama, injection, constraint, randoms())
    twin = LlamaForCausalLM(llama.config).eval()
    tokens = torch.arange(9)[None]
    before = twin(tokens).logits
    registered = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    specification = importlib.util.find_spec("difflm.pipelines.packed_attention")
    other = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(other)
    assert ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] is not registered
    seen = []
    found = decode_rows(
        llama, injection, constraint, randoms(), on_rows_done=lambda count: seen.append(twin(tokens).logits)
    )
    assert found == expected
    assert seen and all(torch.equal(logits, before) for logits in seen)


def test_a_decoder_with_other_attention_is_refused(constraint: RecordConstraint) -> None:
    gemma = make_decoder("gemma2")
    assert not supports(gemma)
    with pytest.raises(UnsupportedDecoderError, match="Gemma2ForCausalLM.*fast=False"):
        decode_rows(gemma, Injection(token_bias=torch.zeros(1, 1, 32)), constraint, randoms(1))


def test_no_rows_and_no_batch(llama: PreTrainedModel, constraint: RecordConstraint) -> None:
    nothing = Injection(token_bias=torch.zeros(0, 1, 32))
    assert decode_rows(llama, nothing, constraint, []) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        decode_rows(llama, nothing, constraint, [], batch_size=0)


def test_long_runs_are_padded_apart() -> None:
    assert [group.tolist() for group in _split(np.array([2, 2, 2, 2]))] == [[0, 1, 2, 3]]
    assert [group.tolist() for group in _split(np.array([1, 30, 2, 1, 1, 28]))] == [[0, 2, 3, 4], [1, 5]]
    assert [group.tolist() for group in _split(np.array([9]))] == [[0]]
