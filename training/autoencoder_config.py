"""Arguments of the autoencoder's training: only what differs from transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from difflm.training.processes import are_several_on_cpus


SCHEDULES = ("decreasing", "geometric", "cyclical", "constant")


@dataclass
class AutoencoderTrainingArguments(TrainingArguments):
    """Arguments of [`AutoencoderTrainer`]. Those not listed are [`~transformers.TrainingArguments`]'.

    Parameters
    ----------
    encoder_learning_rate : float, default 2e-4
        Of the encoder's parameters, and of those that a warm-up has trained; ``learning_rate`` (default 1e-3) is that
        of the new parts.
    beta_schedule : {"decreasing", "geometric", "cyclical", "constant"}, default "decreasing"
        The paper's, which follows plateaus of the validation loss; a geometric fall over the first
        ``beta_anneal_share`` of the training; the paper's rival; none.
    beta, beta_minimum, beta_factor : float, default 0.1, 0.001, 0.5
        First (for "cyclical": highest) value, floor and multiplier of beta.
    beta_patience : int, default 1
        Evaluations without improvement before beta is multiplied.
    beta_threshold : float, default 0.0
        Relative improvement that counts as one.
    beta_cycles : int, default 4
    beta_anneal_share : float, default 0.67
    early_stopping_patience : int, default 10
        Evaluations without improvement that end training; 0: never. Under the schedule "decreasing" they count once
        beta is at its floor, separately from ``beta_patience``.
    free_bits : float, default 0.0
        Nats per latent dimension below which the KL is not penalised.
    num_sampled_tokens : int, default 1024
        Tokens drawn at each step to stand for those that occur in no record, in the softmax over the decoder's
        vocabulary (see [`CandidateTokens`]); evaluations are exact. 0: exact in training too, and slower.
    latent_warmup_steps : int, default 1500
        Steps of [`warm_up_latents`] before the first of the autoencoder, for models with feature columns and a
        ``column_loss_weight`` (a fit gives the weight to tables of 2,000 training rows or more).
    encoder_bf16 : bool, default True
        Train the encoder in mixed precision where the hardware multiplies bf16.
    save_minutes : float, default 10
        Most minutes without a checkpoint, whatever ``save_steps`` says; 0: no matter.
    max_minutes : float, optional
        Wall-clock budget; the learning rate's schedule then follows whichever of steps and time is nearer its end.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the new parts."})
    encoder_learning_rate: float = field(default=2e-4, metadata={"help": "Of the encoder and of what is warmed up."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Records per step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Records per evaluation step."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Passes over the training records."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm at which gradients are clipped."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps (or share of them) of linear warm-up."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Batches of records of similar length."}
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: beta follows evaluations."})
    eval_steps: float = field(default=100, metadata={"help": "Steps between evaluations."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between log lines."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Only of use with an accelerator."})
    report_to: str = field(default="none", metadata={"help": "Integrations to report to."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the records themselves."})
    beta_schedule: str = field(
        default="decreasing",
        metadata={"help": "Schedule of the KL's weight.", "choices": list(SCHEDULES)},
    )
    beta: float = field(default=0.1, metadata={"help": "First (cyclical: highest) weight of the KL."})
    beta_minimum: float = field(default=0.001, metadata={"help": "Floor of the decreasing schedule."})
    beta_factor: float = field(default=0.5, metadata={"help": "Multiplier of beta at a plateau."})
    beta_patience: int = field(default=1, metadata={"help": "Evaluations without improvement that are a plateau."})
    beta_threshold: float = field(default=0.0, metadata={"help": "Relative improvement that counts as one."})
    beta_cycles: int = field(default=4, metadata={"help": "Cycles of the cyclical schedule."})
    beta_anneal_share: float = field(
        default=0.67, metadata={"help": "Share of the training after which the geometric schedule is at its floor."}
    )
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Evaluations without improvement that end training; 0: never."}
    )
    free_bits: float = field(default=0.0, metadata={"help": "Nats per latent dimension that cost nothing."})
    num_sampled_tokens: int = field(
        default=1024,
        metadata={"help": "Tokens drawn for the softmax to stand for those in no record; 0: take all."},
    )
    latent_warmup_steps: int = field(
        default=1500, metadata={"help": "Steps of the latents' warm-up, without the LLM; 0: none."}
    )
    encoder_bf16: bool = field(default=True, metadata={"help": "Mixed precision for the encoder, where it is fast."})
    save_minutes: float = field(default=10.0, metadata={"help": "Most minutes without a checkpoint; 0: no matter."})
    max_minutes: float | None = field(default=None, metadata={"help": "Wall-clock budget in minutes."})

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or are_several_on_cpus()
        super().__post_init__()
        if self.beta_schedule not in SCHEDULES:
            raise ValueError(f"beta_schedule={self.beta_schedule!r} is not one of {', '.join(SCHEDULES)}.")
        if self.save_minutes < 0:
            raise ValueError(f"save_minutes must not be negative: {self.save_minutes}.")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes must be positive, not {self.max_minutes}.")
