"""Every metric, in the order of reports and tables: a module with ``METRICS`` that is named here is in all of them."""

from difflm.training.evaluation import (
    closest_records,
    copies,
    coverage,
    detection,
    efficiency,
    missing,
    privacy,
    shapes,
    validity,
)
from difflm.training.evaluation.metric import Figure, Metric


MODULES = (shapes, efficiency, detection, coverage, closest_records, copies, missing, privacy, validity)
METRICS: dict[str, Metric] = {metric.name: metric for module in MODULES for metric in module.METRICS}
FIGURES: dict[str, Figure] = {figure.name: figure for metric in METRICS.values() for figure in metric.figures}


def titled(name: str) -> tuple[str, str]:
    """Return the title and the unit of a figure; one that is not registered is called by its own name."""
    figure = FIGURES.get(name)
    return (figure.title, figure.unit) if figure else (name.replace("_", " "), "")
