"""How fast are records sampled? One table, all ways measured in one run on one machine.

    python examples/benchmarks/sampling_speed.py PIPELINE [--json PATH]

fast                  the pipeline's own loop (what it guesses ahead: guessing_speed.py)
generate_filter       batched `generate` with KV cache, unconstrained, invalid texts filtered out
generate_constrained  batched `generate` with KV cache, constrained
published_loop        one row at a time, the whole prefix recomputed for every token, no cache (the paper's code)
be_great              be-great's batched sampling with the same decoder weights; every text counts as a row
draft                 the pipeline where its draft writes alone, with the diffusion that all others have done before
floor                 the decoder's forward passes alone: one batched step per token with KV cache, best batch size

Latents are sampled beforehand: all ways decode the same ones. First on the fitted pipeline's table, then on one with
the columns of Adult (15 of them), where the injector is untrained: texts of equal length are timed, validity means
nothing without the grammar. `forward share` is the part of the fast loop's time spent inside the decoder.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from difflm import DiffLMDenoiser, DiffLMPipeline, RecordSchema
from difflm.files import write_json
from difflm.modeling_difflm import bias_tokens
from difflm.pipelines.record_writers import WritingOptions, record_writer


ADULT_CATEGORIES = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay Never-worked",
    "education": "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th Masters "
    "1st-4th 10th Doctorate 5th-6th Preschool",
    "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty Handlers-cleaners "
    "Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "native-country": "United-States Cambodia England Puerto-Rico Canada Germany India Japan Greece South China Cuba",
    "income": "<=50K >50K",
}
ADULT_NUMBERS = {
    "age": (17, 90),
    "fnlwgt": (12_285, 1_484_705),
    "education-num": (1, 16),
    "capital-gain": (0, 99_999),
    "capital-loss": (0, 4_356),
    "hours-per-week": (1, 99),
}
ADULT_COLUMNS = [
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
]


def adult_shaped(rows: int = 500) -> pd.DataFrame:
    """A table with Adult's columns and values drawn at random."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            name: rng.integers(*ADULT_NUMBERS[name], size=rows)
            if name in ADULT_NUMBERS
            else rng.choice(ADULT_CATEGORIES[name].split(), size=rows)
            for name in ADULT_COLUMNS
        }
    )


def with_schema(pipe: DiffLMPipeline, schema: RecordSchema) -> DiffLMPipeline:
    """The same models for another table."""
    torch.manual_seed(0)
    size = pipe.autoencoder.config.latent_size
    return DiffLMPipeline(
        autoencoder=pipe.autoencoder,
        denoiser=DiffLMDenoiser(latent_size=size, hidden_size=32, num_blocks=1),
        scheduler=pipe.scheduler,
        encoder_tokenizer=pipe.encoder_tokenizer,
        decoder_tokenizer=pipe.decoder_tokenizer,
        record_schema=schema.to_dict(),
    )


class PeakMemory:
    """Highest resident memory of this process while the block runs, in MiB."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop, process = 0, threading.Event(), psutil.Process()

        def watch() -> None:
            while not self._stop.wait(0.05):
                self.peak = max(self.peak, process.memory_info().rss)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        return self.peak / 2**20


def measure(run: Callable[[], tuple[int, int, int]]) -> dict[str, float]:
    """Time ``run``, which returns the number of rows, of valid rows and of tokens."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        rows, valid, tokens = run()
        seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "valid_rows_per_second": valid / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_mib": memory.mib,
    }


def count_tokens(pipe: DiffLMPipeline, texts: list[str]) -> int:
    """Tokens of texts, each with its EOS."""
    return sum(len(pipe.decoder_tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)


def by_model(
    pipe: DiffLMPipeline, latents: torch.Tensor, *, fast: bool, **options: Any
) -> Callable[[], tuple[int, int, int]]:
    """Write all latents' records once by the pipeline's language model."""
    options.setdefault("max_new_tokens", pipe.config.max_new_tokens)
    writer = record_writer(pipe.autoencoder, WritingOptions(**options), fast=fast)

    def run() -> tuple[int, int, int]:
        # Schema-invalid texts are part of the figures, not resampled: hence the texts as written.
        constraint = pipe.constraint()
        texts = writer(latents, constraint, pipe.row_randoms(0, len(latents)))
        valid = 0
        for text in texts:
            try:
                pipe.schema.parse(text)
            except ValueError:
                continue
            valid += 1
        return len(texts), valid, count_tokens(pipe, texts)

    return run


@torch.no_grad()
def published_loop(
    pipe: DiffLMPipeline, latents: torch.Tensor, max_tokens: int, stop_at_eos: bool
) -> tuple[int, int, int]:
    """One row at a time; every token recomputes prefix and injection's attention without a cache of tokens."""
    decoder, config, valid, tokens = pipe.autoencoder.decoder, pipe.autoencoder.config, 0, 0
    torch.manual_seed(0)
    for latent in latents:
        injection, written = pipe.autoencoder.inject(latent[None]), [config.bos_token_id]
        while len(written) <= max_tokens:
            cache = pipe.autoencoder.decoder_cache(injection)
            with bias_tokens(decoder, injection):
                logits = decoder(torch.tensor([written]), past_key_values=cache, use_cache=True).logits[0, -1]
            token = int(torch.multinomial(logits.float().softmax(-1), 1))
            tokens += 1
            if token == config.eos_token_id and stop_at_eos:
                break
            written.append(token)
        try:
            pipe.schema.parse(pipe.decoder_tokenizer.decode(written[1:]))
            valid += 1
        except ValueError:
            pass
    return len(latents), valid, tokens


@torch.no_grad()
def forward_passes(pipe: DiffLMPipeline, latents: torch.Tensor, num_tokens: int) -> tuple[int, int, int]:
    """One forward pass per token for the whole batch, nothing else."""
    injection = pipe.autoencoder.inject(latents)
    cache = pipe.autoencoder.decoder_cache(injection)
    step = torch.full((len(latents), 1), 100)
    for _ in range(num_tokens):
        pipe.autoencoder.decoder(step, past_key_values=cache, use_cache=True)
    return len(latents), len(latents), len(latents) * num_tokens


def be_great(pipe: DiffLMPipeline, frame: pd.DataFrame, rows: int) -> dict[str, float] | str:
    """be-great's own sampling step with the same weights, untuned: every text counts, cut at the real rows' length."""
    try:
        from be_great import GReaT
        from be_great.great_dataset import GReaTDataset
    except ImportError as error:
        return f"not installed ({error}): pip install be-great==0.0.14"
    with tempfile.TemporaryDirectory() as folder:
        decoder = copy.copy(pipe.autoencoder.decoder)
        decoder.save_pretrained(folder)
        pipe.decoder_tokenizer.save_pretrained(folder)
        great = GReaT(llm=folder, report_to=[])
    great._update_column_information(frame)
    great._update_conditional_information(frame, None)
    dataset = GReaTDataset.from_pandas(frame, preserve_index=False)
    dataset.set_tokenizer(great.tokenizer)
    max_length = round(statistics.mean(len(dataset._getitem(row)["input_ids"]) for row in range(50)))
    start = great._get_start_sampler("", None)

    @torch.no_grad()
    def run() -> tuple[int, int, int]:
        tokens = torch.tensor(start.get_start_tokens(rows))
        written = great.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_length=max_length,
            min_length=max_length,
            do_sample=True,
            temperature=0.7,
            pad_token_id=great.tokenizer.pad_token_id,
        )
        return rows, rows, written[:, tokens.shape[1] :].numel()

    return measure(run)


def by_draft(pipe: DiffLMPipeline, rows: int) -> dict[str, float] | str:
    """The whole pipeline, diffusion included, with the draft writing alone; the language model is not used."""
    if pipe.draft is None:
        return "the pipeline has no draft"

    def run() -> tuple[int, int, int]:
        texts = pipe(rows, seed=0, writer="draft").texts
        return rows, len(texts), count_tokens(pipe, texts)

    return measure(run)


def forward_share(pipe: DiffLMPipeline, run: Callable[[], Any]) -> float:
    """Part of ``run``'s time that is spent inside the decoder's transformer."""
    inside, started = 0.0, [0.0]

    def before(*arguments: Any) -> None:
        started[0] = time.perf_counter()

    def after(*arguments: Any) -> None:
        nonlocal inside
        inside += time.perf_counter() - started[0]

    body = pipe.autoencoder.decoder.base_model
    handles = [body.register_forward_pre_hook(before), body.register_forward_hook(after)]
    begun = time.perf_counter()
    run()
    total = time.perf_counter() - begun
    for handle in handles:
        handle.remove()
    return inside / total


def benchmark(
    pipe: DiffLMPipeline, frame: pd.DataFrame, latents: torch.Tensor, batch_size: int, trained: bool
) -> dict[str, Any]:
    """Every way of sampling on one table."""
    fast = by_model(pipe, latents, fast=True, batch_size=batch_size)
    fast()  # compiles the grammar, probes the decoder
    figures: dict[str, Any] = {"fast": measure(fast)}
    figures["fast"]["forward_share"] = forward_share(pipe, fast)
    length = round(figures["fast"]["tokens_per_second"] / figures["fast"]["rows_per_second"])
    # Without the grammar an untrained injector never ends a text.
    limit = pipe.config.max_new_tokens if trained else length
    batch = latents[:batch_size]
    free = by_model(pipe, batch, fast=False, constrained=False, batch_size=batch_size, max_new_tokens=limit)
    figures["generate_filter"] = measure(free)
    figures["generate_constrained"] = measure(by_model(pipe, batch, fast=False, batch_size=batch_size))
    few = latents[:4]
    figures["published_loop"] = measure(
        lambda: published_loop(pipe, few, 2 * length if trained else length, stop_at_eos=trained)
    )
    if trained:
        figures["draft"] = by_draft(pipe, 16 * len(latents))
    figures["be_great"] = be_great(pipe, frame, 100)
    floors = {}
    for size in sorted({64, 128, batch_size}):
        floors[size] = measure(lambda size=size: forward_passes(pipe, latents[:size], length))
    best = max(floors, key=lambda size: floors[size]["rows_per_second"])
    figures["floor"] = floors[best] | {"batch_size": best}
    reference = figures["fast"]
    for name, row in figures.items():
        if isinstance(row, dict):
            key = "valid_rows_per_second" if trained and name == "generate_filter" else "rows_per_second"
            row["fast_is_times"] = reference[key] / row[key] if row[key] else None
    return figures


def print_table(title: str, figures: dict[str, Any]) -> None:
    print(f"\n{title}")
    print(f"{'':<22}{'rows/s':>9}{'valid/s':>9}{'tokens/s':>10}{'peak MiB':>10}{'fast is':>10}")
    for name, row in figures.items():
        if isinstance(row, str):
            print(f"{name:<22}{row}")
            continue
        times = "-" if row["fast_is_times"] is None else f"{row['fast_is_times']:.2f} x"
        print(
            f"{name:<22}{row['rows_per_second']:>9.2f}{row['valid_rows_per_second']:>9.2f}"
            f"{row['tokens_per_second']:>10.0f}{row['peak_memory_mib']:>10.0f}{times:>10}"
        )
    print(f"forward share of the fast loop's time: {100 * figures['fast']['forward_share']:.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a fitted pipeline")
    parser.add_argument("--rows", type=int, default=512, help="rows of the fast path (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="rows decoded together (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    pipe = DiffLMPipeline.from_pretrained(arguments.pipeline)
    pipe.set_progress_bar_config(disable=True)
    demo = pipe(arguments.rows, seed=0)
    adult = adult_shaped()
    shaped = with_schema(pipe, RecordSchema.infer(adult, record_format=pipe.schema.record_format))
    results = {
        "machine": {
            "cpu_count": psutil.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "decoder_dtype": str(pipe.autoencoder.decoder.dtype),
        }
    }
    for name, one, frame, trained in (
        ("fitted", pipe, demo.to_pandas(), True),
        ("adult_shaped", shaped, adult, False),
    ):
        results[name] = benchmark(one, frame, demo.latents, arguments.batch_size, trained)
        print_table(name, results[name])
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
