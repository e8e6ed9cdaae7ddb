"""Training of the autoencoder: a thin transformers Trainer with a moving beta, which measures the latent's use."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from difflm.modeling_difflm import DiffLMModel, multiplies_bf16
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.beta_schedules import BetaSchedule, build_beta_schedule
from difflm.training.candidate_tokens import CandidateTokens, draw_candidates, has_plain_head
from difflm.training.latent_warmup import WARMED_UP, trains_columns, warm_up_latents
from difflm.training.record_dataset import RecordCollator, RecordDataset


MAX_WARMUP_EVALUATION_RECORDS = 256


class AutoencoderTrainer(Trainer):
    """Trainer of [`DiffLMModel`]: loss = reconstruction + beta * KL (DiffLM, equation 2).

    ``evaluate`` reports, in nats per record on the evaluation set: ``eval_reconstruction`` (each record from its own
    latent), ``eval_reconstruction_shuffled`` (from another record's: the gap is what the latent carries),
    ``eval_kl``, and for a model that makes one ``eval_reconstruction_draft``, by the draft alone: what the LLM adds is
    the difference.

    Parameters
    ----------
    model : DiffLMModel
    args : AutoencoderTrainingArguments
    train_dataset, eval_dataset : RecordDataset
    encoder_pad_token_id : int
    """

    model: DiffLMModel
    args: AutoencoderTrainingArguments

    def __init__(
        self,
        model: DiffLMModel,
        args: AutoencoderTrainingArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        encoder_pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=RecordCollator(encoder_pad_token_id),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        if args.disable_tqdm:
            self.remove_callback(PrinterCallback)  # silence asked for is silence given
        self.budget = TimeBudget(args.max_minutes)
        self.add_callback(build_beta_schedule(args))
        self.add_callback(self.budget)
        if args.save_minutes and args.save_strategy != "no":
            self.add_callback(TimedCheckpoints(args.save_minutes))
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingAtFloor(args.early_stopping_patience))
        self._known_tokens: Tensor | None = None
        self._best_figures: dict[str, float] | None = None
        self._best_weights: dict[str, Tensor] = {}
        self._step_figures: dict[str, list[float]] = {"reconstruction": [], "kl": []}

    @property
    def beta_schedule(self) -> BetaSchedule:
        # Looked up, not kept: resuming replaces the callback by one built from the checkpoint.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, BetaSchedule))

    @property
    def _warms_up(self) -> bool:
        return bool(self.args.latent_warmup_steps) and trains_columns(self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        on_cpu = self.args.device.type == "cpu"
        models = [m for m in (self.model.encoder, self.model.decoder) if on_cpu and m is not None]
        before = [model.config._attn_implementation for model in models]
        if self.model.column_features is not None:
            dataset: Any = self.train_dataset
            values = dataset.feature_values()
            self.model.column_features.fit(values)
            if self._warms_up and not resume_from_checkpoint:
                started = time.monotonic()
                warm_up_latents(
                    self.model,
                    values,
                    None
                    if self.model.record_draft is None
                    else functools.cache(lambda row: dataset.token_ids(dataset.records[row])),
                    _columns_and_labels(self.eval_dataset),
                    steps=self.args.latent_warmup_steps,
                    # No more than a small part of a short fit.
                    max_seconds=None if self.budget.max_seconds is None else 0.08 * self.budget.max_seconds,
                    seed=self.args.seed,
                    show_progress=not self.args.disable_tqdm,
                )
                self.budget.used_before = time.monotonic() - started
        self.model.encoder_autocast = self.args.encoder_bf16 and multiplies_bf16(self.args.device)
        try:
            for model in models:
                model.set_attn_implementation("eager")
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for model, implementation in zip(models, before, strict=True):
                model.set_attn_implementation(implementation)
            self.model.encoder_autocast = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        share_of_steps = self.state.global_step / max(1, self.state.max_steps)
        beta = self.beta_schedule.advance(max(share_of_steps, self.budget.share_used()))
        output = model(**inputs, beta=beta, candidates=self._candidates())
        self._step_figures["reconstruction"].append(float(output.reconstruction_loss))
        self._step_figures["kl"].append(float(output.kl))
        return output.loss

    def _candidates(self) -> CandidateTokens | None:
        """Draw the tokens of a step's softmax; None where all of them cost no more."""
        if self._known_tokens is None:
            self._known_tokens = torch.tensor(self._table_tokens() or [], dtype=torch.long, device=self.args.device)
        if not len(self._known_tokens):
            return None
        # From torch's global generator, which checkpoints keep.
        return draw_candidates(self._known_tokens, self._vocab_size, self.args.num_sampled_tokens)

    @property
    def _vocab_size(self) -> int:
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.decoder.get_output_embeddings().weight.shape[0]

    def _table_tokens(self) -> list[int] | None:
        model: Any = self.accelerator.unwrap_model(self.model)
        limit = self._vocab_size // 4 - self.args.num_sampled_tokens
        dataset: Any = self.train_dataset
        usable = isinstance(dataset, RecordDataset) and has_plain_head(model.decoder)
        if not self.args.num_sampled_tokens or limit < 1 or not usable:
            return None
        return dataset.vocabulary(limit)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._step_figures.items():
                if values:
                    logs[name] = sum(values) / len(values)
                values.clear()
            logs["beta"] = self.beta_schedule.beta
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            # What was warmed up is trained on as gently as what was pretrained (MAGIC, 40 steps: 100 nats, not 106).
            trained_before = ("encoder", *(WARMED_UP if self._warms_up else ()))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((name.split(".")[0] in trained_before, name in decayed), []).append(parameter)
            optimizer_class, optimizer_arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": self.args.encoder_learning_rate if gently else self.args.learning_rate,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (gently, decays), parameters in groups.items()
                ],
                **optimizer_arguments,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.args.max_minutes is not None and hasattr(scheduler, "lr_lambdas"):
            # Time may run out before the steps: the shape is followed at whichever is further on.
            scheduler.lr_lambdas = [
                lambda step, shape=shape: shape(max(step, int(self.budget.share_used() * num_training_steps)))
                for shape in scheduler.lr_lambdas
            ]
        return scheduler

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        lengths = getattr(dataset, "lengths", None)
        if self.args.train_sampling_strategy == "group_by_length" and lengths is not None:
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return LengthGroupedSampler(batch, lengths=lengths)
        return super()._get_train_sampler(train_dataset)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        model: DiffLMModel = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        batches = [self._prepare_inputs(batch) for batch in self.get_eval_dataloader(dataset)]
        posteriors = [
            model.encode(batch["input_ids"], batch["attention_mask"], batch.get("feature_values")) for batch in batches
        ]
        means = torch.cat([posterior.mean for posterior in posteriors])
        sizes = [len(posterior.mean) for posterior in posteriors]
        figures = {
            f"{metric_key_prefix}_{name}": torch.cat(
                [
                    model.reconstruction(latents, batch["labels"])
                    for latents, batch in zip(rows.split(sizes), batches, strict=True)
                ]
            )
            .mean()
            .item()
            # Rolled by half the set: records of similar length, hence neighbours, do not trade places.
            for name, rows in (
                ("reconstruction", means),
                ("reconstruction_shuffled", means.roll(len(means) // 2 or 1, dims=0)),
            )
        }
        if model.record_draft is not None:
            drafts = [
                model.draft_loss(latents, batch["labels"])
                for latents, batch in zip(means.split(sizes), batches, strict=True)
            ]
            figures[f"{metric_key_prefix}_reconstruction_draft"] = torch.cat(drafts).mean().item()
        figures[f"{metric_key_prefix}_kl"] = torch.cat([posterior.kl() for posterior in posteriors]).mean().item()
        figures[f"{metric_key_prefix}_loss"] = figures[f"{metric_key_prefix}_reconstruction"]
        model.train(was_training)
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        loss = f"{metric_key_prefix}_loss"
        if was_training and (self._best_figures is None or figures[loss] < self._best_figures[loss]):
            self._best_figures = figures
            self._best_weights = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        return figures

    @torch.no_grad()
    def keep_best(self) -> dict[str, float]:
        """Evaluate, and go back to the weights of the best evaluation of this training where these are worse.

        A small table is learnt by heart in minutes: its own records ever better, held-out ones worse. What came before
        a resumed training's start is forgotten.

        Returns
        -------
        dict of str to float
            The figures of [`~AutoencoderTrainer.evaluate`] for the weights kept.
        """
        figures, best = self.evaluate(), self._best_figures
        if best is None or figures["eval_reconstruction"] <= best["eval_reconstruction"]:
            return figures
        model: DiffLMModel = self.accelerator.unwrap_model(self.model)
        for name, parameter in model.named_parameters():
            if name in self._best_weights:
                parameter.copy_(self._best_weights[name])
        return best


def _columns_and_labels(dataset: Any) -> tuple[Tensor, list[list[int]]]:
    examples = [dataset[row] for row in range(min(len(dataset), MAX_WARMUP_EVALUATION_RECORDS))]
    values = torch.tensor([example["feature_values"] for example in examples])
    return values, [example["labels"] for example in examples]


class TimeBudget(TrainerCallback):
    """Ends training when a wall-clock budget is used up. Evaluations and checkpoints count."""

    def __init__(self, max_minutes: float | None) -> None:
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.used_before = 0.0
        self.started = time.monotonic()

    def share_used(self) -> float:
        return 0.0 if self.max_seconds is None else min(1.0, (time.monotonic() - self.started) / self.max_seconds)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.monotonic() - self.used_before

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.share_used() >= 1.0:
            control.should_training_stop = True


class TimedCheckpoints(TrainerCallback):
    """Writes a checkpoint when none was written for so long: where steps are slow, few of them are many minutes."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    on_save = on_train_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if time.monotonic() - self.last >= self.seconds:
            control.should_save = True


class EarlyStoppingAtFloor(TrainerCallback, ExportableState):
    """Early stopping. Where beta falls at plateaus, its patience starts to count once beta cannot fall any more."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.evaluations_without_improvement = 0

    def on_evaluate(
        self,
        args: Any,  # AutoencoderTrainingArguments
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_reconstruction")
        if loss is None:
            return
        at_floor = args.beta_schedule != "decreasing" or _current_beta(state) <= args.beta_minimum * (1 + 1e-6)
        if self.best is None or loss < self.best:
            self.best, self.evaluations_without_improvement = loss, 0
        elif at_floor:
            self.evaluations_without_improvement += 1
            control.should_training_stop = self.evaluations_without_improvement >= self.patience

    def state(self) -> dict[str, Any]:
        return {
            "args": {"patience": self.patience},
            "attributes": {
                "best": self.best,
                "evaluations_without_improvement": self.evaluations_without_improvement,
            },
        }


def _current_beta(state: TrainerState) -> float:
    return next((entry["beta"] for entry in reversed(state.log_history) if "beta" in entry), float("inf"))
