"""DenoiserTrainer: what it learns, when it stops, what it keeps."""

import itertools
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import KarrasVeScheduler

from difflm.modeling_denoiser import DiffLMDenoiser
from difflm.pipelines.latent_sampling import sample_latents
from difflm.training import denoiser_trainer
from difflm.training.denoiser_config import DenoiserTrainingArguments
from difflm.training.denoiser_trainer import DenoiserTrainer
from difflm.training.latents import LatentDataset
from difflm.training.noisy_latents import NoisyLatentSampler
from difflm.training.seeds import seeded_generator


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def make_arguments(**overrides: Any) -> DenoiserTrainingArguments:
    defaults = {
        "max_steps": 8,
        "batch_size": 16,
        "eval_steps": 4,
        "validation_size": 64,
        "learning_rate": 1e-3,
        "show_progress": False,
        "device": "cpu",
    }
    return DenoiserTrainingArguments(**(defaults | overrides))


def make_denoiser(seed: int = 0, **overrides: Any) -> DiffLMDenoiser:
    torch.manual_seed(seed)
    return DiffLMDenoiser(**({"latent_size": 4, "hidden_size": 32, "num_blocks": 2} | overrides))


def make_latents(count: int = 60, **overrides: Any) -> LatentDataset:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(count, 4, generator=generator) * torch.arange(1.0, 5.0) + 2
    return LatentDataset(mean=mean, log_variance=torch.full((count, 4), -2.0), **overrides)


def two_modes(count: int) -> LatentDataset:
    """A mixture of two narrow Gaussians, 30 % and 70 %, with the mode as the label."""
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(count, 1, generator=generator) < 0.7).long()
    centers = torch.tensor([[-4.0, 1.0, 0.0, 2.0], [4.0, 3.0, 0.0, 2.0]])
    mean = centers[labels[:, 0]] + 0.3 * torch.randn(count, 4, generator=generator)
    return LatentDataset(mean=mean, labels=labels, class_sizes=[2], class_names=["mode"])


def test_a_short_training_recovers_both_modes_and_their_labels() -> None:
    denoiser = make_denoiser(hidden_size=64, class_sizes=[2], class_names=["mode"])
    args = make_arguments(max_steps=400, batch_size=128, eval_steps=100, validation_size=512, learning_rate=3e-3)
    trainer = DenoiserTrainer(denoiser, args, two_modes(600))
    linear_loss = trainer.evaluate()  # An untrained network is the best linear denoiser.
    assert linear_loss == pytest.approx(1.0, abs=0.1)
    result = trainer.train()
    assert result.stop_reason == "max_steps" and result.steps == 400
    # Three of the four axes are pure Gaussian noise, for which the linear denoiser cannot be beaten.
    assert result.best_validation_loss < 0.88 * linear_loss

    scheduler = KarrasVeScheduler(s_churn=0, sigma_min=0.002, sigma_max=80)
    generators = [torch.Generator().manual_seed(seed) for seed in range(500)]
    samples = sample_latents(denoiser, scheduler, 500, generators=generators, num_inference_steps=30)
    first = samples[:, 0]
    assert float((first.abs() - 4).abs().median()) < 0.6
    assert abs(float((first > 0).float().mean()) - 0.7) < 0.12

    labels = torch.arange(2).repeat(50)[:, None]
    generators = [torch.Generator().manual_seed(seed) for seed in range(100)]
    samples = sample_latents(denoiser, scheduler, 100, generators=generators, class_labels=labels, guidance_scale=1.5)
    assert float(((samples[:, 0] > 0) == (labels[:, 0] == 1)).float().mean()) > 0.97


def test_every_parameter_moves_and_the_statistics_are_those_of_the_training_latents() -> None:
    denoiser = make_denoiser(class_sizes=[3])
    labels = torch.arange(60)[:, None] % 3
    before = {name: value.detach().clone() for name, value in denoiser.named_parameters()}
    trainer = DenoiserTrainer(denoiser, make_arguments(), make_latents(labels=labels, class_sizes=[3]))
    trainer.train()
    for name, value in denoiser.named_parameters():
        assert not torch.equal(value, before[name]), name
    data = trainer.train_data
    assert data.log_variance is not None
    torch.testing.assert_close(denoiser.scaler.latent_mean, data.mean.mean(0))
    covariance = torch.cov(data.mean.T, correction=0) + data.log_variance.exp().mean(0).diag()
    axes = denoiser.scaler.latent_axes
    scaled = axes * denoiser.scaler.latent_std
    torch.testing.assert_close(scaled @ scaled.T, covariance)
    torch.testing.assert_close(axes.T @ axes, torch.eye(4), atol=1e-5, rtol=0)


def test_latents_that_vary_together_are_standardized_along_their_axes() -> None:
    factor = torch.tensor([[1.0, 0.0], [1.0, 0.05], [2.0, 0.0], [0.0, 0.05]])
    data = LatentDataset(mean=torch.randn(5000, 2) @ factor.T + 1e-4 * torch.randn(5000, 4))
    denoiser = make_denoiser()
    denoiser.scaler.set_latent_statistics(*data.statistics(sample_posterior=False))
    whitened = denoiser.standardize(data.mean)
    # Two of the four axes hold rounding errors alone: their deviation is a thousandth of the largest, no less.
    assert float(denoiser.scaler.latent_std.min()) == pytest.approx(1e-3 * float(denoiser.scaler.latent_std.max()))
    torch.testing.assert_close(torch.cov(whitened.T)[2:, 2:], torch.eye(2), atol=1e-2, rtol=0)
    assert float(whitened[:, :2].std()) < 0.2
    torch.testing.assert_close(denoiser.unstandardize(whitened), data.mean, atol=1e-5, rtol=0)


def test_means_only_ignores_the_posterior_variance() -> None:
    data = make_latents()
    denoiser = make_denoiser()
    trainer = DenoiserTrainer(denoiser, make_arguments(sample_posterior=False), data)
    whitened = denoiser.standardize(trainer.train_data.mean)
    torch.testing.assert_close(torch.cov(whitened.T, correction=0), torch.eye(4), atol=1e-4, rtol=0)
    batch = trainer.sampler.training_batch(trainer.train_data, 0)
    rows = trainer.sampler.training_rows(len(trainer.train_data), 0)
    torch.testing.assert_close(batch.latents, denoiser.standardize(trainer.train_data.mean[rows]))

    sampling = DenoiserTrainer(make_denoiser(), make_arguments(), data)
    batch = sampling.sampler.training_batch(sampling.train_data, 0)
    drawn = sampling.denoiser.unstandardize(batch.latents)
    residual = drawn - sampling.train_data.mean[rows]
    assert abs(float(residual.std()) / math.exp(-1) - 1) < 0.3


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_products_are_bf16_where_the_hardware_has_them(
    monkeypatch: pytest.MonkeyPatch, fast: bool, asked: bool
) -> None:
    monkeypatch.setattr(denoiser_trainer, "multiplies_bf16", lambda device: fast)
    denoiser = make_denoiser()
    torch.nn.init.normal_(denoiser.network.output_projection.weight)
    dtypes = set()
    denoiser.network.output_projection.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer = DenoiserTrainer(denoiser, make_arguments(bf16=asked), make_latents())
    loss = trainer.evaluate()
    assert dtypes == {torch.bfloat16 if fast and asked else torch.float32}
    exact = DenoiserTrainer(denoiser, make_arguments(bf16=False), make_latents()).evaluate()
    assert loss == pytest.approx(exact, rel=1e-2)
    trainer.train()
    assert {value.dtype for value in denoiser.parameters()} == {torch.float32}


def test_a_constant_dimension_does_not_blow_up() -> None:
    data = make_latents()
    data.mean[:, 2] = 5.0
    data.log_variance = None
    denoiser = make_denoiser()
    result = DenoiserTrainer(denoiser, make_arguments(), data).train()
    assert math.isfinite(result.best_validation_loss)
    assert float(denoiser.standardize(data.mean)[:, 0].abs().max()) < 1e-3  # the axis that varies least


def test_with_a_noise_floor_a_short_training_beats_the_linear_denoiser_and_stops_by_itself() -> None:
    data = two_modes(600)
    data.log_variance = torch.full_like(data.mean, 2 * math.log(0.5))
    denoiser = make_denoiser(hidden_size=64, noise_floor=0.5)
    args = make_arguments(
        max_steps=5000, batch_size=128, eval_steps=50, validation_size=512, early_stopping_patience=2
    )
    trainer = DenoiserTrainer(denoiser, args, data)
    torch.testing.assert_close(denoiser.scaler.latent_mean, trainer.train_data.mean.mean(0))
    torch.testing.assert_close(denoiser.scaler.latent_scale, torch.ones(4))
    torch.testing.assert_close(denoiser.sigma_data, trainer.train_data.mean.std(0, correction=0))
    linear_loss = trainer.evaluate()
    assert linear_loss == pytest.approx(1.0, abs=0.1)
    result = trainer.train()
    assert result.stop_reason == "early_stopping" and result.steps < 5000
    assert result.best_validation_loss < 0.88 * linear_loss


def test_with_a_noise_floor_a_constant_dimension_stays_what_it_is() -> None:
    data = make_latents()
    data.mean[:, 2] = 5.0
    denoiser = make_denoiser(noise_floor=0.5)
    result = DenoiserTrainer(denoiser, make_arguments(), data).train()
    assert math.isfinite(result.best_validation_loss)
    denoised = denoiser.denoise(0.5 * torch.randn(7, 4), 0.5)
    torch.testing.assert_close(denoiser.unstandardize(denoised)[:, 2], torch.full((7,), 5.0), atol=1e-2, rtol=0)


def test_gradients_are_clipped_to_their_norm() -> None:
    """Gradients stay until the next step: those of the last one are seen here."""

    def norm(limit: float) -> float:
        trainer = DenoiserTrainer(make_denoiser(), make_arguments(max_steps=1, max_grad_norm=limit), make_latents())
        trainer.train()
        return float(torch.stack([value.grad.norm() for value in trainer.parameters.values()]).norm())

    free = norm(1e9)
    assert norm(free / 10) == pytest.approx(free / 10, rel=1e-3)
    assert norm(free * 10) == pytest.approx(free)


def test_dropout_is_new_in_each_step_and_the_callers_randomness_untouched() -> None:
    def run(denoiser: DiffLMDenoiser) -> list[torch.Tensor]:
        masks: list[torch.Tensor] = []
        layer = next(module for module in denoiser.modules() if isinstance(module, torch.nn.Dropout))
        layer.register_forward_hook(lambda module, args, output: masks.append(output == 0))
        before = torch.get_rng_state()
        DenoiserTrainer(denoiser, make_arguments(max_steps=2), make_latents()).train()
        assert torch.equal(torch.get_rng_state(), before)
        return masks[:2]

    # One in eval mode, as a loaded denoiser is, is trained as one in training mode.
    first, second = run(make_denoiser(dropout=0.5).eval())
    assert 0.3 < float(first.float().mean()) < 0.7
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    denoiser = make_denoiser(dropout=0.5)
    torch.manual_seed(8)
    assert all(map(torch.equal, run(denoiser), (first, second)))
    assert not denoiser.training


def test_losses_are_averaged_over_the_steps_since_the_last_evaluation() -> None:
    def history(eval_steps: int) -> list[dict[str, Any]]:
        return DenoiserTrainer(make_denoiser(), make_arguments(eval_steps=eval_steps), make_latents()).train().history

    single, double = history(1), history(2)
    losses = [entry["train_loss"] for entry in single]
    assert [entry["step"] for entry in double] == [2, 4, 6, 8]  # the last step is evaluated once
    expected = [(losses[2 * place] + losses[2 * place + 1]) / 2 for place in range(4)]
    assert [entry["train_loss"] for entry in double] == pytest.approx(expected)


# Resume


def run_to_the_end(tmp_path: Path, name: str, **overrides: Any) -> tuple[DenoiserTrainer, Any]:
    arguments = {
        "output_dir": str(tmp_path / name),
        "checkpoint_steps": 4,
        "checkpoint_limit": 5,
        "eval_steps": 3,
    } | overrides
    denoiser = make_denoiser(dropout=0.2, class_sizes=[3])
    data = make_latents(labels=torch.arange(60)[:, None] % 3, class_sizes=[3])
    ticks = iter(range(10_000))
    trainer = DenoiserTrainer(denoiser, make_arguments(**arguments), data, clock=lambda: float(next(ticks)))
    return trainer, trainer.train()


def test_four_steps_resume_four_steps_equals_eight(tmp_path: Path) -> None:
    whole, whole_result = run_to_the_end(tmp_path, "whole")
    torch.manual_seed(123)  # Whatever the global generator holds, the steps are the same.
    resumed, resumed_result = run_to_the_end(
        tmp_path, "resumed", resume=str(tmp_path / "whole" / "checkpoint-00000004")
    )
    assert resumed_result.steps == whole_result.steps == 8
    drop_time = [{**entry, "seconds": 0} for entry in resumed_result.history]
    assert drop_time == [{**entry, "seconds": 0} for entry in whole_result.history]
    assert [entry["step"] for entry in drop_time] == [3, 6, 8]
    for name, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, resumed.denoiser.state_dict()[name]), name
    for one, other in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.parameters.values(), resumed.parameters.values(), strict=True):
        assert torch.equal(whole.optimizer.state[one]["exp_avg_sq"], resumed.optimizer.state[other]["exp_avg_sq"])


def test_checkpoints_are_safetensors_and_json_whole_and_limited(tmp_path: Path) -> None:
    _, _ = run_to_the_end(tmp_path, "run", checkpoint_steps=2, checkpoint_limit=2)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-00000006", "checkpoint-00000008"]
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"training_state.safetensors", "training_state.json"}
    document = json.loads((folder / "checkpoint-00000008" / "training_state.json").read_text(encoding="utf-8"))
    assert document["state"]["step"] == 8


def test_auto_resume_starts_anew_without_checkpoints_and_else_takes_the_latest(tmp_path: Path) -> None:
    _, first = run_to_the_end(tmp_path, "run", resume="auto")
    assert first.steps == 8
    (tmp_path / "run" / ".checkpoint-00000099.partial").mkdir()  # Half written when the power went.
    (tmp_path / "run" / "checkpoint-00000098").mkdir()
    _, second = run_to_the_end(tmp_path, "run", resume="auto", max_steps=11)
    assert second.steps == 11
    assert second.history[: len(first.history)] == first.history


def test_resuming_with_other_latents_or_another_size_is_refused(tmp_path: Path) -> None:
    run_to_the_end(tmp_path, "run")
    checkpoint = tmp_path / "run" / "checkpoint-00000008"
    labels = torch.arange(60)[:, None] % 3
    other = make_latents(labels=labels, class_sizes=[3])
    other.mean[0, 0] += 1
    with pytest.raises(ValueError, match="other latents"):
        DenoiserTrainer(make_denoiser(class_sizes=[3]), make_arguments(resume=str(checkpoint)), other).train()
    same = make_latents(labels=labels, class_sizes=[3])
    with pytest.raises(ValueError, match="another seed"):
        DenoiserTrainer(
            make_denoiser(class_sizes=[3]), make_arguments(resume=str(checkpoint), seed=1), same, same
        ).train()
    wide = make_denoiser(class_sizes=[3], hidden_size=64)
    with pytest.raises(ValueError, match="another size"):
        DenoiserTrainer(wide, make_arguments(resume=str(checkpoint)), same).train()
    with pytest.raises(ValueError, match="not a checkpoint"):
        DenoiserTrainer(make_denoiser(class_sizes=[3]), make_arguments(resume=str(tmp_path)), same).train()


def test_interrupt_finishes_the_step_keeps_a_checkpoint_and_resumes_exactly(tmp_path: Path) -> None:
    _, whole = run_to_the_end(tmp_path, "whole", checkpoint_steps=0)
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls == 6:
            signal.raise_signal(signal.SIGINT)
        return 0.0

    data = make_latents(labels=torch.arange(60)[:, None] % 3, class_sizes=[3])
    args = make_arguments(output_dir=str(tmp_path / "cut"), checkpoint_steps=0, eval_steps=3)
    handler = signal.getsignal(signal.SIGINT)
    denoiser = make_denoiser(dropout=0.2, class_sizes=[3])
    with pytest.raises(KeyboardInterrupt):
        DenoiserTrainer(denoiser, args, data, clock=clock).train()
    assert signal.getsignal(signal.SIGINT) is handler
    (checkpoint,) = (tmp_path / "cut").iterdir()
    assert 0 < int(checkpoint.name.rsplit("-", 1)[1]) < 8

    _, resumed = run_to_the_end(tmp_path, "cut", checkpoint_steps=0, resume="auto")
    assert [e["validation_loss"] for e in resumed.history] == [e["validation_loss"] for e in whole.history]


def test_an_unwritable_checkpoint_names_the_folder_and_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = run_to_the_end(tmp_path, "run")

    def no_space(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difflm.training.denoiser_trainer.save_file", no_space)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(OSError, match=r"checkpoint-99.*No space left"):
        trainer.save_checkpoint(tmp_path / "run" / "checkpoint-99")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


# Budgets and stopping


def ticking(seconds: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += seconds


def test_the_time_budget_ends_training_and_drives_the_learning_rate() -> None:
    clock = ticking(1.0)
    args = make_arguments(max_steps=1000, max_seconds=40.0, eval_steps=5, warmup_ratio=0.1)
    result = DenoiserTrainer(make_denoiser(), args, make_latents(), clock=lambda: next(clock)).train()
    assert result.stop_reason == "max_seconds"
    assert result.steps < 50 and 40 <= result.seconds < 45
    rates = [entry["learning_rate"] for entry in result.history]
    assert rates[-1] < 0.05 * max(rates)  # The cosine ran to its end in time, not in steps.
    assert max(rates) > 0.7 * args.learning_rate


def test_without_a_step_limit_time_alone_counts() -> None:
    clock = ticking(0.5)
    args = make_arguments(max_steps=None, max_seconds=5.0)
    result = DenoiserTrainer(make_denoiser(), args, make_latents(), clock=lambda: next(clock)).train()
    assert result.stop_reason == "max_seconds" and result.steps >= 5


def test_a_timed_run_begins_gently_and_a_step_beyond_its_time_ends_at_the_floor() -> None:
    now = itertools.chain([0.0] * 8, itertools.repeat(100.0))
    args = make_arguments(max_steps=None, max_seconds=10.0, eval_steps=1, warmup_ratio=0.1)
    history = DenoiserTrainer(make_denoiser(), args, make_latents(), clock=lambda: next(now)).train().history
    assert history[0]["learning_rate"] == pytest.approx(0.01 * args.learning_rate)
    late = DenoiserTrainer(
        make_denoiser(), make_arguments(max_seconds=10.0), make_latents(), clock=ticking(20.0).__next__
    )
    # Twice the time: a cosine that went on would be at its peak again.
    floor = args.learning_rate * args.final_learning_rate_ratio
    assert late.train().history[-1]["learning_rate"] == pytest.approx(floor)


def test_without_a_warm_up_training_begins_at_the_peak() -> None:
    args = make_arguments(warmup_ratio=0.0, eval_steps=1)
    result = DenoiserTrainer(make_denoiser(), args, make_latents()).train()
    assert result.history[0]["learning_rate"] == pytest.approx(args.learning_rate)


def test_learning_rate_warms_up_then_falls_to_its_floor() -> None:
    args = make_arguments(max_steps=100, warmup_ratio=0.1, learning_rate=1e-2, final_learning_rate_ratio=0.1)
    trainer = DenoiserTrainer(make_denoiser(), args, make_latents())
    rates = []
    for step in range(101):
        trainer.state.step = step
        rates.append(trainer._learning_rate())
    assert rates[0] == pytest.approx(1e-3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(5.5e-3)
    assert rates[100] == pytest.approx(1e-3)


def test_early_stopping_keeps_the_best_averaged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    args = make_arguments(max_steps=100, eval_steps=2, early_stopping_patience=3, ema_decay=0.5)
    trainer = DenoiserTrainer(make_denoiser(), args, make_latents())
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.55, 0.1])
    averages = []

    def evaluate() -> float:
        averages.append([value.clone() for value in trainer.ema.shadow_params])
        return next(losses)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    result = trainer.train()
    assert (result.stop_reason, result.steps) == ("early_stopping", 10)
    assert (result.best_step, result.best_validation_loss) == (4, 0.5)
    for parameter, best, last in zip(trainer.parameters.values(), averages[1], averages[-1], strict=True):
        assert torch.equal(parameter, best)
        assert not torch.equal(parameter, last)


def test_evaluation_is_repeatable_and_leaves_training_weights_alone() -> None:
    trainer = DenoiserTrainer(make_denoiser(dropout=0.3), make_arguments(ema_decay=0.9), make_latents())
    for step in range(5):
        trainer.state.step = step
        trainer._training_step(1e-2)
    trainer.denoiser.train()
    before = [value.detach().clone() for value in trainer.parameters.values()]
    torch.manual_seed(5)
    first = trainer.evaluate()
    torch.manual_seed(6)
    assert trainer.evaluate() == first
    assert trainer.denoiser.training
    for value, old in zip(trainer.parameters.values(), before, strict=True):
        assert torch.equal(value, old)
    # It is the averaged weights that are judged.
    for average in trainer.ema.shadow_params:
        average.add_(0.3)
    assert trainer.evaluate() != first


def test_a_diverged_loss_is_reported_with_its_step() -> None:
    trainer = DenoiserTrainer(make_denoiser(), make_arguments(), make_latents())
    with torch.no_grad():
        trainer.denoiser.network.output_projection.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"step 1: lower learning_rate"):
        trainer.train()


# Batches


def make_sampler(**overrides: Any) -> NoisyLatentSampler:
    denoiser = make_denoiser(class_sizes=[5, 7, 9])
    return NoisyLatentSampler(denoiser, make_arguments(**overrides), torch.device("cpu"))


def test_rows_are_shuffled_passes_without_gaps() -> None:
    sampler = make_sampler(batch_size=7)
    stream = torch.cat([sampler.training_rows(20, step) for step in range(20)])
    passes = stream.reshape(7, 20)
    for one in passes:
        assert sorted(one.tolist()) == list(range(20))
    assert passes[0].tolist() != passes[1].tolist() != list(range(20))


def test_a_batch_may_be_larger_than_the_data() -> None:
    counts = torch.bincount(make_sampler(batch_size=25).training_rows(10, 0), minlength=10)
    assert counts.min() >= 2 and counts.sum() == 25


def test_labels_are_dropped_all_or_in_any_subset() -> None:
    sampler = make_sampler()
    labels = torch.zeros(20_000, 3, dtype=torch.long)
    dropped = sampler.drop_labels(labels, seeded_generator(0, "test", 0)) != 0
    # Half lose all; of the rest, a keep probability u ~ U(0, 1) drops all three with probability E[(1 - u)^3] = 1/4.
    assert float(dropped.all(1).float().mean()) == pytest.approx(0.5 + 0.5 / 4, abs=0.015)
    assert float((~dropped).all(1).float().mean()) == pytest.approx(0.5 / 4, abs=0.015)
    assert len(torch.unique(dropped, dim=0)) == 8
    kept = sampler.drop_labels(labels, seeded_generator(0, "test", 0))
    assert kept[dropped.all(1)][0].tolist() == [5, 7, 9]
    assert torch.equal(make_sampler(label_dropout=0.0).drop_labels(labels, seeded_generator(0, "test", 0)), labels)


def test_validation_noise_is_stratified_and_covers_every_row() -> None:
    sampler = make_sampler(validation_size=400)
    data = make_latents(40)
    examples = sampler.validation_examples(data)
    assert len(examples) == 400
    ln_sigma = examples.sigma.log()
    assert float(ln_sigma.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(ln_sigma.std()) == pytest.approx(1.2, abs=0.02)
    again = sampler.validation_examples(data)
    assert torch.equal(examples.noise, again.noise) and torch.equal(examples.sigma, again.sigma)


def test_split_holds_out_the_fraction_and_given_validation_latents_are_used() -> None:
    trainer = DenoiserTrainer(make_denoiser(), make_arguments(), make_latents(60))
    assert (len(trainer.train_data), len(trainer.validation_data)) == (54, 6)
    rows = torch.cat([trainer.train_data.mean, trainer.validation_data.mean])
    assert len(torch.unique(rows, dim=0)) == 60
    given = DenoiserTrainer(make_denoiser(), make_arguments(), make_latents(60), make_latents(5))
    assert (len(given.train_data), len(given.validation_data)) == (60, 5)
    tiny = DenoiserTrainer(make_denoiser(), make_arguments(), make_latents(2))
    assert (len(tiny.train_data), len(tiny.validation_data)) == (1, 1)
    greedy = DenoiserTrainer(make_denoiser(), make_arguments(validation_fraction=0.9), make_latents(2))
    assert (len(greedy.train_data), len(greedy.validation_data)) == (1, 1)


# Bad input


def test_latents_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2 latents"):
        DenoiserTrainer(make_denoiser(), make_arguments(), make_latents(1))
    with pytest.raises(ValueError, match="latent_size is 6"):
        DenoiserTrainer(make_denoiser(latent_size=6), make_arguments(), make_latents())
    with pytest.raises(ValueError, match="have no labels"):
        DenoiserTrainer(make_denoiser(class_sizes=[2]), make_arguments(), make_latents())
    beyond = make_latents(labels=torch.full((60, 1), 3), class_sizes=[2])
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        DenoiserTrainer(make_denoiser(class_sizes=[2]), make_arguments(), beyond)
    with pytest.raises(ValueError, match="2 records are not finite"):
        LatentDataset(torch.tensor([[0.0], [math.nan], [math.inf]]))
    with pytest.raises(ValueError, match="log-variances must have"):
        LatentDataset(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="class_sizes"):
        LatentDataset(torch.zeros(2, 3), labels=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"integers of shape \(2, 1\)"):
        LatentDataset(torch.zeros(2, 3), labels=torch.zeros(2, 1), class_sizes=[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": None}, "max_steps or max_seconds"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"checkpoint_steps": -1}, "checkpoint_steps"),
        ({"resume": "auto"}, "output_dir"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arguments(**arguments)


# Files


def test_latents_file_roundtrip(tmp_path: Path) -> None:
    data = two_modes(10)
    data.record_digests = torch.randint(0, 256, (10, 16), dtype=torch.uint8)
    data.save(tmp_path / "latents.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["latents.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "latents.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    loaded = LatentDataset.load(tmp_path / "latents.safetensors")
    assert torch.equal(loaded.mean, data.mean) and loaded.log_variance is None
    assert loaded.labels is not None and torch.equal(loaded.labels, data.labels)
    assert (loaded.class_sizes, loaded.class_names) == ([2], ["mode"])
    assert loaded.record_digests is not None and torch.equal(loaded.record_digests, data.record_digests)
