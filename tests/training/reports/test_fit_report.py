"""The HTML report: whole, self-contained, and safe with hostile records."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from difflm.training.reports.fit_report import Check, ReportContents, render_report, write_report
from difflm.training.reports.plots import plot_column, project
from difflm.training.reports.table_comparison import compare_columns


HOSTILE = "<script>alert(1)</script> & $x_1$"


class Page(HTMLParser):
    """Collects what a page shows and what it refers to."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.images, self.references, self.open, self.text, self.tags = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.references += [attributes[key] for key in ("src", "href") if key in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def contents():
    random = np.random.default_rng(0)
    real = pd.DataFrame(
        {
            "mass": random.normal(4000, 500, 60).round(),
            "species": ["Adelie", "Gentoo", None] * 20,
            HOSTILE: ["a", "b", "c$d_e^f$"] * 20,
        }
    )
    synthetic = real.sample(40, random_state=1, ignore_index=True)
    return ReportContents(
        title="A <b>title</b>",
        subtitle="subtitle",
        real=real,
        synthetic=synthetic,
        comparison=compare_columns(real, synthetic),
        real_latents=random.normal(size=(60, 8)),
        synthetic_latents=random.normal(size=(40, 8)),
        autoencoder_history=[
            {"step": 10, "seconds": 1.0, "loss": 20.0, "reconstruction": 19.0, "kl": 10.0, "beta": 0.1},
            {"step": 20, "seconds": 2.0, "loss": 10.0, "reconstruction": 9.0, "kl": 12.0, "beta": 0.05},
            {"step": 20, "eval_reconstruction": 9.5, "eval_runtime": 3.0},
        ],
        denoiser_history=[{"step": 100, "train_loss": 0.5}, {"step": 200, "train_loss": 0.4, "validation_loss": None}],
        figures={"mean shape error": "4.2 %", "rows seen": 12345, "nats": 3.14159, "ok": True},
        checks=[Check("a promise", True, "kept"), Check("another", False, "broken")],
        records=[{"mass": 1, "species": None, HOSTILE: HOSTILE}],
    )


def test_one_file_that_refers_to_nothing_outside(contents):
    text = render_report(contents)
    page = Page(text)
    assert page.open == []
    # Three columns, the latents, reconstruction, KL, beta, and the denoiser.
    assert len(page.images) == 8
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    for image in page.images:
        assert image["alt"]
        assert base64.b64decode(image["src"].partition(",")[2]).rstrip().endswith(b"</svg>")
    assert '<meta name="viewport"' in text


def test_shows_figures_checks_and_records(contents):
    page = Page(render_report(contents))
    for words in ("4.2 %", "12,345", "3.14", "a promise", "passed", "failed", "—"):
        assert words in page.text


def test_hostile_names_and_values_stay_text(contents):
    page = Page(render_report(contents))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "A <b>title</b>" in page.text


def test_parts_without_content_are_left_out():
    table = pd.DataFrame({"x": [1, 2]})
    page = Page(render_report(ReportContents("t", "s", table, table, compare_columns(table, table))))
    assert len(page.images) == 1
    for heading in ("Latents", "Training", "Checks", "Some synthetic records"):
        assert heading not in page.text


def test_the_same_contents_give_the_same_bytes(contents, tmp_path):
    first = write_report(contents, tmp_path / "a.html").read_bytes()
    assert write_report(contents, tmp_path / "b.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (pd.Series([1.0, 1.0]), pd.Series([1.0])),
        (pd.Series([1.0, None]), pd.Series([None, None], dtype="float64")),
        (pd.Series([None, None], dtype="object"), pd.Series([None], dtype="object")),
        (pd.Series([f"value {i}" for i in range(30)]), pd.Series(["never seen"])),
        (pd.Series([2**60, 0], dtype="Int64"), pd.Series([1, 2], dtype="Int64")),
        (pd.Series([True, False]), pd.Series([True, True])),
    ],
    ids=["constant", "synthetic missing", "all missing", "many categories", "huge", "booleans"],
)
def test_odd_columns_can_be_drawn(real, synthetic):
    assert plot_column(real, synthetic).startswith("data:image/svg+xml;base64,")


def test_projection_finds_the_axes_of_variance():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(500, 2)) * [10.0, 3.0]
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0][:2]
    latents = hidden @ basis + 5.0
    (points, others), shares = project(latents, latents[:7])
    np.testing.assert_allclose(shares, [100 / 109, 9 / 109], atol=0.03)
    np.testing.assert_allclose(points[:7], others)
    # A projection onto the plane that holds all points keeps their distances.
    np.testing.assert_allclose(
        np.linalg.norm(points[1:] - points[:-1], axis=1), np.linalg.norm(latents[1:] - latents[:-1], axis=1)
    )


def test_projection_of_one_dimension():
    (points,), shares = project(np.array([[0.0], [1.0], [2.0]]))
    assert points.shape == (3, 2)
    assert shares.tolist() == [1.0, 0.0]
