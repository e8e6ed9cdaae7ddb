"""Encode records to posteriors: the denoiser's training set."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from difflm.modeling_difflm import DiffLMModel, Posterior, multiplies_bf16
from difflm.training.processes import num_processes, process_index, summed
from difflm.training.record_dataset import RecordCollator, RecordDataset, encoder_inputs


@contextlib.contextmanager
def _encoding(model: DiffLMModel) -> Iterator[None]:
    """While open, the model encodes: without dropout or gradients, and as precisely as in training."""
    was_training = model.training
    model.eval()
    model.encoder_autocast = multiplies_bf16(model.device)  # rounding is far below the posterior's own width
    try:
        with torch.no_grad():
            yield
    finally:
        model.encoder_autocast = False
        model.train(was_training)


def estimated_seconds(
    model: DiffLMModel, dataset: RecordDataset, *, batch_size: int = 64, encoder_pad_token_id: int = 0
) -> float:
    """How long [`encode_latents`] will take, from a batch of records of middling length."""
    order = sorted(range(len(dataset)), key=dataset.lengths.__getitem__)
    first = max(0, (len(order) - batch_size) // 2)
    batch = RecordCollator(encoder_pad_token_id)([dataset[row] for row in order[first : first + batch_size]])
    batch = {name: values.to(model.device) for name, values in encoder_inputs(batch).items()}
    seconds = 0.0
    with _encoding(model):
        for _ in range(2):  # the first is slower
            started = time.monotonic()
            model.encode(**batch)
            seconds = time.monotonic() - started
    return seconds * len(dataset) / min(batch_size, len(dataset))


def encode_latents(
    model: DiffLMModel,
    dataset: RecordDataset,
    *,
    batch_size: int = 64,
    encoder_pad_token_id: int = 0,
    show_progress: bool = True,
) -> Posterior:
    """Posterior of every record, in the dataset's order, on the CPU. Several processes share the work.

    Returns
    -------
    Posterior
        ``mean`` and ``log_variance``, ``[records, latent_size]`` each.
    """
    # Records of like length together, so that little of a batch is padding.
    order = sorted(range(len(dataset)), key=dataset.lengths.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = batches[process_index() :: num_processes()]
    loader = DataLoader(dataset, batch_sampler=mine, collate_fn=RecordCollator(encoder_pad_token_id))
    bar: dict[str, Any] = {"desc": "Encoding records", "unit": "batch", "disable": not show_progress}
    # A process fills in the rows of its batches; the sum has all, the same numbers as one process's.
    latents = torch.zeros(2, len(dataset), model.config.latent_size)
    with _encoding(model):
        for batch, rows in tqdm(zip(loader, mine, strict=True), total=len(mine), **bar):
            batch = {name: values.to(model.device) for name, values in encoder_inputs(batch).items()}
            posterior = model.encode(**batch)
            latents[0, rows] = posterior.mean.float().cpu()
            latents[1, rows] = posterior.log_variance.float().cpu()
    mean, log_variance = summed(latents)
    return Posterior(mean, log_variance)
