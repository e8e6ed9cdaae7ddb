"""Checkpoints of format 1 still load, and sample what they did: tests/data/format_1/make.py wrote both back then."""

import json
import runpy
from pathlib import Path

import pytest

from difflm import DiffLMPipeline


FORMAT_1 = Path(__file__).parent / "data" / "format_1"


def as_asked(value):
    """JSON has no tuples: two numbers are a range here."""
    is_range = isinstance(value, list) and len(value) == 2 and all(isinstance(item, int | float) for item in value)
    return tuple(value) if is_range else value


@pytest.mark.parametrize("name", ["values", "json", "text"])
def test_checkpoint_of_format_1_samples_what_it_did(name):
    pipe = DiffLMPipeline.from_pretrained(FORMAT_1 / name, decoder_name_or_path=str(FORMAT_1 / "decoder"))
    pipe.set_progress_bar_config(disable=True)
    sampled = runpy.run_path(str(FORMAT_1 / "ways.py"))["sampled"]
    stored = json.loads((FORMAT_1 / "sampled.json").read_text(encoding="utf-8"))
    asked = stored["asked"][name]
    condition = {column: as_asked(value) for column, value in asked["condition"].items()}
    found = sampled(pipe, asked["rows"], condition, asked["given"])
    for way, texts in stored["texts"][name].items():
        assert found[way] == texts, way
