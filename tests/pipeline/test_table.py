"""A ready table with the models' own accuracies: the column that follows is evidence, alone or with the metrics."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.pipeline.request import Request
from mergeability.pipeline.suites import TableSuite
from mergeability.pipeline.table import analyse_table
from mergeability.prediction import Known, Ridge, StudySettings

TASKS = "abcdefg"
METRICS = ["stable_rank", "spectral_gap"]


@pytest.fixture
def pairs():
    """Seven tasks, 21 pairs: what a merge keeps follows how well the base does both tasks; metrics are noise."""
    generator = np.random.default_rng(5)
    base, own = (
        dict(zip(TASKS, generator.uniform(*ends, len(TASKS)), strict=True)) for ends in ((0.1, 0.6), (0.7, 1))
    )
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    for name in METRICS:
        frame[name] = generator.uniform(size=len(frame))
    kept = 0
    for end in "ab":
        f, z = frame[f"task_{end}"].map(own), frame[f"task_{end}"].map(base)
        frame[f"acc_ties_{end}"] = f * (0.6 + 0.3 * z / f + 0.02 * generator.normal(size=len(frame)))
        frame[f"base_accuracy_{end}"] = z
        kept = kept + frame[f"acc_ties_{end}"] / f / 2
    frame["norm_acc_ties"] = kept
    frame["expected"] = sum(
        frame[f"task_{end}"].map({t: base[t] / own[t] for t in TASKS}) / 2 for end in "ab"
    )
    return frame


@pytest.fixture
def analyse(tmp_path, pairs):
    def run(frame=None, metrics=("stable_rank", "spectral_gap"), **options):
        (pairs if frame is None else frame).drop(columns="expected").to_csv(tmp_path / "t.csv", index=False)
        suite = TableSuite("table", str(tmp_path / "t.csv"), **options)
        request = Request(
            suite,
            metrics=dict.fromkeys(metrics, lambda profiles: None),
            merges={},
            predictors={"ridge": Ridge((3,)), "known": Known((3,))},
            prediction=StudySettings(("l2to",), ("norm_acc",), permutations=0, seeds=0, ablation=False),
        )
        return analyse_table(suite, request, Run())

    return run


def beyond_the_mean(frame, columns, strength=3.0):
    """Leave two tasks out in a plain loop: scikit-learn's ridge on columns scaled to [-1, 1]; r beyond the mean."""
    X, y = frame[columns].to_numpy(), frame["norm_acc_ties"].to_numpy()
    ends = [set(pair) for pair in zip(frame["task_a"], frame["task_b"], strict=True)]
    predicted, measured = [], []
    for row, pair in enumerate(ends):
        seen = [i for i, other in enumerate(ends) if not pair & other]
        low, high = X[seen].min(0), X[seen].max(0)
        scaled = 2 * (X - low) / (high - low) - 1
        model = SklearnRidge(strength).fit(scaled[seen], y[seen])
        predicted.append(model.predict(scaled[[row]])[0] - y[seen].mean())
        measured.append(y[row] - y[seen].mean())
    return np.corrcoef(predicted, measured)[0, 1]


def scores(analysis):
    return {one["predictor"]: one for one in analysis.prediction.records if one["predictor"] != "finetuned"}


@pytest.mark.parametrize(
    "options",
    [{"extra_metrics": ["zero_shot_ratio"]}, {"metrics": [*METRICS, "zero_shot_ratio"]}],
    ids=["added", "named"],
)
def test_metrics_and_the_ratio_in_one_ridge(analyse, pairs, options):
    found = analyse(**options)
    assert found.metrics == [*METRICS, "zero_shot_ratio"]
    assert found.pairs["zero_shot_ratio"].to_numpy() == pytest.approx(pairs["expected"].to_numpy(), rel=1e-6)
    assert found.missing == []
    expected = beyond_the_mean(pairs, [*METRICS, "expected"])
    assert scores(found)["ridge"]["r_beyond_mean"] == pytest.approx(expected, abs=1e-6)
    assert expected > beyond_the_mean(pairs, METRICS) + 0.1, "otherwise a ridge without the ratio would pass"


def test_known_looks_at_the_ratio_alone_and_ridge_at_the_metrics_alone(analyse, pairs):
    found = analyse()
    assert found.metrics == METRICS
    assert "known looks at zero_shot_ratio." in found.prediction.notes
    for name, columns in (("known", ["expected"]), ("ridge", METRICS)):
        expected = beyond_the_mean(pairs, columns)
        assert scores(found)[name]["r_beyond_mean"] == pytest.approx(expected, abs=1e-6)


def test_the_ratio_may_be_the_only_metric(analyse, pairs):
    found = analyse(metrics=(), extra_metrics=["zero_shot_ratio"])
    assert found.metrics == ["zero_shot_ratio"]
    expected = beyond_the_mean(pairs, ["expected"])
    assert scores(found)["ridge"]["r_beyond_mean"] == pytest.approx(expected, abs=1e-6)


def test_models_without_a_base_accuracy_are_counted_and_the_other_pairs_used(analyse, pairs):
    for end in "ab":
        pairs[f"base_accuracy_{end}"] = pairs[f"base_accuracy_{end}"].where(pairs[f"task_{end}"] != "c")
    found = analyse(pairs)
    assert found.missing == [
        "zero_shot_ratio is unknown for 6 of 21 pairs: no base accuracy for c (1 of 7 models)."
    ]
    assert {name: one["n_pairs"] for name, one in scores(found).items()} == {"ridge": 21, "known": 15}
    assert any("6 pairs left out for an empty cell (a-c, b-c" in note for note in found.prediction.notes)
    rest = pairs[(pairs["task_a"] != "c") & (pairs["task_b"] != "c")]
    expected = beyond_the_mean(rest, ["expected"])
    assert scores(found)["known"]["r_beyond_mean"] == pytest.approx(expected, abs=1e-6)


def test_a_table_of_an_earlier_run_is_read_again(analyse, pairs):
    """Its table has the columns that were derived."""
    first = analyse()
    again = analyse(first.pairs.assign(expected=0.0), extra_metrics=["zero_shot_ratio"])
    assert again.pairs["zero_shot_ratio"].to_numpy() == pytest.approx(pairs["expected"].to_numpy(), rel=1e-6)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (
            lambda t: t.drop(columns=["base_accuracy_a", "base_accuracy_b"]),
            [
                "Expected the accuracies from which zero_shot_ratio is computed",
                "no columns base_accuracy_a and base_accuracy_b",
                "Add",
            ],
        ),
        (
            lambda t: t.drop(columns="acc_ties_a"),
            ["unknown for 21 of 21 pairs: no fine-tuned accuracy for a, b", "finetuned_accuracy_a"],
        ),
        (
            lambda t: t.assign(base_accuracy_a=np.nan, base_accuracy_b=np.nan),
            ["no base accuracy for a, b, c, d, e, f and 1 more (7 of 7 models)"],
        ),
        (lambda t: t.drop(columns="base_accuracy_b"), ["got only base_accuracy_a"]),
    ],
    ids=["no columns", "no fine-tuned accuracies", "empty", "one column"],
)
def test_a_ratio_that_does_not_follow_is_refused(analyse, pairs, spoil, parts):
    with pytest.raises(UserError) as raised:
        analyse(spoil(pairs), extra_metrics=["zero_shot_ratio"])
    for part in parts:
        assert part in str(raised.value)


def test_a_metric_that_is_not_there_is_refused(analyse):
    with pytest.raises(UserError, match=r"has no column gone\. It has: task_a, "):
        analyse(extra_metrics=["gone"])


def test_columns_that_are_not_used_are_named_in_the_log_and_the_report(analyse, pairs, caplog):
    found = analyse(pairs.assign(note="x", my_metric=0.5), metrics=METRICS[:1])
    said = "Columns not used (3): spectral_gap, note, my_metric."
    assert said in found.missing
    assert said in caplog.messages
