"""The measured constants of training, by name. Importing this file imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difflm.errors import ArgumentError


@dataclass(frozen=True)
class Policy:
    """What training decides by itself, where neither a preset nor an argument of ``fit`` does.

    Every value was chosen by measurement; ``examples/benchmarks/policy.md`` says by which, where it is known. One is
    changed by ``Preset(policy=Policy(...))`` or ``fit(..., policy={"min_rows_to_warm_up": 500})``.

    Attributes
    ----------
    validation_share : float, default 0.1
        Share of the records held out where no validation data is given: enough to see overfitting, few enough to
        learn from.
    max_validation_records : int, default 1000
        Most of them: more make evaluations slower, not better.
    batch_size, slow_batch_size : int, default 16, 8
        Records of a training step; the second on a processor that does not multiply bf16, where few steps fit into
        the time and more of them teach more than larger ones.
    autoencoder_share : float, default 0.85
        Share of ``max_minutes`` that the autoencoder may take, which learns until the end.
    autoencoder_share_with_draft : float, default 0.75
        The same with a draft, which makes it learn earlier.
    denoiser_share : float, default 0.12
        Share of ``max_minutes`` that is kept for the denoiser if encoding the records takes long.
    column_draft_share : float, default 0.4
        Most that the column draft takes of the time that the language model's share leaves.
    floor_share : float, default 0.15
        Share of ``max_minutes`` that the language model takes where the draft writes, so that it can write, too.
    floor_steps, min_floor_steps : int, default 400, 10
        Steps with which it has enough, and that it makes however slow they are.
    floor_evaluations : int, default 4
        How often it is looked, in this time, whether it adds to the draft: then it gets the time that is left.
    floor_warm_up_share : float, default 0.4
        Share of this time for the warm-up, which is most of what it can learn in it.
    min_writer_gain : float, default 0.25
        The language model writes if held-out records cost it less than the draft, by this share.
    noise_floor : float, default 0.5
        Noise at which the diffusion of a draft's latents ends, in standardised units; see [`DiffLMDenoiser`].
    text_latent_size : int, default 32
        Dimensions of the text's part of the latent beside a draft's.
    denoiser_passes : int, default 130
        Passes over a draft's latents that the denoiser makes, within the bounds of steps below.
    min_denoiser_steps, max_denoiser_steps : int, default 1500, 8000
        Its steps are as many at least and at most (but for a preset's ``denoiser_steps``, if it is smaller).
    min_autoencoder_share : float, default 0.5
        The autoencoder's share is never less, however long encoding takes.
    min_denoiser_seconds : float, default 20
        The denoiser trains for so long (in seconds) even if no time is left: latents without one are of no use.
    max_evaluation_records : int, default 128
        Held-out records that one evaluation of the autoencoder reads: it costs as much as so many training records.
    min_evaluation_interval, max_evaluation_interval : int, default 20, 200
        Steps between evaluations of the autoencoder: one epoch, within these bounds.
    evaluations_per_checkpoint : int, default 3
        Evaluations between checkpoints of the autoencoder.
    min_denoiser_interval, max_denoiser_interval : int, default 100, 250
        Steps between evaluations of the denoiser, within these bounds: often enough to catch the best weights for a
        small table, which come early.
    denoiser_evaluations : int, default 40
        Evaluations of the denoiser that all its steps would have room for; the interval follows, within its bounds.
    encoding_batch_size : int, default 64
        Records encoded together.
    max_embedded_columns : int, default 128
        Columns that get an embedding and may have a draft; those behind are told by none.
    min_rows_to_warm_up : int, default 2000
        Training rows from which on the latents are warmed up, and a draft is made. The precise latents that it leaves
        of few rows are learnt by heart; such tables are passed over often enough without.
    beta_after_warm_up : float, default 0.05
        First beta after a warm-up, as high as the column loss, which keeps the latents, allows.
    beta_fall_after_warm_up : float, default 0.1
        Beta's floor, as a share of the first one.
    warm_up_share : float, default 0.08
        Most of the autoencoder's time that the warm-up takes.
    warm_up_batch_size : int, default 256
        Records of a step of the warm-up.
    warm_up_learning_rate : float, default 2e-3
        Its peak.
    warm_up_ramp_steps : int, default 50
        Steps in which the learning rate rises to its peak.
    warm_up_beta : float, default 0.1
        Weight of the KL in the warm-up: smooth latents for the denoiser at little cost in the draft.
    warm_up_max_epochs : int, default 400
        Most passes over the table in the warm-up.
    warm_up_max_grad_norm : float, default 5.0
        Norm at which its gradients are clipped.
    warm_up_evaluation_interval : int, default 50
        Steps between its evaluations on held-out records.
    warm_up_evaluation_records : int, default 256
        Most held-out records of such an evaluation.
    draft_places : int, default 256
        Most tokens of a record that its draft has places for.
    draft_tokens : int, default 512
        Most tokens of the draft's vocabulary, the frequent ones.
    draft_records : int, default 10000
        Records that the draft's shape is taken from.
    draft_width_share : float, default 0.999
        A column gets places for the values of this share of the records; few long ones must not widen it.
    draft_ambiguous_share : float, default 0.01
        A column in which more values than this hold a separator ends the draft: places behind could not be told.
    column_bins : int, default 128
        Tokens of a number's values in the column draft.
    column_knots : int, default 1024
        Most knots of a number's quantile function: its frequent values, and the rows between two knots.
    column_rows_per_knot : int, default 5
        Rows that a value must have to be told exactly, and that lie between two knots at least.
    column_batch_size : int, default 512
        Records of a step of the column draft.
    column_learning_rate, column_weight_decay, column_max_grad_norm : float, default 2e-3, 0.02, 1.0
        Of its steps.
    column_ramp_steps : int, default 50
        Steps in which its learning rate rises.
    column_ema_decay : float, default 0.99
        Of its averaged weights, which are judged and kept: they stand for a learning rate that falls.
    column_min_steps, column_max_epochs : int, default 100, 400
        It trains so many steps at least, and passes over a table at most.
    column_evaluation_interval, column_evaluation_records : int, default 50, 1000
        Steps between its evaluations, at most, and the noisy records of one, at least.
    min_column_evaluation_interval : int, default 10
        Steps between them, at least, for tables of so few rows that an evaluation costs more than a pass.
    column_patience : int, default 5
        It stops after so many evaluations in a row that are no better than the best.
    max_candidate_share : float, default 0.25
        Share of the decoder's vocabulary up to which the tokens of the training records, with sampled ones, stand for
        all of it: with more, the whole softmax costs as little.
    denoiser_evaluation_batch_size : int, default 1024
        Noisy latents that are evaluated together.
    min_shuffled_to_own : float, default 1.2
        A fit warns if a record costs less than so many times the nats from another's latent than from its own.

    Raises
    ------
    ArgumentError
        If a share does not lie above 0 and at most at 1, a number is not positive, or bounds are out of order.
    """

    validation_share: float = 0.1
    max_validation_records: int = 1000
    batch_size: int = 16
    slow_batch_size: int = 8
    autoencoder_share: float = 0.85
    autoencoder_share_with_draft: float = 0.75
    denoiser_share: float = 0.12
    column_draft_share: float = 0.4
    floor_share: float = 0.15
    floor_steps: int = 400
    min_floor_steps: int = 10
    floor_evaluations: int = 4
    floor_warm_up_share: float = 0.4
    min_writer_gain: float = 0.25
    noise_floor: float = 0.5
    text_latent_size: int = 32
    denoiser_passes: int = 130
    min_denoiser_steps: int = 1500
    max_denoiser_steps: int = 8000
    min_autoencoder_share: float = 0.5
    min_denoiser_seconds: float = 20.0
    max_evaluation_records: int = 128
    min_evaluation_interval: int = 20
    max_evaluation_interval: int = 200
    evaluations_per_checkpoint: int = 3
    min_denoiser_interval: int = 100
    max_denoiser_interval: int = 250
    denoiser_evaluations: int = 40
    encoding_batch_size: int = 64
    max_embedded_columns: int = 128
    min_rows_to_warm_up: int = 2000
    beta_after_warm_up: float = 0.05
    beta_fall_after_warm_up: float = 0.1
    warm_up_share: float = 0.08
    warm_up_batch_size: int = 256
    warm_up_learning_rate: float = 2e-3
    warm_up_ramp_steps: int = 50
    warm_up_beta: float = 0.1
    warm_up_max_epochs: int = 400
    warm_up_max_grad_norm: float = 5.0
    warm_up_evaluation_interval: int = 50
    warm_up_evaluation_records: int = 256
    draft_places: int = 256
    draft_tokens: int = 512
    draft_records: int = 10_000
    draft_width_share: float = 0.999
    draft_ambiguous_share: float = 0.01
    column_bins: int = 128
    column_knots: int = 1024
    column_rows_per_knot: int = 5
    column_batch_size: int = 512
    column_learning_rate: float = 2e-3
    column_weight_decay: float = 0.02
    column_max_grad_norm: float = 1.0
    column_ramp_steps: int = 50
    column_ema_decay: float = 0.99
    column_min_steps: int = 100
    column_max_epochs: int = 400
    column_evaluation_interval: int = 50
    column_evaluation_records: int = 1000
    min_column_evaluation_interval: int = 10
    column_patience: int = 5
    max_candidate_share: float = 0.25
    denoiser_evaluation_batch_size: int = 1024
    min_shuffled_to_own: float = 1.2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ArgumentError(f"policy: {field.name} must be a number above 0, not {value!r}.")
            if isinstance(field.default, int) and value != int(value):
                raise ArgumentError(f"policy: {field.name} must be a whole number, not {value!r}.")
            if "share" in field.name and value > 1:
                raise ArgumentError(f"policy: {field.name} is a share, at most 1, not {value!r}.")
        for low, high in (
            ("min_evaluation_interval", "max_evaluation_interval"),
            ("min_denoiser_interval", "max_denoiser_interval"),
            ("min_denoiser_steps", "max_denoiser_steps"),
            ("min_floor_steps", "floor_steps"),
            ("min_column_evaluation_interval", "column_evaluation_interval"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ArgumentError(f"policy: {low} must not be above {high}.")

    def changed(self, changes: Policy | Mapping[str, Any] | None) -> Policy:
        """Another policy, or this one with some fields replaced.

        Raises
        ------
        ArgumentError
            If there is no such field, or its value is out of range; the message names it.
        """
        if changes is None or isinstance(changes, Policy):
            return changes or self
        names = {field.name for field in dataclasses.fields(self)}
        if unknown := [name for name in changes if name not in names]:
            raise ArgumentError(f"policy: there is no {unknown[0]!r}; its names are {', '.join(sorted(names))}.")
        return dataclasses.replace(self, **changes)
