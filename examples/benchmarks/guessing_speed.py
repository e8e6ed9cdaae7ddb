"""What do guesses spare the language model? Its plain loop beside the guessing one, on the same latents.

    python examples/benchmarks/guessing_speed.py PIPELINE [--rows 64] [--batch-sizes 1 64] [--dtypes float32 bfloat16]

plain            one token chosen per row and pass (most_guesses=0)
guessing         several, where the draft guesses them (the default)
text plain, text guessing   the same where all but the text columns is given, as where the draft writes the rest

`passes` are the forward passes that a row takes part in, `fed` the tokens that it feeds, `stood` the share of guesses
that the decoder agreed with. One thread, seconds of the process. Texts must be equal, or the last column says how many
are not: on processors with oneDNN none, elsewhere rounding may draw another token.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from difflm import DiffLMPipeline
from difflm.files import write_json
from difflm.pipelines import decode_rows as loop
from difflm.pipelines.packed_attention import PackedDecoder, supports
from difflm.pipelines.proposals import DraftProposals


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the rows and the tokens of all passes, and the guesses."""
    counts: Counter[str] = Counter()
    forward, learn = PackedDecoder.forward, DraftProposals.learn

    def count_pass(self: PackedDecoder, runs: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> torch.Tensor:
        counts.update(passes=len(runs), fed=sum(map(len, runs)))
        return forward(self, runs, *args, **kwargs)

    def count_guess(self: DraftProposals, place: int, stood: bool) -> None:
        counts.update(guesses=1, stood=int(stood))
        learn(self, place, stood)

    with (
        mock.patch.object(PackedDecoder, "forward", count_pass),
        mock.patch.object(DraftProposals, "learn", count_guess),
    ):
        yield counts


def write(
    pipe: DiffLMPipeline,
    latents: torch.Tensor,
    batch_size: int,
    most_guesses: int,
    given: list[Mapping[str, str]] | None,
) -> tuple[list[str], dict[str, float]]:
    """The texts, and what they cost."""
    constraint, rows = pipe.constraint(), len(latents)
    with torch.inference_mode(), counted() as counts:
        injection = pipe.autoencoder.inject(latents)
        randoms = pipe.row_randoms(0, rows)
        started = time.process_time()
        tokens = loop.decode_rows(
            pipe.autoencoder.decoder,
            injection,
            constraint,
            randoms,
            batch_size=batch_size,
            most_guesses=most_guesses,
            given_texts=given,
        )
        seconds = time.process_time() - started
    return [constraint.text(row) for row in tokens], {
        "rows_per_second": rows / seconds,
        "passes": counts["passes"] / rows,
        "fed": counts["fed"] / rows,
        "written": sum(map(len, tokens)) / rows,
        "stood": counts["stood"] / max(1, counts["guesses"]),
    }


def all_but_text(pipe: DiffLMPipeline, texts: list[str]) -> list[Mapping[str, str]] | None:
    """The cells of other columns than texts, as serialised; None where there is no text."""
    kinds = {column.name: column.kind for column in pipe.schema.columns}
    if "text" not in kinds.values():
        return None
    return [
        {name: pipe.schema.value_text(name, value) for name, value in record.items() if kinds[name] != "text"}
        for record in map(pipe.schema.parse, texts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a fitted pipeline")
    parser.add_argument("--rows", type=int, default=64, help="rows (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64], help="(default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = DiffLMPipeline.from_pretrained(arguments.pipeline)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(arguments.rows, seed=0, output_type="latent").latents
    results: dict[str, Any] = {}
    texts: list[str] = []
    print(f"{'':<34}{'rows/s':>9}{'passes':>8}{'fed':>7}{'written':>9}{'stood':>7}{'times':>7}{'other texts':>13}")
    for dtype in arguments.dtypes:
        pipe.autoencoder.decoder.to(getattr(torch, dtype))
        supports(pipe.autoencoder.decoder)
        for batch_size in arguments.batch_sizes:
            given = None
            for part in ("", "text "):
                if part and (given := all_but_text(pipe, texts)) is None:
                    continue
                for way, most in (("plain", 0), ("guessing", loop.MOST_GUESSES)):
                    name = f"{dtype}, {batch_size} at a time, {part}{way}"
                    written, results[name] = write(pipe, latents, batch_size, most, given)
                    row = results[name]
                    if way == "plain":
                        texts, base = written, row["rows_per_second"]
                    row["times"] = row["rows_per_second"] / base
                    row["other_texts"] = sum(one != other for one, other in zip(written, texts, strict=True))
                    print(
                        f"{name:<34}{row['rows_per_second']:>9.2f}{row['passes']:>8.1f}{row['fed']:>7.1f}"
                        f"{row['written']:>9.1f}{row['stood']:>7.2f}{row['times']:>7.2f}{row['other_texts']:>13}",
                        flush=True,
                    )
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
