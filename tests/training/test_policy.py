"""Every constant of training has a name, a reason, a range, and a way in."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from difflm import training
from difflm.training.policy import Policy


# Python 3.13 takes the indentation off a docstring.
FIELDS = r"^(\w+(?:, \w+)*) : (?:int|float), default"
DOCUMENTED = inspect.getdoc(Policy)


def test_every_field_is_explained():
    documented = set()
    for line in re.findall(FIELDS, DOCUMENTED, flags=re.MULTILINE):
        documented.update(line.split(", "))
    assert documented == {field.name for field in dataclasses.fields(Policy)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Policy)])
def test_the_default_is_the_one_documented(name):
    names, values = next(
        (names.split(", "), values.split(", "))
        for names, values in re.findall(f"{FIELDS} (.+)$", DOCUMENTED, flags=re.MULTILINE)
        if name in names.split(", ")
    )
    assert float(values[names.index(name)]) == getattr(Policy(), name)


def test_every_field_is_used():
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in Path(training.__file__).parent.rglob("*.py")
        if path.name != "policy.py"
    )
    unused = [field.name for field in dataclasses.fields(Policy) if f"policy.{field.name}" not in source]
    assert unused == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_shar": 0.2}, "there is no 'validation_shar'; its names are .*validation_share"),
        ({"validation_share": 1.5}, "validation_share is a share, at most 1, not 1.5"),
        ({"batch_size": 0}, "batch_size must be a number above 0, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"warm_up_beta": "high"}, "warm_up_beta must be a number above 0, not 'high'"),
        ({"min_denoiser_interval": 300}, "min_denoiser_interval must not be above max_denoiser_interval"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Policy().changed(changes)


def test_changes_leave_the_rest():
    changed = Policy().changed({"batch_size": 4})
    assert changed == Policy(batch_size=4) != Policy()
    assert Policy().changed(changed) is changed
    assert changed.changed(None) is changed
