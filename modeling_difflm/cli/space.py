"""``difflm space``: open a fitted pipeline in the browser."""

import argparse
import os
import runpy
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from difflm.cli.options import HelpFormatter, add_device_option, check_pipeline, check_table


def add_command(commands: Any) -> None:
    """Add the sub-command to the parser of ``difflm``."""
    space = commands.add_parser(
        "space",
        help="open a fitted pipeline in the browser",
        description="Serve the Gradio app that a published Space runs, for a fitted pipeline on this machine.",
        formatter_class=HelpFormatter,
    )
    space.add_argument("pipeline", metavar="PIPELINE", help="folder that `difflm fit` wrote")
    space.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    space.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on")
    space.add_argument(
        "--reference", metavar="TABLE", help="real records, CSV or parquet, to plot against (default: no plots)"
    )
    add_device_option(space)
    space.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C; return the exit status."""
    folder = check_pipeline(arguments.pipeline)
    if arguments.reference:
        check_table(arguments.reference)
    os.environ["DIFFLM_PIPELINE"] = str(folder.resolve())
    os.environ["GRADIO_SERVER_NAME"], os.environ["GRADIO_SERVER_PORT"] = arguments.host, str(arguments.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if arguments.reference:
        os.environ["DIFFLM_REFERENCE"] = str(Path(arguments.reference).resolve())
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("The app needs Gradio: `pip install difflm[space]`.") from error
    from difflm.devices import choose_device

    os.environ["DIFFLM_DEVICE"] = str(choose_device(arguments.device))
    # The very file that a Space runs.
    with as_file(files("difflm.hub_cards").joinpath("space", "app.py")) as app:
        sys.argv = [str(app)]
        runpy.run_path(str(app), run_name="__main__")
    return 0
