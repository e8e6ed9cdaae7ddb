"""The metric modules load with the `evaluate` library, offline, and measure."""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import SpaceCard

from difflm.training.evaluation.registry import METRICS
from difflm.training.evaluation.tables import ColumnMismatchError, EvaluationError


evaluate = pytest.importorskip("evaluate")

ROOT = Path(__file__).resolve().parents[2] / "hub_cards/metrics"
NAMES = sorted(path.name for path in ROOT.iterdir() if (path / f"{path.name}.py").is_file())


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """Modules are copied into a cache when loaded: not into the user's."""
    patch = pytest.MonkeyPatch()
    patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")), raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tables():
    generator = np.random.default_rng(0)

    def table():
        number = generator.normal(size=200)
        return pd.DataFrame({"x": number, "k": np.where(number > 0, "a", "b"), "y": generator.normal(size=200) > 0})

    return table(), table(), table()


def test_every_metric_has_a_module_and_a_card():
    assert set(NAMES) == set(METRICS)
    for name in NAMES:
        text = (ROOT / name / "README.md").read_text()
        for figure in METRICS[name].figures:
            assert f"`{figure.name}`" in text, f"the card of {name} does not name {figure.name}"
        card = SpaceCard(text, ignore_metadata_errors=False)
        assert card.data.title and card.data.sdk == "static" and card.data.license == "apache-2.0"
        assert {"evaluate", "metric"} <= set(card.data.tags)
        assert f"metrics/{name}" in text


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("validity_rate", "privacy_attacks")])
def test_metrics_measure(name, tables):
    real, synthetic, holdout = tables
    metric = evaluate.load(str(ROOT / name))
    figures = metric.compute(real=real, synthetic=synthetic, holdout=holdout, target="y", seeds=1)
    numbers = [value for value in figures.values() if isinstance(value, float)]
    assert numbers and np.isfinite(numbers).all()
    with pytest.raises(ValueError, match="lacks k") as caught:
        metric.compute(real=real, synthetic=synthetic.drop(columns="k"), holdout=holdout, target="y", seeds=1)
    assert isinstance(caught.value, ColumnMismatchError)


def test_metrics_that_need_a_holdout_say_so(tables):
    real, synthetic, _ = tables
    for name in ("dcr", "machine_learning_efficiency", "privacy_attacks"):
        with pytest.raises(EvaluationError, match="needs holdout"):
            evaluate.load(str(ROOT / name)).compute(real=real, synthetic=synthetic, target="y")


def test_settings_reach_the_metric(tables):
    real, synthetic, holdout = tables
    detection = evaluate.load(str(ROOT / "detection"))
    one, other, both = (
        detection.compute(real=real, synthetic=synthetic, seed=seed, seeds=seeds)["detection_auc"]
        for seed, seeds in ((0, 1), (1, 1), (0, 2))
    )
    assert one != other and both == pytest.approx((one + other) / 2)
    efficiency = evaluate.load(str(ROOT / "machine_learning_efficiency"))
    real, synthetic, holdout = (part.assign(y=np.exp(part["x"] + 3)) for part in (real, synthetic, holdout))
    settings = {"real": real, "synthetic": synthetic, "holdout": holdout, "target": "y", "seeds": 1}
    plain, logarithm = (efficiency.compute(**settings, log_target=log_target) for log_target in (False, True))
    assert plain["details"]["mle"]["metric"] == logarithm["details"]["mle"]["metric"] == "rmse"
    assert logarithm["mle"] < 0.5 < plain["mle"]


def test_validity_is_measured_on_texts():
    metric = evaluate.load(str(ROOT / "validity_rate"))
    real = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    texts = ['{"a": 3, "b": "x"}', '{"a": 3}', "nonsense", '{"a": "x", "b": "x"}']
    assert metric.compute(texts=texts, real=real) == {"validity_rate": 0.25}
    with pytest.raises(EvaluationError, match="no texts"):
        metric.compute(texts=[], real=real)
    features = datasets.Features(a=datasets.Value("int64"), b=datasets.ClassLabel(names=["x", "y"]))
    labels = datasets.Dataset.from_dict({"a": [1, 2], "b": [0, 1]}, features=features)
    assert metric.compute(texts=texts, real=labels) == {"validity_rate": 0.25}


def test_class_labels_are_compared_by_their_names(tables):
    real, synthetic, _ = tables
    features = datasets.Features(x=datasets.Value("float64"), k=datasets.ClassLabel(names=["b", "a"]))
    coded = datasets.Dataset.from_pandas(real[["x"]].assign(k=(real["k"] == "a").astype(int)), features=features)
    metric = evaluate.load(str(ROOT / "shape_error"))
    assert metric.compute(real=coded, synthetic=real[["x", "k"]])["shape_error"] == 0.0


def test_settings_that_a_metric_has_not_are_refused(tables):
    real, synthetic, _ = tables
    with pytest.raises(EvaluationError, match="no setting 'attacks'"):
        evaluate.load(str(ROOT / "shape_error")).compute(real=real, synthetic=synthetic, attacks=["linkability"])


def test_an_attack_that_cannot_be_made_leaves_the_others():
    pytest.importorskip("anonymeter")
    generator = np.random.default_rng(0)
    real, synthetic, holdout = (pd.DataFrame({name: generator.random(60) > 0.5 for name in "ab"}) for _ in range(3))
    metric = evaluate.load(str(ROOT / "privacy_attacks"))
    found = metric.compute(real=real, synthetic=synthetic, holdout=holdout, attacks=["singling_out", "inference"])
    assert "queries" in found["skipped"]["singling_out"]
    assert "inference_risk" in found and "linkability_risk" not in found
    assert "inference_risk" in metric.compute(real=real, synthetic=synthetic, holdout=holdout, attacks="inference")
    with pytest.raises(EvaluationError, match="no column 'c' to infer"):
        metric.compute(real=real, synthetic=synthetic, holdout=holdout, secret="c")
    with pytest.raises(EvaluationError, match="needs attacks"):
        metric.compute(real=real, synthetic=synthetic, holdout=holdout, attacks=[])
