"""HTML pages from the templates beside this file, each whole in one file."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from difflm.files import write_text
from difflm.training.reports.plots import REAL, SYNTHETIC


def render_page(template: str, **values: Any) -> str:
    """Render one of the ``templates``; names and values of tables stay text."""
    from jinja2 import Environment, FunctionLoader

    folder = files("difflm.training.reports") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(colours={"real": REAL, "synthetic": SYNTHETIC}, **values)


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, whole or not at all, and return its path."""
    target = Path(path)
    write_text(target, page)
    return target
