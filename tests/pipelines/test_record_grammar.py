"""The grammar of a record: every walk the constraint allows is a valid record, on friendly and hostile schemas."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from difflm.pipelines.errors import DecodingError
from difflm.pipelines.record_grammar import FreeState, RecordConstraint
from difflm.pipelines.value_grammars import ValueSpec
from difflm.pipelines.vocabulary import tokenize_segment


CORPUS = ['{"name": "New York", "n": 12345, "x": -0.125}', "null true false New York 100 200 300 12.5", "ééé 日本"] * 4


def bpe_tokenizer(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose vocabulary has tokens of several characters, digits included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 2's: spaces are ▁, one is put before every text, unknown characters are spelt in bytes."""
    characters = sorted(set("".join(CORPUS)) - {" "})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["bpe", "bpe with prefix space", "metaspace"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "metaspace":
        return metaspace_tokenizer()
    return bpe_tokenizer(prefix_space=request.param != "bpe")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return bpe_tokenizer()


def compile_values(tokenizer: PreTrainedTokenizerFast, *specs: ValueSpec, ends: bool = True) -> RecordConstraint:
    """A JSON record of the specs' columns; `ends=False`: one bare value alone."""
    keys = [f"{json.dumps(spec.name, ensure_ascii=False)}: " for spec in specs]
    fixed = ["{" + keys[0], *(", " + key for key in keys[1:]), "}"] if ends else ["", ""]
    return RecordConstraint.compile(
        tokenizer,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        fixed_segments=fixed,
        values=specs,
    )


def walk(constraint: RecordConstraint, seed: int = 0, given: dict[str, str] | None = None) -> list[int]:
    """A record whose every choice is uniform over the allowed tokens: it goes where no model would."""
    rng = random.Random(seed)
    state = constraint.start(given)
    tokens = state.forced()
    while not state.done:
        choices = state.choices()
        token = int(rng.choice(np.flatnonzero(choices) if choices.dtype == np.bool_ else choices))
        state.advance(token)
        tokens += [token, *state.forced()]
    return tokens


def texts_of(constraint: RecordConstraint, number: int = 200) -> list[str]:
    return [constraint.text(walk(constraint, seed)) for seed in range(number)]


# -------------------------------------------------------------------------------------------------------- tokenisation


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=12))
def test_a_segment_survives_tokenising_and_decoding(text: str) -> None:
    for made in (_BPE, _PREFIXED, _METASPACE):
        tokens = tokenize_segment(made, text)
        anchor = tokenize_segment(made, "x:")
        assert made.decode(anchor + tokens, clean_up_tokenization_spaces=False) == "x:" + text
        assert not set(tokens) & set(made.all_special_ids)


_BPE, _PREFIXED, _METASPACE = bpe_tokenizer(), bpe_tokenizer(prefix_space=True), metaspace_tokenizer()


def test_a_segment_takes_no_space_that_the_tokenizer_adds(any_tokenizer: PreTrainedTokenizerFast) -> None:
    joined = [
        token
        for text in ('{"a": ', "12", ', "b": ', '"New York"', "}")
        for token in tokenize_segment(any_tokenizer, text)
    ]
    assert any_tokenizer.decode(joined, clean_up_tokenization_spaces=False).lstrip() == '{"a": 12, "b": "New York"}'


def test_text_that_looks_like_a_special_token_is_spelt_out(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_segment(tokenizer, "</s>")
    assert tokenizer.eos_token_id not in tokens
    constraint = compile_values(tokenizer, ValueSpec("c", "category", texts=('"</s>"',)))
    assert json.loads(constraint.text(walk(constraint))) == {"c": "</s>"}


# -------------------------------------------------------------------------------------------------------------- values


def test_every_walk_is_valid_under_every_tokenizer(any_tokenizer: PreTrainedTokenizerFast) -> None:
    nested = {
        "type": "object",
        "properties": {"p": {"type": "integer"}, "q": {"type": "array", "items": {"enum": ["u", "v"]}, "maxItems": 2}},
        "required": ["p", "q"],
        "additionalProperties": False,
    }
    constraint = compile_values(
        any_tokenizer,
        ValueSpec("i", "integer", minimum=-50, maximum=250),
        ValueSpec("d", "decimal", decimals=3, minimum=0, maximum=9.5, nullable=True),
        ValueSpec("c", "category", texts=('"New"', '"New York"', '"x, y"')),
        ValueSpec("b", "boolean", nullable=True),
        ValueSpec("t", "text", max_length=5, nullable=True),
        ValueSpec("n", "null"),
        ValueSpec("j", "json", json_schema=nested, nullable=True),
    )
    schema = {
        "properties": {
            "i": {"type": "integer", "minimum": -999, "maximum": 999},
            "d": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 10},
            "c": {"enum": ["New", "New York", "x, y"]},
            "b": {"type": ["boolean", "null"]},
            "t": {"type": ["string", "null"], "maxLength": 5},
            "n": {"type": "null"},
            "j": {"anyOf": [nested, {"type": "null"}]},
        },
        "required": list("idcbtnj"),
        "additionalProperties": False,
    }
    seen: dict[str, set[str]] = {name: set() for name in "idcbtnj"}
    for text in texts_of(constraint):
        record = json.loads(text, parse_float=Decimal)
        jsonschema.validate(json.loads(text), schema)
        assert record["d"] is None or record["d"].as_tuple().exponent == -3
        assert list(record) == list("idcbtnj")
        for name, value in record.items():
            seen[name].add(type(value).__name__)
    assert seen["d"] == {"Decimal", "NoneType"}
    assert seen["t"] == {"str", "NoneType"}
    assert seen["j"] == {"dict", "NoneType"}


@pytest.mark.parametrize(
    ("decimals", "low", "high"),
    [
        (0, 30, 40),
        (0, -7, 7),
        (0, 95, 1203),
        (0, -120, -9),
        (1, -0.3, 0.4),
        (2, 9.97, 10.05),
        (0, 0, 0),
        (3, -1.5, -1.498),
        (3, -0.011, 0.021),
        (2, 99.9, 101.2),
    ],
)
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_bounded_range_is_exact(
    tokenizer: PreTrainedTokenizerFast, decimals: int, low: float, high: float, trimmed: bool
) -> None:
    kind = "decimal" if decimals else "integer"
    spec = ValueSpec("x", kind, decimals=decimals, trimmed=trimmed, minimum=low, maximum=high, bounded=True)
    constraint = compile_values(tokenizer, spec)
    step = Decimal(1).scaleb(-decimals)
    low_units, high_units = int(Decimal(str(low)) / step), int(Decimal(str(high)) / step)
    expected = {f"{units * step:.{decimals}f}" for units in range(low_units, high_units + 1)}
    if trimmed and decimals:
        expected = {text.rstrip("0") + "0" * text.rstrip("0").endswith(".") for text in expected}

    # Every allowed record, by depth-first search over texts.
    found, stack = set(), [tuple(walk(constraint, seed)) for seed in range(20)]
    stack = [()]
    while stack:
        choices_so_far = stack.pop()
        state = constraint.start()
        tokens = state.forced()
        for token in choices_so_far:
            state.advance(token)
            tokens += [token, *state.forced()]
        if state.done:
            found.add(constraint.text(tokens)[len('{"x": ') : -1])
        else:
            stack += [(*choices_so_far, int(token)) for token in state.choices()]
    assert found == expected


def test_numbers_have_no_leading_zero_exponent_or_minus_zero(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("x", "decimal", decimals=2, minimum=-1e-2, maximum=99.5))
    texts = {text[len('{"x": ') : -1] for text in texts_of(constraint, 600)}
    assert all(re.fullmatch(r"-?(0|[1-9][0-9]?)\.[0-9]{2}", text) for text in texts)
    assert not any(re.fullmatch(r"-0\.00", text) for text in texts)
    assert any(text.startswith("-") for text in texts)


def test_a_column_without_negative_numbers_gets_no_minus(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("x", "integer", minimum=0, maximum=99))
    assert not any("-" in text for text in texts_of(constraint))


def test_multi_digit_tokens_are_used(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = max(
        len(text) for _, text in compile_values(tokenizer, ValueSpec("x", "integer")).vocabulary.number_tokens
    )
    assert longest > 1


def test_literals_follow_their_canonical_tokens_only(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ('"New York"', '"New"', '"100"')
    constraint = compile_values(tokenizer, ValueSpec("c", "category", texts=texts))
    canonical = {tuple(tokenize_segment(tokenizer, text)) for text in texts}
    before, after = (len(tokenize_segment(tokenizer, part)) for part in ('{"c": ', "}"))
    assert {tuple(walk(constraint, seed)[before : -after - 1]) for seed in range(60)} == canonical


def test_bare_category_that_begins_another(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("c", "category", texts=("New", "New York")), ends=False)
    assert set(texts_of(constraint, 40)) == {"New", "New York"}


def test_string_length_is_counted_in_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("t", "text", max_length=2))
    lengths = {len(json.loads(text)["t"]) for text in texts_of(constraint, 300)}
    assert max(lengths) == 2


def test_raw_text_ends_with_eos_and_keeps_its_length(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("text", "raw", max_length=6), ends=False)
    tokens = [walk(constraint, seed) for seed in range(100)]
    assert all(row[-1] == constraint.eos_token_id and constraint.eos_token_id not in row[:-1] for row in tokens)
    texts = [constraint.text(row) for row in tokens]
    assert max(map(len, texts)) == 6
    assert not any("\ufffd" in text for text in texts)


def test_max_new_tokens_bounds_every_walk(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(
        tokenizer,
        ValueSpec("i", "integer", minimum=-9, maximum=123),
        ValueSpec("t", "text", max_length=3, nullable=True),
    )
    assert constraint.max_new_tokens is not None
    assert max(len(walk(constraint, seed)) for seed in range(200)) <= constraint.max_new_tokens
    assert compile_values(tokenizer, ValueSpec("t", "text")).max_new_tokens is None


# ------------------------------------------------------------------------------------------------------------- hostile


HOSTILE_NAMES = [
    'a "quoted" name',
    "a b",
    "{brace}",
    "日本",
    "back\\slash",
    "new\nline",
    "</s>",
    ", ",
    '": ',
    "é" * 30,
]


def test_hostile_column_names_and_categories(any_tokenizer: PreTrainedTokenizerFast) -> None:
    categories = ("", " ", '"', "\\", "null", "1e5", "-0.0", "a,b", "}", "日本", "\u0007", "</s>")
    texts = tuple(json.dumps(text, ensure_ascii=False) for text in categories)
    constraint = compile_values(any_tokenizer, *(ValueSpec(name, "category", texts=texts) for name in HOSTILE_NAMES))
    seen = set()
    for text in texts_of(constraint, 30):
        record = json.loads(text)
        assert list(record) == HOSTILE_NAMES
        seen.update(record.values())
    assert seen == set(categories)


def test_two_hundred_columns_and_five_hundred_categories(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = tuple(json.dumps(f"category {number} of many") for number in range(500))
    columns = [ValueSpec(f"column {number}", "integer", minimum=0, maximum=number) for number in range(199)]
    constraint = compile_values(tokenizer, ValueSpec("big", "category", texts=texts), *columns)
    records = [json.loads(text) for text in texts_of(constraint, 20)]
    assert {len(record) for record in records} == {200}
    assert all(json.dumps(record["big"]) in texts for record in records)
    reachable = {json.loads(constraint.text(walk(constraint, seed)))["big"] for seed in range(60)}
    assert len(reachable) > 15


def test_negative_and_scientific_looking_decimals(tokenizer: PreTrainedTokenizerFast) -> None:
    spec = ValueSpec("x", "decimal", decimals=7, minimum=-1.5e-06, maximum=2.5e-07, bounded=True)
    for text in texts_of(compile_values(tokenizer, spec)):
        number = Decimal(text[len('{"x": ') : -1])
        assert Decimal("-0.0000015") <= number <= Decimal("0.00000025")
        assert "e" not in text.removeprefix('{"x": ').lower()


def test_an_all_null_column_and_empty_strings(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("n", "null"), ValueSpec("t", "text", max_length=0))
    assert texts_of(constraint, 3) == ['{"n": null, "t": ""}'] * 3


# ----------------------------------------------------------------------------------------------- conditions and errors


def test_forced_text_and_given_cells_hold(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(
        tokenizer,
        ValueSpec("a", "integer", minimum=0, maximum=99, forced_text="42"),
        ValueSpec("b", "text", max_length=4, nullable=True),
        ValueSpec("c", "boolean"),
    )
    for seed in range(20):
        record = json.loads(constraint.text(walk(constraint, seed, given={"b": '"given, \\"é\\""', "c": "false"})))
        assert record == {"a": 42, "b": 'given, "é"', "c": False}
    state = constraint.start({"b": "null", "c": "true"})
    assert constraint.text(state.forced()) == '{"a": 42, "b": null, "c": true}'
    assert state.done  # nothing is left to choose


def test_a_state_without_constraint_ends_with_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    constraint = compile_values(tokenizer, ValueSpec("c", "boolean"))
    state = constraint.start(constrained=False)
    assert isinstance(state, FreeState)
    assert state.forced() == []
    assert state.choices().all()
    state.advance(5)
    assert not state.done
    state.advance(constraint.eos_token_id)
    assert state.done
    with pytest.raises(DecodingError, match="constrained=True"):
        constraint.start({"c": "true"}, constrained=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ValueSpec("age", "integer", minimum=40, maximum=30, bounded=True), "'age'.*between 40 and 30"),
        (ValueSpec("age", "decimal", decimals=1, minimum=0.01, maximum=0.09, bounded=True), "'age'.*1 decimals"),
        (ValueSpec("age", "integer", minimum=float("nan"), maximum=3), "'age'.*not a finite number"),
        (ValueSpec("color", "category"), "'color'.*at least one value"),
        (ValueSpec("j", "json"), "'j'.*json_schema"),
        (ValueSpec("j", "json", json_schema={"type": "nonsense"}), "'j'"),
        (ValueSpec("j", "complex"), "'j'.*'complex' is unknown"),
    ],
)
def test_impossible_values_are_named(tokenizer: PreTrainedTokenizerFast, spec: ValueSpec, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        compile_values(tokenizer, spec)


def small_vocabulary(characters: str) -> PreTrainedTokenizerFast:
    tokens = ["<unk>", "<s>", "</s>", *characters]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_text_of_nothing_and_tokens_without_logits_are_no_values(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DecodingError, match="cannot spell ''"):
        compile_values(tokenizer, ValueSpec("a", "category", texts=("",)))
    word = tokenizer.decode([len(tokenizer) - 1]).strip()  # with a space before, the last token
    spec, options = ValueSpec("a", "category", texts=(f"a {word}",)), {"bos_token_id": 0, "eos_token_id": 1}
    assert tokenize_segment(tokenizer, spec.texts[0])[-1] == len(tokenizer) - 1
    for size in (len(tokenizer), len(tokenizer) + 5):
        RecordConstraint.compile(tokenizer, vocab_size=size, fixed_segments=["", "."], values=[spec], **options)
    with pytest.raises(DecodingError, match=f"cannot spell 'a {word}'"):
        RecordConstraint.compile(
            tokenizer, vocab_size=len(tokenizer) - 1, fixed_segments=["", "."], values=[spec], **options
        )


def test_a_vocabulary_that_cannot_spell_the_schema_is_refused() -> None:
    poor = small_vocabulary('{}": ,abcnul0123456789\n')
    compile_values(poor, ValueSpec("a", "category", texts=('"b"',)))
    with pytest.raises(DecodingError, match="column 'a'.*'\"Z\"'"):
        compile_values(poor, ValueSpec("a", "category", texts=('"b"', '"Z"')))
    with pytest.raises(DecodingError, match="column 'Key'"):
        compile_values(poor, ValueSpec("Key", "boolean"))
    with pytest.raises(DecodingError, match=r"column 'b'.*no token for '\.'"):
        compile_values(poor, ValueSpec("b", "decimal", decimals=1, minimum=0, maximum=3))


def test_wrong_plans_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    two = [ValueSpec("a", "boolean"), ValueSpec("b", "boolean")]
    with pytest.raises(DecodingError, match="one fixed segment more"):
        RecordConstraint.compile(tokenizer, fixed_segments=["", ""], values=two, **options)
    with pytest.raises(DecodingError, match="between two values is empty"):
        RecordConstraint.compile(tokenizer, fixed_segments=["", "", ""], values=two, **options)
    with pytest.raises(DecodingError, match="unknown column 'z'"):
        compile_values(tokenizer, *two).start({"z": "1"})
    with pytest.raises(DecodingError, match="is not allowed here"):
        compile_values(tokenizer, *two).start().advance(torch.iinfo(torch.int32).max)
    with pytest.raises(DecodingError, match="begins another value"):
        RecordConstraint.compile(
            tokenizer,
            fixed_segments=["", ",", ""],
            values=[ValueSpec("a", "category", texts=("x", "x,")), two[0]],
            **options,
        )
