"""The registry of metrics: what reports, cards and tables read."""

import importlib
import pkgutil

from difflm.training import evaluation
from difflm.training.evaluation.metric import NEEDS, Tables
from difflm.training.evaluation.registry import FIGURES, METRICS, MODULES, titled


def test_every_module_with_metrics_is_registered():
    found = set()
    for module in pkgutil.iter_modules(evaluation.__path__, f"{evaluation.__name__}."):
        metrics = getattr(importlib.import_module(module.name), "METRICS", None)
        found |= {module.name} if isinstance(metrics, tuple) else set()
    assert found == {module.__name__ for module in MODULES}


def test_names_are_unique_and_entries_whole():
    assert len(FIGURES) == sum(len(metric.figures) for metric in METRICS.values())
    assert len(METRICS) == sum(len(module.METRICS) for module in MODULES)
    fields = set(Tables.__dataclass_fields__)
    for metric in METRICS.values():
        assert metric.figures and set(metric.needs) <= set(NEEDS) and set(metric.settings) <= fields
        for figure in metric.figures:
            assert titled(figure.name) == (figure.title, figure.unit) and figure.title and figure.unit
