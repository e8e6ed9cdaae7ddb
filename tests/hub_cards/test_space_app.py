"""What the Space's buttons do, without a browser."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import pytest


pytest.importorskip("gradio")
APP = Path(__file__).parents[2] / "hub_cards" / "space" / "app.py"


@pytest.fixture
def app(random_pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    specification = importlib.util.spec_from_file_location("space_app", APP)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module, module.App(random_pipeline, None)


def test_clicks_leave_no_folders_behind(app, tmp_path):
    module, buttons = app
    nothing_fixed = [None] * len(buttons.columns)
    files = []
    for seed in range(module.KEPT_DOWNLOADS + 3):
        outputs = buttons.sample(2, seed, 1.0, 1.0, "auto", *nothing_fixed, progress=lambda *args, **kwargs: None)
        values = [button.value for button in outputs[2:4]]
        files.append([Path(value["path"] if isinstance(value, dict) else value) for value in values])
    assert [path.name for path in files[-1]] == ["synthetic.csv", "synthetic.parquet"]
    assert all(path.is_file() for pair in files[-2:] for path in pair)
    folders = {path.parent for path in tmp_path.glob("difflm-*/**/synthetic.csv")}
    assert len(folders) == module.KEPT_DOWNLOADS
    buttons._downloads.cleanup()
    assert not list(tmp_path.glob("difflm-*"))
