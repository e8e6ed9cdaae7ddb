"""What a message advises exists: every --option in the command, every name= in a function's signature."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import difflm
from difflm.cli.command import build_parser
from difflm.training.domains.tables import Tables


ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("modeling_difflm", "pipelines", "training", "hub_cards")
    for path in (ROOT / folder).rglob("*.py")
    if "evaluation" not in path.parts and "metrics" not in path.parts
)
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
KEYWORD = re.compile(r"(?<![\w.\"'-])([a-z][a-z_]+)=(?=['\"\[({0-9A-Z]|\.\.\.|$|[ ,)])")
# pip's.
OTHERS = {"no-deps"}


def messages() -> Iterator[tuple[str, str]]:
    """File and text of what is raised, warned of or printed; values that are put in are left out."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("warnings.warn", "print", "self.error") or called.endswith("Error"):
                pieces = [
                    child.value
                    for child in ast.walk(node)
                    if isinstance(child, ast.Constant) and isinstance(child.value, str)
                ]
                yield path.relative_to(ROOT).as_posix(), " ".join(pieces)


def options() -> set[str]:
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    parsers = [build_parser(), *commands.values()]
    return {word.lstrip("-") for parser in parsers for action in parser._actions for word in action.option_strings}


def keywords() -> set[str]:
    from difflm.build_difflm import from_encoder_decoder
    from difflm.modeling_difflm import DiffLMConfig, load_decoder
    from difflm.pipelines.record_editing import RecordEditingMixin
    from difflm.pipelines.sharded_sampling import sample_shards
    from difflm.training.autoencoder_config import AutoencoderTrainingArguments
    from difflm.training.denoiser_config import DenoiserTrainingArguments
    from difflm.training.policy import Policy

    functions = [
        difflm.fit,
        difflm.read_table,
        difflm.RecordSchema.infer,
        difflm.DiffLMPipeline.__call__,
        difflm.DiffLMPipeline.push_to_hub,
        difflm.DiffLMPipelineOutput.to_arrow,
        from_encoder_decoder,
        difflm.DiffLMModel.from_pretrained,
        difflm.DiffLMModel.encode,
        difflm.DiffLMModel.forward,
        difflm.DiffLMModel.generate,
        difflm.DiffLMDenoiser.__init__,
        load_decoder,
        sample_shards,
        Tables.read,
        *(function for _, function in inspect.getmembers(RecordEditingMixin, inspect.isfunction)),
    ]
    found = {name for function in functions for name in inspect.signature(function).parameters}
    for fields in (AutoencoderTrainingArguments, DenoiserTrainingArguments, Policy):
        found |= {field.name for field in dataclasses.fields(fields)}
    # Taken by `from_pretrained` among its other keywords.
    others = {"force_download", "trust_remote_code", "decoder_kwargs", "torch_dtype"}
    return found | set(inspect.signature(DiffLMConfig).parameters) | others


def test_there_is_advice():
    found = {word for _, text in messages() for word in OPTION.findall(text)}
    assert {"text-columns", "delimiter", "encoding", "max-length", "overlong", "resume", "max-decimals"} <= found


def test_every_option_that_a_message_advises_exists():
    known = options() | OTHERS
    wrong = {(path, word) for path, text in messages() for word in OPTION.findall(text) if word not in known}
    assert not wrong


def test_every_keyword_that_a_message_advises_exists():
    known = keywords()
    wrong = {(path, word) for path, text in messages() for word in KEYWORD.findall(text) if word not in known}
    assert not wrong


def test_the_fit_takes_every_option_of_reading():
    """Whatever ``read_table`` and the inference take, the command and the fit take."""
    fit = options()
    for name in inspect.signature(difflm.read_table).parameters:
        if name not in ("path", "min_rows"):
            assert name.replace("_", "-") in fit
    assert {"category-columns", "max-decimals", "max-length", "overlong"} <= fit
