"""Training of the autoencoder: beta really moves, resuming is exact, the figures of an evaluation are right."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, set_seed

from difflm.build_difflm import from_encoder_decoder
from difflm.modeling_difflm import DiffLMModel, locate
from difflm.pipelines.record_schema import RecordSchema
from difflm.training import autoencoder_trainer
from difflm.training.autoencoder_config import AutoencoderTrainingArguments
from difflm.training.autoencoder_trainer import AutoencoderTrainer
from difflm.training.beta_schedules import CyclicalBeta, DecreasingBeta, GeometricBeta
from difflm.training.encode_latents import encode_latents, estimated_seconds
from difflm.training.latent_warmup import warmed_up_parts
from difflm.training.policy import Policy
from difflm.training.record_dataset import RecordDataset
from difflm.training.time_budget import TimeBudget
from difflm.training.trainer_callbacks import EarlyStoppingAtFloor, TimedCheckpoints, TimeLimit


@pytest.fixture
def dataset(small_table, encoder_tokenizer, decoder_tokenizer) -> RecordDataset:
    schema = RecordSchema.infer(small_table, record_format="values")
    records = schema.to_records(small_table)
    return RecordDataset(records, schema, encoder_tokenizer, decoder_tokenizer, 1)


def build(model_folders, **kwargs) -> DiffLMModel:
    set_seed(0)
    return from_encoder_decoder(
        model_folders["encoder"],
        model_folders["decoder"],
        decoder_dtype="float32",
        latent_size=4,
        num_injection_tokens=2,
        injection_hidden_size=16,
        injection_token_size=16,
        **kwargs,
    )


def trainer(model_folders, dataset, folder, *, model=None, **kwargs) -> AutoencoderTrainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    args = AutoencoderTrainingArguments(**settings | kwargs)
    return AutoencoderTrainer(model or build(model_folders), args, dataset, dataset)


def test_resuming_takes_the_same_steps(model_folders, dataset, tmp_path):
    whole = trainer(model_folders, dataset, tmp_path / "whole")
    whole.train()
    trainer(model_folders, dataset, tmp_path / "parts").train()
    resumed = trainer(model_folders, dataset, tmp_path / "parts")
    with torch.no_grad():
        resumed.autoencoder.posterior_mean.weight.add_(1.0)  # must come from the checkpoint instead
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    for (name, value), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert whole.beta_schedule.beta == resumed.beta_schedule.beta
    assert resumed.state.global_step == 8


def test_training_lowers_the_loss_and_moves_beta_on_plateaus(model_folders, dataset, tmp_path):
    training = trainer(
        model_folders,
        dataset,
        tmp_path,
        max_steps=30,
        eval_steps=5,
        learning_rate=1e-2,
        beta_threshold=0.99,
        save_strategy="no",
    )
    training.train()
    logged = [entry for entry in training.state.log_history if "eval_reconstruction" in entry]
    assert len(logged) == 6
    assert logged[-1]["eval_reconstruction"] < logged[0]["eval_reconstruction"] - 0.5
    # With such a threshold no evaluation but the first counts as better: five halvings.
    assert training.beta_schedule.beta == pytest.approx(0.1 * 0.5**5)


def test_evaluation_figures(model_folders, dataset, tmp_path):
    training = trainer(model_folders, dataset, tmp_path)
    figures = training.evaluate()
    model = training.autoencoder.eval()
    posterior = encode_latents(model, dataset, show_progress=False)
    labels = [torch.tensor([dataset[row]["labels"]]) for row in range(len(dataset))]
    with torch.no_grad():
        own = [model.reconstruction(posterior.mean[row : row + 1], labels[row]) for row in range(len(dataset))]
        other = [
            model.reconstruction(posterior.mean[(row - 30) % 60 :][:1], labels[row]) for row in range(len(dataset))
        ]
    assert figures["eval_reconstruction"] == pytest.approx(torch.cat(own).mean().item(), rel=1e-4)
    assert figures["eval_reconstruction_shuffled"] == pytest.approx(torch.cat(other).mean().item(), rel=1e-4)
    assert figures["eval_kl"] == pytest.approx(posterior.kl().mean().item(), rel=1e-4)


def test_an_evaluation_says_what_the_draft_alone_costs(model_folders, dataset, tmp_path):
    training = trainer(model_folders, dataset, tmp_path)
    assert "eval_reconstruction_draft" not in training.evaluate()
    options = {"draft_places": [2] * 4, "draft_token_ids": [5, 9], "separator_token_ids": [7]}
    training = trainer(model_folders, dataset, tmp_path, model=build(model_folders, **options))
    # Untrained, it guesses one of its tokens, the end of the record or another, at each of its places.
    figures, places = training.evaluate(), 0
    for row in range(len(dataset)):
        fed = torch.tensor([[0, *dataset[row]["labels"][:-1]]])
        columns, since, _ = locate(fed, torch.tensor([7]))
        places += int((training.autoencoder.record_draft.places(columns, since) >= 0).sum())
    assert figures["eval_reconstruction_draft"] == pytest.approx(places / len(dataset) * math.log(4), rel=1e-5)


def test_latents_come_in_the_datasets_order(model_folders, dataset, tmp_path):
    model = trainer(model_folders, dataset, tmp_path).autoencoder.eval()
    assert dataset.lengths != sorted(dataset.lengths)
    posterior = encode_latents(model, dataset, batch_size=7, show_progress=False)
    with torch.no_grad():
        for row in range(len(dataset)):
            tokens = torch.tensor([dataset[row]["input_ids"]])
            values = dataset[row].get("feature_values")
            alone = model.encode(tokens, torch.ones_like(tokens), None if values is None else torch.tensor([values]))
            torch.testing.assert_close(posterior.mean[row : row + 1], alone.mean, atol=1e-2, rtol=0)


def test_encoding_is_timed_as_it_is_done(model_folders, dataset, tmp_path, monkeypatch):
    model = trainer(model_folders, dataset, tmp_path).autoencoder.train()
    encode, found = model.encode, []

    def noted(*args, **kwargs):
        found.append((model.training, torch.is_grad_enabled(), model.encoder_autocast))
        return encode(*args, **kwargs)

    monkeypatch.setattr(model, "encode", noted)
    monkeypatch.setattr("difflm.training.encode_latents.multiplies_bf16", lambda device: True)
    assert estimated_seconds(model, dataset) > 0
    encode_latents(model, dataset, show_progress=False)
    assert len(found) > 2 and set(found) == {(False, False, True)}
    assert model.training and not model.encoder_autocast


def test_encoder_and_new_parts_have_their_own_learning_rates(model_folders, dataset, tmp_path):
    training = trainer(model_folders, dataset, tmp_path, learning_rate=1e-2, encoder_learning_rate=1e-4)
    groups = training.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    trainable = {name: p for name, p in training.model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trainable)
    assert {rates[id(p)] for name, p in trainable.items() if name.startswith("autoencoder.encoder.")} == {1e-4}
    assert {rates[id(p)] for name, p in trainable.items() if not name.startswith("autoencoder.encoder.")} == {1e-2}


@pytest.mark.parametrize("steps", [5, 0])
def test_what_was_warmed_up_is_trained_on_gently(model_folders, dataset, tmp_path, steps):
    model = build(model_folders, num_feature_columns=4, feature_size=8)
    options = {"encoder_learning_rate": 1e-4, "latent_warmup_steps": steps}
    training = trainer(model_folders, dataset, tmp_path, model=model, **options)
    groups = training.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {
        (name.removeprefix("autoencoder.").split(".")[0], rates[id(p)])
        for name, p in training.elbo.named_parameters()
        if p.requires_grad
    }
    gently = 1e-4 if steps else 1e-3
    assert {pair for pair in found if pair[0] in warmed_up_parts(model)} == {
        ("column_features", gently),
        ("column_decoder", gently),
        ("posterior_mean", gently),
        ("posterior_log_variance", gently),
    }
    assert {("encoder", 1e-4), ("injector", 1e-3), ("posterior_norm", 1e-3)} <= found


def test_slow_steps_leave_checkpoints_too(model_folders, dataset, tmp_path):
    def checkpoints(folder, **settings) -> list[str]:
        trainer(model_folders, dataset, folder, max_steps=3, save_steps=1000, **settings).train()
        return sorted(path.name for path in folder.glob("checkpoint-*"))

    assert checkpoints(tmp_path / "hurried", save_minutes=1e-9) == ["checkpoint-2", "checkpoint-3"]  # the last two
    assert checkpoints(tmp_path / "calm") == ["checkpoint-3"]  # the last step's, of any training
    assert checkpoints(tmp_path / "none", save_minutes=1e-9, save_strategy="no") == []
    with pytest.raises(ValueError, match="save_minutes must not be negative"):
        trainer(model_folders, dataset, tmp_path, save_minutes=-1)


def test_minutes_count_from_the_last_checkpoint():
    callback, control = TimedCheckpoints(minutes=10), TrainerControl()
    callback.last -= 599
    callback.on_step_end(None, TrainerState(), control)
    assert not control.should_save
    callback.last -= 2
    callback.on_step_end(None, TrainerState(), control)
    assert control.should_save
    callback.on_save(None, TrainerState(), control)
    control.should_save = False
    callback.on_step_end(None, TrainerState(), control)
    assert not control.should_save


def test_latents_are_warmed_up_once_and_within_the_time(model_folders, dataset, tmp_path, monkeypatch):
    calls, clock = [], [1000.0]

    def warm_up(objective, values, labels, held_out, **options):
        assert objective.autoencoder.column_features is not None
        assert held_out[1] == [dataset.token_ids(record) for record in dataset.records]
        assert torch.equal(held_out[0].nan_to_num(), dataset.feature_values().nan_to_num())
        calls.append((values, labels, options))
        clock[0] += 30

    monkeypatch.setattr(autoencoder_trainer, "warm_up_latents", warm_up)
    begin = TimeLimit.on_train_begin
    monkeypatch.setattr(Trainer, "train", lambda self, resume=None: begin(self.time_limit, None, TrainerState(), None))
    shares = []
    draft = {
        "num_embedded_columns": 4,
        "separator_token_ids": [14],
        "draft_places": [2] * 4,
        "draft_token_ids": [5, 9],
    }
    for resumed, columns, more in ((None, 4, {}), ("a checkpoint", 4, {}), (None, 0, {}), (None, 4, draft)):
        model = build(model_folders, num_feature_columns=columns, feature_size=8, **more)
        options = {"max_minutes": 10.0, "latent_warmup_steps": 7, "seed": 3}
        training = trainer(model_folders, dataset, tmp_path, model=model, **options)
        training.budget._clock = lambda: clock[0]
        training.train(resumed)
        shares.append(training.time_limit.share_used)
    assert shares == pytest.approx([0.05, 0.0, 0.0, 0.05])
    assert [labels is None for _, labels, _ in calls] == [True, False]
    assert calls[1][1](3) == dataset.token_ids(dataset.records[3])
    for values, _, options in calls:
        assert torch.equal(values.isnan(), dataset.feature_values().isnan())
        assert options.pop("policy") == Policy()
        assert options == {"steps": 7, "max_seconds": 48.0, "seed": 3, "show_progress": False}


def test_a_time_budget_ends_training(model_folders, dataset, tmp_path, monkeypatch):
    training = trainer(model_folders, dataset, tmp_path, max_steps=1000, max_minutes=1.0, save_strategy="no")
    monkeypatch.setattr(TimeBudget, "share", property(lambda self: (training.state.global_step + 1) / 3))
    training.train()
    assert training.state.global_step == 3


class TestBetaSchedules:
    def evaluate(self, schedule, *losses):
        for loss in losses:
            schedule.on_evaluate(None, None, None, metrics={"eval_reconstruction": loss})
        return schedule.beta

    def test_decreasing_waits_for_a_plateau(self):
        schedule = DecreasingBeta(0.1, minimum=0.001, factor=0.1, patience=2)
        assert self.evaluate(schedule, 9.0, 8.0, 8.0) == 0.1
        assert self.evaluate(schedule, 8.5) == pytest.approx(0.01)
        assert self.evaluate(schedule, 7.0, 7.0, 7.0) == pytest.approx(0.001)
        assert self.evaluate(schedule, *[9.0] * 10) == 0.001

    def test_a_small_improvement_is_a_plateau_too(self):
        schedule = DecreasingBeta(0.1, factor=0.5, threshold=0.1)
        assert self.evaluate(schedule, 10.0, 8.9) == 0.1
        assert self.evaluate(schedule, 8.1) == pytest.approx(0.05)  # compared with the best that counted
        assert self.evaluate(schedule, 8.0) == pytest.approx(0.05)

    def test_decreasing_ignores_other_evaluations_and_bad_factors(self):
        schedule = DecreasingBeta()
        schedule.on_evaluate(None, None, None, metrics={})
        assert math.isinf(schedule.best)
        for factor in (0.0, 1.0, 1.5):
            with pytest.raises(ValueError, match="beta_factor"):
                DecreasingBeta(factor=factor)

    def test_state_survives_json(self):
        import json

        schedule = DecreasingBeta()
        state = json.loads(json.dumps(schedule.state()))
        copy = DecreasingBeta(**state["args"])
        copy.best = state["attributes"]["best"]
        assert math.isinf(copy.best)
        assert self.evaluate(copy, 3.0) == self.evaluate(schedule, 3.0)

    def test_cyclical_rises_over_half_a_cycle(self):
        schedule = CyclicalBeta(0.2, num_cycles=2)
        betas = []
        for step in range(0, 100, 5):
            betas.append(schedule.advance(step / 100))
        assert betas[0] == 0.0
        assert betas[5] == pytest.approx(0.2)
        assert betas[10] == 0.0
        assert max(betas) == pytest.approx(0.2)

    def test_geometric_reaches_its_floor_in_time_and_never_rises(self):
        schedule = GeometricBeta(0.1, 0.001, anneal_share=0.5)
        assert [schedule.advance(share) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.1, 0.01, 0.001, 0.001])
        state = schedule.state()
        resumed = GeometricBeta(**state["args"])
        resumed.beta = state["attributes"]["beta"]
        assert resumed.advance(0.0) == pytest.approx(0.001)
        assert GeometricBeta(0.1, 0.1, anneal_share=1.0).advance(0.5) == pytest.approx(0.1)
        for minimum in (0.0, 0.2):
            with pytest.raises(ValueError, match="beta_minimum"):
                GeometricBeta(0.1, minimum)
        for share in (0.0, 1.1):
            with pytest.raises(ValueError, match="beta_anneal_share"):
                GeometricBeta(anneal_share=share)

    def test_unknown_schedule(self, tmp_path):
        with pytest.raises(ValueError, match="beta_schedule='up'"):
            AutoencoderTrainingArguments(output_dir=str(tmp_path), beta_schedule="up")


def test_early_stopping_counts_only_at_the_floor():
    stopping = EarlyStoppingAtFloor(patience=2)
    args = SimpleNamespace(beta_schedule="decreasing", beta_minimum=0.001)
    control = SimpleNamespace(should_training_stop=False)

    def evaluate(loss, beta):
        state = SimpleNamespace(log_history=[{"beta": beta}])
        stopping.on_evaluate(args, state, control, metrics={"eval_reconstruction": loss})
        return control.should_training_stop

    assert not any(evaluate(5.0, 0.1) for _ in range(5))
    assert not evaluate(5.0, 0.001)
    assert evaluate(5.0, 0.001)
    # The other schedules do not wait for plateaus: a falling beta is no excuse.
    args.beta_schedule, control.should_training_stop = "geometric", False
    assert not evaluate(4.0, 0.1) and not evaluate(4.5, 0.05)
    assert evaluate(4.1, 0.02)


def test_the_best_weights_are_kept(model_folders, dataset, tmp_path, monkeypatch):
    training = trainer(model_folders, dataset, tmp_path, eval_steps=2)
    figures = {2: 9.0, 4: 5.0, 6: 7.0, 8: 8.0}
    seen = {}

    def reconstruction(latents, labels):
        seen[training.state.global_step] = training.autoencoder.posterior_mean.weight.detach().clone()
        return torch.full((len(labels),), figures[training.state.global_step])

    original = training.autoencoder.reconstruction
    monkeypatch.setattr(
        training.autoencoder,
        "reconstruction",
        lambda *args: original(*args) if training.autoencoder.training else reconstruction(*args),
    )
    training.train()
    assert training.keep_best()["eval_reconstruction"] == 5.0
    assert sorted(seen) == [2, 4, 6, 8] and not torch.equal(seen[4], seen[8])
    assert torch.equal(training.autoencoder.posterior_mean.weight, seen[4])


def test_geometric_beta_follows_the_steps(model_folders, dataset, tmp_path):
    training = trainer(model_folders, dataset, tmp_path, beta_schedule="geometric", beta_anneal_share=1.0)
    training.train()
    betas = [entry["beta"] for entry in training.state.log_history if "loss" in entry]
    assert betas == pytest.approx([0.1 * 0.01 ** (step / 8) for step in (1, 3, 5, 7)])


class TestSampledSoftmax:
    def test_the_tokens_of_the_table_are_known(self, model_folders, dataset, tmp_path):
        training = trainer(model_folders, dataset, tmp_path, num_sampled_tokens=8)
        labels = {token for row in range(len(dataset)) for token in dataset[row]["labels"]}
        known = dataset.vocabulary()
        assert known == sorted(labels)
        assert dataset.vocabulary(limit=len(known) - 1) is None
        candidates = training._candidates()
        assert candidates.ids[: candidates.num_known].tolist() == known
        assert len(candidates.ids) == len(known) + 8
        # Asked for, or where most of a tiny vocabulary would be drawn: all tokens.
        for number in (0, 60):
            assert trainer(model_folders, dataset, tmp_path, num_sampled_tokens=number)._candidates() is None

    def test_training_by_it_lowers_the_exact_loss_as_much(self, model_folders, dataset, tmp_path):
        gains = []
        for number in (0, 16):
            options = {"num_sampled_tokens": number, "max_steps": 24, "learning_rate": 1e-2, "eval_steps": 24}
            training = trainer(model_folders, dataset, tmp_path / str(number), **options)
            before = training.evaluate()["eval_reconstruction"]
            training.train()
            gains.append(before - training.evaluate()["eval_reconstruction"])
        assert gains[0] > 1.0
        assert gains[1] == pytest.approx(gains[0], rel=0.25)
