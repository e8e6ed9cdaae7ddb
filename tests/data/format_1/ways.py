"""The ways in which a pipeline is asked for records, by the maker of the checkpoints and by the test of them."""

from typing import Any


def sampled(pipe: Any, rows: list[dict[str, Any]], condition: dict[str, Any], given: list[dict[str, Any]]) -> Any:
    """What the pipeline writes, each way it can be asked."""
    return {
        "plain": pipe(8, seed=7).texts,
        "greedy": pipe(4, seed=8, temperature=0.0).texts,
        "narrowed": pipe(4, seed=9, temperature=0.7, top_k=20, top_p=0.8, within_range=False).texts,
        "free": pipe(2, seed=10, constrained=False, max_attempts=1, num_inference_steps=5).texts,
        "slow": pipe(2, seed=11, fast=False).texts,
        "unique": pipe(6, seed=12, unique=True, exclude_training_copies=True, batch_size=4).texts,
        "conditioned": pipe(4, seed=13, condition=condition, guidance_scale=2.0).texts,
        "imputed": pipe.impute(given, seed=14).texts,
        "varied": pipe.vary(rows[:3], seed=15).texts,
        "reconstructed": pipe.reconstruct(rows[:3], seed=16).texts,
        "between": pipe.interpolate(rows[0], rows[1], 3, seed=17).texts,
    }
