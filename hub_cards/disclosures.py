"""What a checkpoint tells of its training data, read off its own files, for its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def disclosures(
    schema: Mapping[str, Any],
    condition_classes: Any,
    autoencoder: Mapping[str, Any],
    log: Mapping[str, Any],
    num_digests: int,
    draft: Mapping[str, Any] | None = None,
) -> list[str]:
    """One sentence for each thing.

    Parameters
    ----------
    schema, condition_classes
        Of the pipeline's index.
    autoencoder
        Its configuration.
    log
        ``training_log.json``; empty if there is none.
    num_digests : int
        Of training records, published with the weights.
    draft
        Its configuration, if there is one.
    """
    columns = schema.get("columns") or []
    choices = log.get("disclosure") or {}
    told = []
    if named := [column for column in columns if column.get("categories")]:
        count = sum(len(column["categories"]) for column in named)
        told.append(f"Every category of {_columns(len(named))}: {count} values.{_rare(choices)}")
    ranges, below = str(choices.get("ranges")), choices.get("rare_below")
    shorter = ranges in ("rounded", "clipped")
    if ranged := [column for column in columns if column.get("minimum") is not None]:
        how = {
            "rounded": f"rounded outwards, past every end that fewer than {below} records hold",
            "clipped": f"clipped so that at least {below} records share each end",
        }.get(ranges, "exact: the smallest and the largest value are those of single records")
        told.append(f"The range of {_columns(len(ranged))}, {how}.")
    how = ", rounded up" if shorter else ""
    if texts := [column for column in columns if column.get("max_length")]:
        told.append(f"The length of the longest text in {_columns(len(texts))}{how}.")
    if nested := [column for column in columns if column.get("json_schema")]:
        how = "rounded outwards" if shorter else "which are those of single records"
        told.append(
            f"The keys and types inside {_columns(len(nested))} of nested values; the ranges and lengths, {how}; and "
            "strings that repeat."
        )
    classes = condition_classes.get("classes") if isinstance(condition_classes, Mapping) else condition_classes
    if edges := [entry for entry in classes or [] if "edges" in entry]:
        told.append(f"Quantiles of {_columns(len(edges))} of numbers or dates, by which samples can be conditioned.")
    if number := autoencoder.get("num_feature_columns"):
        ends = f", but for the {below} smallest and largest values" if shorter else ", the ends included"
        told.append(f"In the weights, 129 quantiles of each of {_columns(number)}{ends}.")
    drafted = (draft or {}).get("columns") or []
    if numbers := [column for column in drafted if column.get("kind") == "number"]:
        knots = sum(column.get("num_knots", 0) for column in numbers)
        told.append(
            f"In the draft's weights, the distribution of each of {_columns(len(numbers))} of numbers or dates, as "
            f"{knots:,} quantiles in all, and how often values, or groups of them, occur."
        )
    told.append("In the weights, too, whatever they memorised of single records: nothing bounds that.")
    if isinstance(log.get("rows"), int):
        told.append(f"How many records were learnt from: {log['rows']:,}.")
    if num_digests:
        told.append(
            f"Keyed digests of its {num_digests:,} records, by which exact copies are kept out of samples "
            "(`exclude_training_copies=True`): whoever guesses a record can test whether it was in the table."
        )
    else:
        told.append("No digests of the records: samples are not compared with them (`exclude_training_copies`).")
    return told


def _columns(number: int) -> str:
    return f"{number} column{'s' if number != 1 else ''}"


def _rare(choices: Mapping[str, Any]) -> str:
    below, listed = choices.get("rare_below"), choices.get("rare_categories_listed")
    if below is None or listed is None:
        return " Rare ones may be those of single records."
    if not listed:
        return f" None of them is of fewer than {below} records."
    return f" {listed} of them are of fewer than {below} records."
