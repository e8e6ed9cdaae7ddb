"""Training of the autoencoder: a thin transformers Trainer with a moving beta, which measures the latent's use.

It takes the same steps in one process and in several with the same global batch: noise, candidates and the order of
the records depend on the seed and the step alone, a process takes its part of them, and whatever a clock or an
evaluation decides is the same in all. Dropout alone differs between them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from difflm.files import atomic_file
from difflm.modeling_difflm import DiffLMModel, multiplies_bf16
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_losses import AutoencoderObjective, draft_loss, trains_columns
from difflm.training.beta_schedules import BetaSchedule, build_beta_schedule
from difflm.training.candidate_tokens import CandidateTokens, draw_candidates, has_plain_head
from difflm.training.draft_stage import with_evaluation_noise
from difflm.training.fit_time import Floor
from difflm.training.keep_best import KeepBest
from difflm.training.latent_warmup import warm_up_latents, warmed_up_parts
from difflm.training.policy import Policy
from difflm.training.processes import is_main_process, num_processes, process_index, summed, wait_for_everyone
from difflm.training.record_dataset import RecordCollator, RecordDataset, encoder_inputs
from difflm.training.seeds import derived_seed, seeded_generator
from difflm.training.time_budget import TimeBudget
from difflm.training.trainer_callbacks import EarlyStoppingAtFloor, TimedCheckpoints, TimeLimit


WEIGHTS_FILE = "model.safetensors"
COLUMN_DECODER_FILE = "column_decoder.safetensors"


class AutoencoderTrainer(Trainer):
    """Trainer of [`DiffLMModel`]: loss = reconstruction + beta * KL (DiffLM, equation 2).

    ``evaluate`` reports, in nats per record on the evaluation set: ``eval_reconstruction`` (each record from its own
    latent: the posterior's mean, with noise in the dimensions that come from outside),
    ``eval_reconstruction_shuffled`` (from another record's: the gap is what the latent carries), ``eval_kl``, and for
    a model that makes one ``eval_reconstruction_draft``, by the draft alone: what the LLM adds is the difference.

    Parameters
    ----------
    model : DiffLMModel
        Trained in place; ``self.model`` is the [`AutoencoderObjective`] around it.
    args : AutoencoderTrainingArguments
    train_dataset, eval_dataset : RecordDataset
    encoder_pad_token_id : int
    policy : Policy, optional
        The measured constants of the warm-up and of the sampled softmax.
    floor : Floor, optional
        Where training ends unless the LLM adds to a draft.
    """

    args: AutoencoderTrainingArguments

    def __init__(
        self,
        model: DiffLMModel,
        args: AutoencoderTrainingArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        encoder_pad_token_id: int = 0,
        policy: Policy | None = None,
        floor: Floor | None = None,
        **kwargs: Any,
    ) -> None:
        self.policy = policy or Policy()
        self.autoencoder = model
        self.elbo = AutoencoderObjective(model, args.free_bits)
        # The frozen decoder is the same everywhere: it is not sent around.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self.elbo, [name for name in self.elbo.state_dict() if name.startswith("autoencoder.decoder.")]
        )
        super().__init__(
            model=self.elbo,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=RecordCollator(encoder_pad_token_id),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        if args.disable_tqdm:
            self.remove_callback(PrinterCallback)  # silence asked for is silence given
        self.budget = TimeBudget(None if args.max_minutes is None else 60 * args.max_minutes)
        self.floor, self.time_limit = floor, TimeLimit(self.budget, floor)
        self.add_callback(build_beta_schedule(args))
        self.add_callback(self.time_limit)
        if args.save_minutes and args.save_strategy != "no":
            self.add_callback(TimedCheckpoints(args.save_minutes))
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingAtFloor(args.early_stopping_patience))
        self._known_tokens: Tensor | None = None
        self._best, self._best_figures = KeepBest(), dict[str, float]()
        self._last_evaluation: tuple[int, dict[str, float]] = (-1, {})
        self._step_figures: dict[str, list[float]] = {"reconstruction": [], "kl": []}
        self._part = (-1, 0)  # a step and how many of its parts (gradient accumulation) were computed

    @property
    def beta_schedule(self) -> BetaSchedule:
        # Looked up, not kept: resuming replaces the callback by one built from the checkpoint.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, BetaSchedule))

    @property
    def _warms_up(self) -> bool:
        return bool(self.args.latent_warmup_steps) and trains_columns(self.autoencoder)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        on_cpu = self.args.device.type == "cpu"
        models = [m for m in (self.autoencoder.encoder, self.autoencoder.decoder) if on_cpu and m is not None]
        before = [model.config._attn_implementation for model in models]
        self.budget.start()
        if self.autoencoder.column_features is not None:
            self.autoencoder.column_features.fit(cast(Any, self.train_dataset).told_feature_values())
        if self._warms_up and not resume_from_checkpoint:
            self._warm_up()
        self.autoencoder.encoder_autocast = self.args.encoder_bf16 and multiplies_bf16(self.args.device)
        try:
            for model in models:
                model.set_attn_implementation("eager")
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for model, implementation in zip(models, before, strict=True):
                model.set_attn_implementation(implementation)
            self.autoencoder.encoder_autocast = False

    def _warm_up(self) -> None:
        """Warm up in the main process, which sends the weights around when training begins."""
        if is_main_process():
            dataset, limit, share = cast(Any, self.train_dataset), self.budget.max_seconds, self.policy.warm_up_share
            if self.floor is not None:
                limit, share = self.floor.seconds, self.policy.floor_warm_up_share
            drafts = self.autoencoder.record_draft is not None
            warm_up_latents(
                self.elbo,
                dataset.feature_values() if dataset.column_latents is None else dataset.column_latents,
                functools.cache(lambda row: dataset.token_ids(dataset.records[row])) if drafts else None,
                _columns_and_labels(self.eval_dataset, self.policy.warm_up_evaluation_records),
                steps=self.args.latent_warmup_steps,
                # No more than a part of a short fit.
                max_seconds=None if limit is None else share * limit,
                seed=self.args.seed,
                policy=self.policy,
                show_progress=not self.args.disable_tqdm,
            )
        wait_for_everyone()

    # ---------------------------------------------------------------- a step

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        share_of_steps = self.state.global_step / max(1, self.state.max_steps)
        beta = self.beta_schedule.advance(max(share_of_steps, self.time_limit.share_used))
        step, parts = self._part
        self._part = (step, parts + 1) if step == self.state.global_step else (self.state.global_step, 0)
        index = self._part[0] * self.args.gradient_accumulation_steps + self._part[1]
        # Of dropout, which is each process's own.
        torch.manual_seed(derived_seed(self.args.seed, f"dropout of process {process_index()}", index))
        noise = self._noise(len(inputs["labels"]), index) if model.training else None
        output = model(**inputs, beta=beta, eps=noise, candidates=self._candidates(index))
        self._step_figures["reconstruction"].append(float(output.reconstruction_loss))
        self._step_figures["kl"].append(float(output.kl))
        return output.loss

    def _noise(self, records: int, index: int) -> Tensor:
        """This process's part of the noise of a global batch."""
        size = self.args.train_batch_size
        shape = (size * num_processes(), self.autoencoder.config.latent_size)
        noise = torch.randn(shape, generator=seeded_generator(self.args.seed, "noise", index))
        return noise[process_index() * size :][:records].to(self.args.device)

    def _candidates(self, index: int = 0) -> CandidateTokens | None:
        """Draw the tokens of a step's softmax; None where all of them cost no more."""
        if self._known_tokens is None:
            self._known_tokens = torch.tensor(self._table_tokens() or [], dtype=torch.long, device=self.args.device)
        if not len(self._known_tokens):
            return None
        generator = seeded_generator(self.args.seed, "candidates", index)
        return draw_candidates(self._known_tokens, self._vocab_size, self.args.num_sampled_tokens, generator)

    @property
    def _vocab_size(self) -> int:
        return cast(Any, self.autoencoder.decoder).get_output_embeddings().weight.shape[0]

    def _table_tokens(self) -> list[int] | None:
        limit = int(self.policy.max_candidate_share * self._vocab_size) - self.args.num_sampled_tokens
        dataset: Any = self.train_dataset
        usable = isinstance(dataset, RecordDataset) and has_plain_head(cast(Any, self.autoencoder.decoder))
        if not self.args.num_sampled_tokens or limit < 1 or not usable:
            return None
        return dataset.vocabulary(limit)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._step_figures.items():
                if values:
                    total, count = summed(torch.tensor([sum(values), len(values)])).tolist()
                    logs[name] = total / count
                values.clear()
            logs["beta"] = self.beta_schedule.beta
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(cast(Any, self.elbo)))
            # What was warmed up is trained on as gently as what was pretrained.
            trained_before = ("encoder", *(warmed_up_parts(self.autoencoder) if self._warms_up else ()))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in self.elbo.named_parameters():
                if parameter.requires_grad:
                    gently = name.removeprefix("autoencoder.").split(".")[0] in trained_before
                    groups.setdefault((gently, name in decayed), []).append(parameter)
            optimizer_class, optimizer_arguments = self.get_optimizer_cls_and_kwargs(self.args)
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
        if self.time_limit.ends_early and hasattr(scheduler, "lr_lambdas"):
            # Time may run out before the steps: the shape is followed at whichever is further on.
            scheduler.lr_lambdas = [
                lambda step, shape=shape: shape(max(step, int(self.time_limit.share_used * num_training_steps)))
                for shape in scheduler.lr_lambdas
            ]
        return scheduler

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        lengths = getattr(dataset, "lengths", None)
        if self.args.train_sampling_strategy == "group_by_length" and lengths is not None:
            batch = self.args.train_batch_size * num_processes() * self.args.gradient_accumulation_steps
            # Right at an epoch's begin, also after a checkpoint in its middle.
            return _RecordsByLength(lengths, batch, self.args.seed, lambda: int((self.state.epoch or 0.0) + 1e-6))
        return super()._get_train_sampler(train_dataset)

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        model = self.autoencoder
        was_training = self.elbo.training
        self.elbo.eval()
        size = self.args.eval_batch_size
        loader = DataLoader(dataset, batch_size=size, collate_fn=self.data_collator)
        # Of the batches, every process takes its own; all get the figures of all.
        rows = [slice(start, start + size) for start in range(0, len(dataset), size)]
        batches = {
            number: self._prepare_inputs(batch)
            for number, batch in enumerate(loader)
            if number % num_processes() == process_index()
        }
        means = torch.zeros(len(dataset), model.config.latent_size, device=self.args.device)
        kl = torch.zeros(len(dataset), device=self.args.device)
        for number, batch in batches.items():
            posterior = model.encode(**encoder_inputs(batch))
            means[rows[number]], kl[rows[number]] = posterior.mean, posterior.kl()
        noise = torch.tensor(model.config.column_latent_noise or [])
        latents = with_evaluation_noise(summed(means), noise, self.args.seed)
        # Rolled by half the set: records of similar length, hence neighbours, do not trade places.
        shuffled = latents.roll(len(latents) // 2 or 1, dims=0)
        losses = {"reconstruction": torch.zeros_like(kl), "reconstruction_shuffled": torch.zeros_like(kl)}
        if model.record_draft is not None:
            losses["reconstruction_draft"] = torch.zeros_like(kl)
        for number, batch in batches.items():
            own, labels = rows[number], batch["labels"]
            losses["reconstruction"][own] = model.reconstruction(latents[own], labels)
            losses["reconstruction_shuffled"][own] = model.reconstruction(shuffled[own], labels)
            if model.record_draft is not None:
                losses["reconstruction_draft"][own] = draft_loss(model, latents[own], labels)
        losses["kl"] = kl
        figures = {f"{metric_key_prefix}_{name}": summed(found).mean().item() for name, found in losses.items()}
        figures[f"{metric_key_prefix}_loss"] = figures[f"{metric_key_prefix}_reconstruction"]
        self.elbo.train(was_training)
        self.log(dict(figures))
        self._last_evaluation = (self.state.global_step, figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        if was_training and self._best.offer(figures[f"{metric_key_prefix}_loss"], self._trained(), device="cpu"):
            self._best_figures = figures
        return figures

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.elbo.named_parameters() if value.requires_grad}

    def keep_best(self) -> dict[str, float]:
        """Evaluate, and go back to the weights of the best evaluation of this training where these are worse.

        A small table is learnt by heart in minutes: its own records ever better, held-out ones worse. What came before
        a resumed training's start is forgotten.

        Returns
        -------
        dict of str to float
            The figures of [`~AutoencoderTrainer.evaluate`] for the weights kept.
        """
        step, figures = self._last_evaluation
        if step != self.state.global_step:
            figures = self.evaluate()
        if figures["eval_reconstruction"] <= self._best.loss:
            return figures
        self._best.copy_to(self._trained())
        return self._best_figures

    # ---------------------------------------------------------------- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or cast(str, self.args.output_dir))
        self.autoencoder.save_pretrained(folder)
        if self.elbo.column_decoder is not None:
            with atomic_file(folder / COLUMN_DECODER_FILE) as temporary:
                save_file(self.elbo.column_decoder.state_dict(), temporary)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"{folder} is no checkpoint of the autoencoder's training: it has no {WEIGHTS_FILE}.")
        # Not strict: the decoder is not among them.
        self.autoencoder.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=False)
        if self.elbo.column_decoder is not None:
            self.elbo.column_decoder.load_state_dict(load_file(folder / COLUMN_DECODER_FILE))


class _RecordsByLength(Sampler[int]):
    """Records of like length together, in an order that depends on the seed and the epoch alone."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Any) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Any:
        generator = seeded_generator(self.seed, "order", self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def _columns_and_labels(dataset: Any, most: int) -> tuple[Tensor, list[list[int]]]:
    examples = [dataset[row] for row in range(min(len(dataset), most))]
    values = torch.tensor([example.get("column_latents", example.get("feature_values")) for example in examples])
    return values, [example["labels"] for example in examples]


def history(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """One entry per step, training and evaluation figures together."""
    steps: dict[int, dict[str, float]] = {}
    for entry in entries:
        steps.setdefault(int(entry["step"]), {}).update(entry)
    return [steps[step] for step in sorted(steps)]
