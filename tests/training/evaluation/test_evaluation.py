"""Figures on synthetic tables: known answers, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest

from difflm.training.evaluation.closest_records import Distances, distance_to_closest_record
from difflm.training.evaluation.copies import copies
from difflm.training.evaluation.coverage import precision_recall
from difflm.training.evaluation.detection import Detection, detection
from difflm.training.evaluation.efficiency import machine_learning_efficiency
from difflm.training.evaluation.figures import evaluate_tables
from difflm.training.evaluation.missing import missing_rate_errors
from difflm.training.evaluation.privacy import privacy_risks
from difflm.training.evaluation.registry import FIGURES
from difflm.training.evaluation.shapes import correlations, shape_errors, trend_errors
from difflm.training.evaluation.tables import (
    ColumnMismatchError,
    EvaluationError,
    TableSpec,
    TargetError,
    prepare,
)
from difflm.training.evaluation.validity import fitting_rows


ONE = ({"max_depth": 3, "min_child_weight": 1},)


def table(rows=300, seed=0):
    """Two numbers that agree, a category that follows the first, and a class that follows the category."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=rows)
    return pd.DataFrame(
        {
            "x": x,
            "twice": 2 * x + generator.normal(scale=0.1, size=rows),
            "side": np.where(x > 0, "right", "left"),
            "y": np.where(x + generator.normal(scale=0.3, size=rows) > 0, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def spec():
    return TableSpec.infer(table(), target="y")


def test_spec_is_inferred():
    spec = TableSpec.infer(table(), target="y")
    assert (spec.numerical, spec.categorical, spec.task) == (("x", "twice"), ("side", "y"), "classification")
    assert TableSpec.infer(table(), target="x").task == "regression"
    assert TableSpec.infer(table().assign(code=[1, 2, 3] * 100), target="code").categorical[-1] == "code"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"target": "nothing"}, "no column 'nothing'"),
        ({"target": "same"}, "'same' is constant"),
        ({"target": "y", "task": "regression"}, "holds no numbers"),
    ],
)
def test_wrong_targets_are_refused(change, match):
    with pytest.raises(TargetError, match=match):
        TableSpec.infer(table().assign(same=1), **change)


def test_columns_must_match(spec):
    with pytest.raises(ColumnMismatchError, match="lacks side and has unexpected more"):
        prepare(table().drop(columns="side").assign(more=1), spec)
    with pytest.raises(ColumnMismatchError, match="'x' must hold numbers, as in the real table, not 'high'"):
        prepare(table().assign(x="high"), spec)
    with pytest.raises(EvaluationError, match="no rows"):
        prepare(table().head(0), spec)
    with pytest.raises(ColumnMismatchError, match="lacks 7"):
        prepare(pd.DataFrame({"x": [1.0]}), TableSpec((7,), ()))


def test_one_spelling_for_equal_categories():
    spec = TableSpec((), ("code",))
    real, synthetic = pd.DataFrame({"code": [1, 2, 2]}), pd.DataFrame({"code": ["2", 1.0, 2.0]})
    assert shape_errors(real, synthetic, spec) == {"code": 0.0}
    flags = TableSpec((), ("flag",))
    assert shape_errors(pd.DataFrame({"flag": [True]}), pd.DataFrame({"flag": ["TRUE"]}), flags) == {"flag": 0.0}


@pytest.mark.parametrize("text", ["007", "1_0", "1e3", "12345678901234567890", " 7", "1.50", "missing", "-0.5"])
def test_texts_that_only_look_like_numbers_stay_as_they_are(text):
    assert prepare(pd.DataFrame({"k": [text]}), TableSpec((), ("k",)))["k"].tolist() == [text]


def test_a_category_named_missing_is_not_a_missing_one():
    spec = TableSpec((), ("a", "b"))
    real = pd.DataFrame({"a": ["missing", "x"] * 10, "b": ["l", "r"] * 10})
    assert trend_errors(real, real.replace({"a": {"missing": None}}), spec) == pytest.approx({("a", "b"): 50.0})


def test_correlations_of_two_tables_rank_categories_alike():
    spec = TableSpec(("n",), ("k",))
    real = pd.DataFrame({"n": [0.0, 0.0, 0.0, 1.0, 1.0], "k": ["l", "l", "l", "h", "h"]})
    mirrored = pd.DataFrame({"n": [0.0, 0.0, 1.0, 1.0, 1.0], "k": ["l", "l", "h", "h", "h"]})
    # Ranked by its own frequencies, the more frequent "h" would come first and the sign would flip.
    assert correlations(mirrored, spec, ranked_by=real).loc["n", "k"] == pytest.approx(1.0)
    assert correlations(real, spec).loc["n", "k"] == pytest.approx(1.0)
    assert correlations(mirrored, spec).loc["n", "k"] == pytest.approx(-1.0)


def test_shape_error_of_known_tables(spec):
    real = pd.DataFrame({"n": [0.0, 1.0, 2.0, 3.0], "k": ["a", "a", "b", "b"]})
    synthetic = pd.DataFrame({"n": [2.0, 3.0, 4.0, 5.0], "k": ["a", "a", "a", "b"]})
    found = shape_errors(real, synthetic, TableSpec(("n",), ("k",)))
    assert found == pytest.approx({"n": 50.0, "k": 25.0})
    assert set(shape_errors(table(), table(), spec).values()) == {0.0}


def test_all_missing_columns_have_a_defined_error():
    spec = TableSpec(("n", "m"), ("k",))
    real = pd.DataFrame({"n": [1.0, 2.0], "m": [np.nan, np.nan], "k": ["a", None]})
    synthetic = pd.DataFrame({"n": [np.nan, np.nan], "m": [np.nan, np.nan], "k": [None, None]})
    assert shape_errors(real, synthetic, spec) == {"n": 100.0, "m": 0.0, "k": 100.0}
    assert missing_rate_errors(real, synthetic, spec) == {"n": 100.0, "m": 0.0, "k": 50.0}
    assert np.isfinite(list(trend_errors(real, synthetic, spec).values())).all()


def test_trend_error_of_opposite_trends():
    spec = TableSpec(("a", "b"), ())
    real = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]})
    assert trend_errors(real, real.assign(b=[2.0, 1.0, 0.0]), spec) == pytest.approx({("a", "b"): 100.0})
    # A constant column has no correlation: half the error.
    assert trend_errors(real, real.assign(b=1.0), spec) == pytest.approx({("a", "b"): 50.0})
    mixed = TableSpec(("a",), ("k",))
    real = pd.DataFrame({"a": [0.0, 0.0, 9.0, 9.0], "k": ["l", "l", "h", "h"]})
    crossed = pd.DataFrame({"a": [0.0, 0.0, 9.0, 9.0], "k": ["l", "h", "l", "h"]})
    assert trend_errors(real, crossed, mixed) == pytest.approx({("a", "k"): 50.0})


def test_copies_and_fitting_rows():
    spec = TableSpec(("n",), ("k",))
    real = pd.DataFrame({"n": [1, 2, None], "k": ["a", "b", "a"]})
    synthetic = pd.DataFrame({"n": [1.0, 1.0, None, 5.0], "k": ["a", "a", "a", "z"]})
    found = copies(real, synthetic, spec)
    assert (found.copy_rate, found.duplicate_rate) == (0.75, 0.25)
    assert fitting_rows(real, synthetic, spec) == 0.75


@pytest.mark.parametrize("dtype", ["float32", "Float32", "float64"])
def test_numbers_of_fewer_bits_are_copies_still(dtype):
    spec = TableSpec(("n",), ())
    real = pd.DataFrame({"n": [0.1, 1234.56, None, np.inf]})
    assert copies(real, real.astype(dtype), spec).copy_rate == 1.0
    assert copies(real.astype(dtype), real.assign(n=[0.1, 1234.57, 3.0, 4.0]), spec).copy_rate == 0.25


def test_distances_by_hand():
    spec = TableSpec(("n",), ("k",))
    reference = pd.DataFrame({"n": [0.0, 10.0], "k": ["a", "b"]})
    rows = pd.DataFrame({"n": [1.0, np.nan, 10.0], "k": ["a", "a", "c"]})
    assert Distances(reference, spec).to_nearest(rows, reference).tolist() == pytest.approx([0.1, 1.0, 2.0])


def test_copies_of_training_rows_are_nearer_to_them(spec):
    train, holdout = table(), table(seed=1)
    assert distance_to_closest_record(train, holdout, train, spec).share_percent == 100.0
    assert distance_to_closest_record(train, holdout, holdout, spec).share_percent == 0.0
    assert distance_to_closest_record(train, train, table(seed=2), spec).share_percent == 50.0
    # Only a third of the training rows are drawn beside the small holdout; distances are to all of them.
    found = distance_to_closest_record(train, holdout.head(100), train, spec)
    assert found.to_all_train.max() == 0.0 and (found.to_train > 0).mean() > 0.5


def test_precision_and_recall(spec):
    real = table()
    precision, recall = precision_recall(real, real, spec)
    assert precision > 0.99 and recall > 0.99
    collapsed = pd.concat([real.head(1)] * 300, ignore_index=True)
    assert precision_recall(real, collapsed, spec)[1] < 0.2
    far = real.assign(x=real["x"] + 100)
    assert precision_recall(real, far, spec)[0] < 0.1
    with pytest.raises(EvaluationError, match="two rows"):
        precision_recall(real, real.head(1), spec)


@pytest.mark.parametrize("classifier", ["xgboost", "logistic"])
def test_detection(spec, classifier):
    real = table(600)
    assert detection(real, real.assign(x=real["x"] + 9), spec, classifier=classifier).score < 0.01
    gaps = table(600, seed=1)
    gaps.loc[::2, "side"] = None
    gaps["twice"] = np.nan
    assert detection(real, gaps, spec, classifier=classifier).auc > 0.7
    assert abs(detection(real, table(600, seed=1), spec, classifier=classifier).auc - 0.5) < 0.1
    with pytest.raises(EvaluationError, match="at least 5 rows"):
        detection(real, real.head(4), spec, classifier=classifier)


@pytest.mark.parametrize("classifier", ["xgboost", "logistic"])
def test_the_order_of_rows_tells_a_detector_nothing(spec, classifier):
    real = table(600).sort_values("x", ignore_index=True)
    assert abs(detection(real, table(600, seed=1), spec, classifier=classifier).auc - 0.5) < 0.1


def test_only_a_strong_detector_sees_lost_dependence(spec):
    real = table(600)
    shuffled = pd.DataFrame({name: real[name].sample(frac=1, random_state=i).array for i, name in enumerate(real)})
    assert detection(real, shuffled, spec).auc > 0.9
    assert detection(real, shuffled, spec, classifier="logistic").auc < 0.65


def test_detection_score():
    nothing = np.zeros(0)
    assert Detection(0.5, nothing, nothing).score == 1.0
    assert Detection(1.0, nothing, nothing).score == Detection(0.0, nothing, nothing).score == 0.0


def test_efficiency_of_real_and_of_useless_rows(spec):
    real, test = table(), table(seed=1)
    good = machine_learning_efficiency(real, real, test, spec, validation=table(seed=2), seeds=2, grid=ONE)
    assert good.metric == "auc" and len(good.scores) == 2 and min(good.scores) > 0.9
    flipped = real.assign(y=np.where(real["y"] == "yes", "no", "yes"))
    assert machine_learning_efficiency(real, flipped, test, spec, seeds=1, grid=ONE).scores[0] < 0.1
    one_class = machine_learning_efficiency(real, real.assign(y="no"), test, spec, seeds=2, grid=ONE)
    assert one_class.scores == (0.5, 0.5)


def test_efficiency_with_a_class_never_sampled():
    real = table().assign(y=[str(i % 3) for i in range(300)])
    spec = TableSpec.infer(real, target="y")
    synthetic = real[real["y"] != "2"]
    # The classes are drawn without regard to the columns: those that were learnt are learnt by heart, a little.
    assert 0.5 < machine_learning_efficiency(real, synthetic, real, spec, seeds=1, grid=ONE).scores[0] < 0.9
    only_new = real.assign(y="7").assign(y=["7", "8"] * 150)
    with pytest.raises(TargetError, match="two of the real table's values"):
        machine_learning_efficiency(real, real, only_new, spec, seeds=1, grid=ONE)


def test_efficiency_is_seeded():
    real, test = table(), table(seed=1)
    spec = TableSpec.infer(real, target="y")

    def scores(seeds, seed):
        return machine_learning_efficiency(
            real, real, test, spec, validation=table(seed=2), seeds=seeds, seed=seed, grid=ONE
        ).scores

    both = scores(2, 4)
    assert both[0] != both[1]
    assert scores(1, 4) == both[:1] and scores(1, 5) == both[1:]


def test_efficiency_of_a_regression():
    real, test = (table(seed=seed).assign(y=lambda rows: np.exp(rows["x"] + 2)) for seed in (0, 1))
    real.loc[0, "y"] = np.nan
    spec = TableSpec.infer(real, target="y", log_target=True)
    found = machine_learning_efficiency(real, real, test, spec, seeds=1, grid=ONE)
    assert found.metric == "rmse" and found.scores[0] < 0.3
    with pytest.raises(TargetError, match="test table needs at least two values"):
        machine_learning_efficiency(real, real, test.assign(y=1.0), spec)
    # No number above 1 remains one: an error of 0 would be no merit.
    small = [rows.assign(y=rows["y"] / 1e6) for rows in (real, test)]
    with pytest.raises(TargetError, match=r"two values of log\(max\(y, 1\)\)"):
        machine_learning_efficiency(small[0], small[0], small[1], spec, grid=ONE)
    with pytest.raises(TargetError, match="needs a target"):
        machine_learning_efficiency(real, real, test, TableSpec(("x",), ()))


def test_everything_in_one_call(spec):
    result = evaluate_tables(table(), table(seed=3), spec, holdout=table(seed=1), seeds=1)
    assert {"shape_error", "trend_error", "mle", "detection_auc", "dcr_share", "alpha_precision"} <= set(
        result.figures
    )
    assert set(result.figures) <= set(FIGURES)  # each is called by a title in the report and on the card
    assert result.skipped == {} and result.warnings == []
    assert "mle_of_real" in result.figures and result.details["log_target"] is False
    # Independent draws of one distribution: the synthetic rows are as good as unseen ones.
    for name in ("shape_error", "trend_error"):
        assert 0 < result.figures[f"{name}_of_holdout"]["mean"] < 10
        assert 0 < result.figures[name]["mean"] < 10
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["details"]["rows"]["synthetic"] == 300


def test_what_cannot_be_measured_is_named(spec):
    result = evaluate_tables(table(), table(4), spec, seeds=1)
    assert set(result.skipped) == {"dcr", "detection", "machine_learning_efficiency"}
    assert "shape_error" in result.figures


def test_attacks_are_seeded_and_see_published_training_rows():
    pytest.importorskip("anonymeter")

    def numbers(seed):
        return pd.DataFrame(np.random.default_rng(seed).normal(size=(200, 4)), columns=list("abcd"))

    train, unseen = numbers(0), numbers(1)
    spec = TableSpec.infer(train)

    def risks(rows):
        found = privacy_risks(train, unseen, rows, spec, attacks=("linkability", "singling_out"), num_attacks=30)
        found["linkability"].pop("baseline_rate")  # anonymeter draws it from a generator that cannot be seeded
        return found

    published = risks(train)
    assert published == risks(train)
    for attack, risk in risks(numbers(2)).items():
        assert risk["attack_rate"] < published[attack]["attack_rate"]
        assert risk["risk"] < 0.5 * published[attack]["risk"]


def test_an_attack_with_too_few_guesses_is_not_counted_as_failed():
    pytest.importorskip("anonymeter")
    flags = pd.DataFrame({"a": [True, False] * 50, "b": [True, True, False, False] * 25})
    with pytest.raises(EvaluationError, match="found only 4 queries"):
        privacy_risks(flags, flags, flags, TableSpec.infer(flags), attacks="singling_out")


def test_the_control_of_singling_out_does_not_depend_on_its_number_of_rows():
    pytest.importorskip("anonymeter")

    def numbers(rows, seed):
        return pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 4)), columns=list("abcd"))

    train = numbers(3000, 0)
    spec = TableSpec.infer(train)
    # Rows that know nothing of the training rows give away nothing of them.
    found = privacy_risks(train, numbers(300, 1), numbers(600, 2), spec, attacks=["singling_out"], num_attacks=200)
    assert abs(found["singling_out"]["attack_rate"] - found["singling_out"]["control_rate"]) < 0.1
    assert found["singling_out"]["low"] == 0


def test_a_secret_number_is_inferred_by_its_tenth_and_random_guesses_are_counted():
    pytest.importorskip("anonymeter")
    rng = np.random.default_rng(0)

    def table(rows):
        x = rng.normal(size=rows)
        return pd.DataFrame({"x": x, "c": rng.choice(["a", "b"], rows, p=[0.8, 0.2]), "cold": x - 100})

    train, unseen, rows = table(1000), table(400), table(800)
    spec = TableSpec.infer(train, categorical=["c"])

    def inferred(synthetic, secret):
        return privacy_risks(train, unseen, synthetic, spec, attacks=["inference"], secret=secret)["inference"]

    known = inferred(rows, "cold")  # x says it
    assert known["attack_rate"] > 0.8 and known["control_rate"] > 0.8 and abs(known["baseline_rate"] - 0.1) < 0.02
    # All of these numbers are negative, and each is within 5 % of every other.
    guessed = inferred(rows.assign(cold=rng.permutation(rows["cold"])), "cold")
    assert guessed["attack_rate"] < 0.25 and guessed["low"] == 0
    # Of two classes random guesses are right at 0.8 * 0.8 + 0.2 * 0.2.
    assert abs(inferred(rows, "c")["baseline_rate"] - 0.68) < 0.04
