"""Encode records to posteriors: the denoiser's training set."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from difflm.modeling_difflm import DiffLMModel, Posterior, multiplies_bf16
from difflm.training.record_dataset import RecordCollator, RecordDataset


@torch.no_grad()
def encode_latents(
    model: DiffLMModel,
    dataset: RecordDataset,
    *,
    batch_size: int = 64,
    encoder_pad_token_id: int = 0,
    show_progress: bool = True,
) -> Posterior:
    """Posterior of every record, in the dataset's order, on the CPU.

    Returns
    -------
    Posterior
        ``mean`` and ``log_variance``, ``[records, latent_size]`` each.
    """
    was_training = model.training
    model.eval()
    # As precise as in training: rounding is far below the posterior's own width.
    model.encoder_autocast = multiplies_bf16(model.device)
    # Records of like length together, so that little of a batch is padding.
    order = sorted(range(len(dataset)), key=dataset.lengths.__getitem__)
    loader = DataLoader(dataset, batch_size=batch_size, sampler=order, collate_fn=RecordCollator(encoder_pad_token_id))
    means, log_variances = [], []
    for batch in tqdm(loader, desc="Encoding records", unit="batch", disable=not show_progress):
        batch = {name: values.to(model.device) for name, values in batch.items()}
        posterior = model.encode(batch["input_ids"], batch["attention_mask"], batch.get("numerical_values"))
        means.append(posterior.mean.float().cpu())
        log_variances.append(posterior.log_variance.float().cpu())
    model.encoder_autocast = False
    model.train(was_training)
    back = torch.tensor(order).argsort()
    return Posterior(torch.cat(means)[back], torch.cat(log_variances)[back])
