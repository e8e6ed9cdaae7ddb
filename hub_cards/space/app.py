"""A Gradio app for one DiffLM pipeline: sample, fix columns, download, and walk between records in latent space.

The same file runs on a Hub Space and, through ``difflm space``, on one's own machine. The pipeline is named by the
environment's ``DIFFLM_PIPELINE`` (a folder or a Hub id) or by ``pipeline.json`` beside this file; real records to
compare with by ``DIFFLM_REFERENCE`` or ``reference.csv`` / ``reference.parquet``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
import torch


HERE = Path(__file__).resolve().parent
MAX_ROWS = 2000
BATCH_ROWS = 32
WALK_STEPS = 6
# More than clicks that are served at a time.
KEPT_DOWNLOADS = 8
# Seconds: how often Gradio's own copies of the files are looked at, and how old one may become.
DOWNLOADS_CACHE = (3600, 24 * 3600)
DATE_KINDS = ("date", "datetime", "zoned", "time")
MAP_SIZE = (640, 480)  # pixels
REAL, SYNTHETIC = "#3b6ea5", "#e07b39"
CSS = """
.gradio-container {max-width: 1200px !important; margin: auto}
#latent-map img {cursor: crosshair; touch-action: pan-y; user-select: none; max-width: 100%; object-fit: contain}
@media (max-width: 700px) {
  #layout {flex-direction: column; flex-wrap: nowrap}
  #layout > * {width: 100%; max-width: calc(100vw - 64px); min-width: 0 !important; overflow-x: auto}
}
"""


def pipeline_name() -> str:
    """The folder or Hub id of the pipeline to serve."""
    name = os.environ.get("DIFFLM_PIPELINE")
    if name:
        return name
    file = HERE / "pipeline.json"
    if not file.is_file():
        raise FileNotFoundError("Name the pipeline in DIFFLM_PIPELINE or in pipeline.json beside app.py.")
    return str(json.loads(file.read_text(encoding="utf-8"))["repo_id"])


def load_pipeline(name: str) -> Any:
    """Load with difflm where it is installed; on a Space, with the code in the model's repository."""
    if importlib.util.find_spec("difflm") is not None:
        from difflm import DiffLMPipeline

        pipeline = DiffLMPipeline.from_pretrained(name)
    else:
        from diffusers import DiffusionPipeline

        # The Space's owner names the repository, in a file of the Space.
        pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    # Published code knows the best device as well as the installed one; where the draft writes it may not be loaded.
    class_of = getattr(pipeline, "component_class", None)
    model_class = type(pipeline.autoencoder) if class_of is None else class_of("autoencoder")
    model_code = sys.modules[model_class.__module__]
    pipeline.to(os.environ.get("DIFFLM_DEVICE") or model_code.compute_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_reference() -> pd.DataFrame | None:
    """Real records to plot against, if some were given."""
    named = os.environ.get("DIFFLM_REFERENCE")
    candidates = [Path(named)] if named else [HERE / "reference.parquet", HERE / "reference.csv"]
    for path in candidates:
        if path.is_file():
            return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    return None


def written_by(pipeline: Any, writer: str = "auto") -> str:
    """Who writes the records, in words; pipelines of earlier versions have no draft."""
    chosen = pipeline.who_writes(writer) if hasattr(pipeline, "who_writes") else "lm"
    return "the draft" if chosen == "draft" else "the language model"


# -------------------------------------------------------------------- reading the controls


def conditionable(pipeline: Any) -> list[Any]:
    """Columns that can be fixed: everything but free text and nested values."""
    kinds = ("category", "boolean", "integer", "decimal", *DATE_KINDS)
    return [column for column in pipeline.schema.columns if column.kind in kinds]


def read_condition(columns: list[Any], values: tuple[Any, ...]) -> dict[str, Any]:
    """The pipeline's ``condition`` from the controls; empty controls fix nothing."""
    condition: dict[str, Any] = {}
    for column, value in zip(columns, values, strict=True):
        if value in (None, "", []):
            continue
        if column.kind == "boolean":
            condition[column.name] = [choice == "true" for choice in value]
        elif column.categories:
            condition[column.name] = list(value)
        else:
            condition[column.name] = _read_range(column, str(value))
    return condition


def _read_range(column: Any, text: str) -> Any:
    read: Any = str if column.kind in DATE_KINDS else int if column.kind == "integer" else float
    low, is_range, high = (part.strip() for part in text.partition(".."))
    try:
        return (read(low), read(high)) if is_range else read(low)
    except ValueError:
        raise ValueError(f"{column.name}: write a number such as {column.minimum}, or a range LOW..HIGH.") from None


# -------------------------------------------------------------------- drawing


def project(latents: np.ndarray) -> np.ndarray:
    """Latents, ``[rows, size]``, on their first two principal axes."""
    centred = latents - latents.mean(axis=0)
    if len(latents) < 2:
        return np.zeros((len(latents), 2))
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    points = centred @ axes.T
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def draw_map(latents: np.ndarray, colours: pd.Series, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The latent map as RGB pixels, and where in it each latent is, in pixels from the top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(MAP_SIZE[0] / 100, MAP_SIZE[1] / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    points = project(latents)
    if colours.dtype == object or str(colours.dtype) in ("category", "bool", "string", "boolean"):
        for value in colours.astype(str).unique()[:10]:
            rows = (colours.astype(str) == value).to_numpy()
            axes.scatter(points[rows, 0], points[rows, 1], s=30, alpha=0.75, lw=0, label=value[:20])
        axes.legend(fontsize=9, frameon=False)
    else:
        axes.scatter(points[:, 0], points[:, 1], s=30, alpha=0.75, lw=0, c=colours.astype(float).to_numpy())
    if chosen:
        axes.plot(points[chosen, 0], points[chosen, 1], "o-", ms=13, mfc="none", mec="black", color="black", mew=2)
    axes.set_title(f"Latents of these records, coloured by {colours.name}", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    canvas.draw()
    pixels = axes.transData.transform(points)
    pixels[:, 1] = MAP_SIZE[1] - pixels[:, 1]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy(), pixels


def draw_comparison(real: pd.DataFrame, synthetic: pd.DataFrame) -> Any:
    """Every column's distribution, real and synthetic."""
    from matplotlib.figure import Figure

    names = [name for name in synthetic.columns if name in real.columns][:12]
    if not names:
        return None
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, 3, place + 1)
        sides = [column.dropna() for column in (real[name], synthetic[name])]
        if all(pd.api.types.is_numeric_dtype(side) and side.dtype != bool for side in sides):
            bins = np.histogram_bin_edges(np.concatenate([side.astype(float) for side in sides]), bins=20)
            axes.hist(sides[0].astype(float), bins=list(bins), density=True, color=REAL, alpha=0.5, label="real")
            style: dict[str, Any] = {
                "density": True,
                "histtype": "step",
                "color": SYNTHETIC,
                "lw": 2,
                "label": "synthetic",
            }
            axes.hist(sides[1].astype(float), bins=list(bins), **style)
        else:
            shares = [side.astype(str).value_counts(normalize=True) for side in sides]
            labels = list(shares[0].index[:8])
            spot = np.arange(len(labels))
            axes.bar(spot - 0.2, shares[0].reindex(labels, fill_value=0), 0.4, color=REAL, label="real")
            axes.bar(spot + 0.2, shares[1].reindex(labels, fill_value=0), 0.4, color=SYNTHETIC, label="synthetic")
            axes.set_xticks(spot, [label[:12] for label in labels], rotation=30, fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.set_yticks([])
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


# -------------------------------------------------------------------- the app


class App:
    """What the buttons do, for one pipeline."""

    def __init__(self, pipeline: Any, reference: pd.DataFrame | None) -> None:
        self.pipeline, self.reference = pipeline, reference
        self.columns = conditionable(pipeline)
        self._downloads = tempfile.TemporaryDirectory(prefix="difflm-")
        self._recent: deque[Path] = deque()

    def sample(
        self,
        rows: float,
        seed: float,
        temperature: float,
        guidance: float,
        writer: str,
        *values: Any,
        progress: Any = gr.Progress(),  # noqa: B008  Gradio finds the progress bar by this default
    ) -> tuple[Any, ...]:
        """Sample, and fill the table, the files, the plots and the map."""
        if rows is None or not 1 <= rows <= MAX_ROWS:
            raise gr.Error(f"Rows must be from 1 to {MAX_ROWS}.")
        if seed is None or seed < 0 or seed != int(seed):
            raise gr.Error("The seed must be a whole number of at least 0.")
        records, latents, total = [], [], int(rows)
        progress(0, desc="Sampling")
        try:
            condition = read_condition(self.columns, values)
            options: dict[str, Any] = {"temperature": temperature, "guidance_scale": guidance}
            options["condition"] = condition or None
            if writer != "auto":
                options["writer"] = writer
            for part in self.pipeline.stream(total, min(BATCH_ROWS, total), seed=int(seed), **options):
                records += part.records
                if part.records:
                    latents.append(part.latents.float().cpu().numpy())
                progress((len(records), total), desc="Sampling", unit="records")
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if not records:
            raise gr.Error("No record met the condition: relax it.")
        table = self.pipeline.schema.to_pandas(records)
        folder = self._download_folder()
        table.to_csv(folder / "synthetic.csv", index=False)
        table.to_parquet(folder / "synthetic.parquet", index=False)
        kept = np.concatenate(latents)
        image, pixels = draw_map(kept, self._colours(table), [])
        state = {"latents": kept, "pixels": pixels, "chosen": [], "seed": int(seed), "table": table}
        figure = None if self.reference is None else draw_comparison(self.reference, table)
        given_up = total - len(records)
        note = f"{len(records):,} records, written by {written_by(self.pipeline, writer)}"
        note += f"; {given_up} given up: relax the condition" if given_up else ""
        files = (str(folder / "synthetic.csv"), str(folder / "synthetic.parquet"))
        buttons = [gr.DownloadButton(value=file, interactive=True) for file in files]
        return note, table, *buttons, image, figure, state, table.head(0)

    def _download_folder(self) -> Path:
        """A folder for one click's files. Gradio copies them at once: the older ones go."""
        folder = Path(tempfile.mkdtemp(dir=self._downloads.name))
        self._recent.append(folder)
        while len(self._recent) > KEPT_DOWNLOADS:
            shutil.rmtree(self._recent.popleft(), ignore_errors=True)
        return folder

    def choose(self, state: dict[str, Any] | None, event: gr.SelectData) -> tuple[Any, ...]:
        """A click on the map: decode the nearest latent, or walk to it from the one clicked before."""
        nearest = self._nearest(state, *event.index)
        before = state["chosen"] if state else []
        return self._decode(state, [*before, nearest] if len(before) == 1 else [nearest])

    def drag(self, state: dict[str, Any] | None, ends: str) -> tuple[Any, ...]:
        """A drag across the map, as pixels of both ends: walk between the latents nearest to them."""
        x, y, to_x, to_y = json.loads(ends)
        return self._decode(state, [self._nearest(state, x, y), self._nearest(state, to_x, to_y)])

    @staticmethod
    def _nearest(state: dict[str, Any] | None, x: float, y: float) -> int:
        if not state:
            raise gr.Error("Sample some records first.")
        return int(np.hypot(state["pixels"][:, 0] - x, state["pixels"][:, 1] - y).argmin())

    def _decode(self, state: Any, chosen: list[int]) -> tuple[Any, ...]:
        """Decode one latent, or the way from one to another, and mark it on the map."""
        chosen = list(dict.fromkeys(chosen))
        state = state | {"chosen": chosen}
        ends = torch.from_numpy(state["latents"][chosen]).float()
        weights = torch.linspace(0, 1, WALK_STEPS)[:, None] if len(ends) == 2 else torch.zeros(1, 1)
        walk = torch.lerp(ends[:1], ends[-1:], weights)
        # The likeliest words, so that what changes along the way is the latent alone.
        output = self.pipeline(len(walk), latents=walk, seed=state["seed"], temperature=0.0)
        image, _ = draw_map(state["latents"], self._colours(state["table"]), chosen)
        return image, output.to_pandas(), state

    def _colours(self, table: pd.DataFrame) -> pd.Series:
        few = [column.name for column in self.columns if column.kind in ("category", "boolean")]
        return table[few[0] if few else table.columns[0]].reset_index(drop=True)


def _condition_control(column: Any) -> Any:
    shared = {"label": column.name, "elem_id": f"condition-{column.name}"}
    if column.kind == "boolean":
        return gr.Dropdown(["true", "false"], multiselect=True, info="any if empty", **shared)
    if column.categories:
        return gr.Dropdown(list(column.categories), multiselect=True, info="any if empty", **shared)
    example = f"{column.minimum}..{column.maximum}" if column.minimum is not None else "1..10"
    return gr.Textbox(placeholder=f"any, or for example {example}", **shared)


def build(pipeline: Any, reference: pd.DataFrame | None = None, title: str = "DiffLM") -> gr.Blocks:
    """Build the app for a loaded pipeline."""
    app, has_draft = App(pipeline, reference), getattr(pipeline, "draft", None) is not None
    with gr.Blocks(title=title, delete_cache=DOWNLOADS_CACHE) as blocks:
        gr.Markdown(
            f"# {title}\nSynthetic records: a diffusion model draws latents, {written_by(pipeline)} writes them down."
        )
        state = gr.State()
        with gr.Row(elem_id="layout"):
            with gr.Column(scale=1, min_width=300):
                rows = gr.Slider(1, MAX_ROWS, 100, step=1, label="Records", elem_id="rows")
                seed = gr.Number(0, precision=0, label="Seed", info="the same seed, the same records", elem_id="seed")
                with gr.Accordion("Fix columns", open=False, elem_id="conditions"):
                    controls = [_condition_control(column) for column in app.columns]
                with gr.Accordion("Advanced", open=False):
                    temperature = gr.Slider(0, 2, 1, step=0.05, label="Temperature", info="of the writer")
                    guidance = gr.Slider(0.5, 5, 1, step=0.1, label="Guidance", info="towards the fixed columns")
                    writer = gr.Dropdown(
                        ["auto", "lm", "draft"],
                        value="auto",
                        label="Writer",
                        info="the language model or the draft; auto is as the fit decided",
                        visible=has_draft,
                        elem_id="writer",
                    )
                button = gr.Button("Sample", variant="primary", elem_id="sample")
                note = gr.Markdown(elem_id="note")
                with gr.Row():
                    csv = gr.DownloadButton("CSV", interactive=False, elem_id="csv", min_width=100)
                    parquet = gr.DownloadButton("Parquet", interactive=False, elem_id="parquet", min_width=100)
            with gr.Column(scale=3, min_width=320):
                table = gr.Dataframe(label="Records", interactive=False, elem_id="table", max_height=420)
                plots = gr.Plot(show_label=False, visible=reference is not None, elem_id="plots")
                gr.Markdown(
                    "Click a point to decode it. Drag from one to another, or click both, to walk between them."
                )
                # The picture has a title, which a label would cover on a phone.
                image = gr.Image(
                    label="Latent map",
                    show_label=False,
                    interactive=False,
                    elem_id="latent-map",
                    format="png",
                    buttons=["download"],
                )
                # Pressed by latent_map.js, which also says from where to where.
                drag = gr.Button(visible="hidden", elem_id="drag")
                ends = gr.Textbox(visible=False)
                walk = gr.Dataframe(label="Decoded", interactive=False, elem_id="walk")
        outputs = [note, table, csv, parquet, image, plots, state, walk]
        button.click(app.sample, [rows, seed, temperature, guidance, writer, *controls], outputs, api_name="sample")
        image.select(app.choose, [state], [image, walk, state], api_visibility="private")
        from_page = "(state, ends) => [state, JSON.stringify(window.difflmDrag)]"
        drag.click(app.drag, [state, ends], [image, walk, state], js=from_page, api_visibility="private")
    return blocks


if __name__ == "__main__":
    source = pipeline_name()
    build(load_pipeline(source), load_reference(), Path(source).name).queue().launch(
        css=CSS, js=(HERE / "latent_map.js").read_text(encoding="utf-8")
    )
