"""What models reach on their own: given by columns, implied by outcomes, or refused in one sentence."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.errors import UserError
from mergeability.prediction import LeaveTwoTasksOut, Ridge, evaluate_predictors
from mergeability.prediction.own_accuracies import (
    finetuned_accuracies,
    with_finetuned_accuracy,
    with_zero_shot_ratio,
)
from mergeability.prediction.pair_table import FINETUNED

FIVE = ["weight_avg", "arithmetic", "tsv", "ties", "dare"]
METRICS = ["first", "second", "third"]


def _with_halves(table, own, noise=0.0):
    """Outcomes of `ties` from planted accuracies: norm_acc is the mean of what is kept of either."""
    generator = np.random.default_rng(9)
    frame = table[["task_a", "task_b", *METRICS]].copy()
    f_a, f_b = frame["task_a"].map(own), frame["task_b"].map(own)
    frame["acc_ties_a"], frame["acc_ties_b"] = (f * generator.uniform(0.5, 1, size=15) for f in (f_a, f_b))
    frame["norm_acc_ties"] = (frame["acc_ties_a"] / f_a + frame["acc_ties_b"] / f_b) / 2
    frame["norm_acc_ties"] += noise * generator.normal(size=15)
    return frame, ((f_a + f_b) / 2).to_numpy()


OWN = {"a": 0.9, "b": 0.75, "c": 0.99, "d": 0.5, "e": 0.8, "f": 0.6}


def test_planted_accuracies_are_recovered_from_the_outcomes(table):
    frame, expected = _with_halves(table, OWN)
    frame.loc[7, "acc_ties_a"] = np.nan  # of an empty cell the others tell
    found = with_finetuned_accuracy(frame)
    np.testing.assert_allclose(found[FINETUNED], expected, rtol=1e-9)
    assert FINETUNED not in frame.columns, "the input is left alone"
    pd.testing.assert_frame_equal(found.drop(columns=FINETUNED), frame)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.assign(norm_acc_ties=t["norm_acc_ties"] + np.linspace(0, 1e-3, 15)),
        lambda t: t.assign(norm_acc_ties=t["norm_acc_ties"].where(t.index != 3, 0.5)),
        lambda t: t.assign(norm_acc_ties=-t["norm_acc_ties"]),
        lambda t: t.drop(columns="acc_ties_b"),
        lambda t: t.assign(acc_ties_a=np.nan),
        lambda t: t.head(6),
    ],
    ids=["drift", "one pair", "negative", "a column missing", "no halves", "as many pairs as tasks"],
)
def test_accuracies_are_not_made_up_where_outcomes_do_not_imply_them(table, spoil):
    frame = spoil(_with_halves(table, OWN)[0])
    assert FINETUNED not in with_finetuned_accuracy(frame).columns


def test_accuracies_come_from_the_first_method_that_agrees_and_never_replace_given_ones(table):
    frame, expected = _with_halves(table, OWN)
    other = frame.rename(columns=lambda name: name.replace("ties", "tsv"))
    frame = frame.assign(norm_acc_ties=0.5, **other[["norm_acc_tsv", "acc_tsv_a", "acc_tsv_b"]])
    np.testing.assert_allclose(with_finetuned_accuracy(frame)[FINETUNED], expected, rtol=1e-9)
    given = frame.assign(**{FINETUNED: 0.1})
    pd.testing.assert_frame_equal(with_finetuned_accuracy(given), given)


def test_the_published_outcomes_imply_the_models_own_accuracies(published):
    means = with_finetuned_accuracy(published)[FINETUNED].to_numpy()
    ends = published[["task_a", "task_b"]].to_numpy()
    tasks = sorted(set(ends.ravel()))
    marks = np.array([[0.5 * (task in pair) for task in tasks] for pair in ends])
    own = dict(zip(tasks, np.linalg.lstsq(marks, means, rcond=None)[0], strict=True))
    assert 0.5 < min(own.values()) < max(own.values()) <= 1
    f_a, f_b = (published[side].map(own) for side in ("task_a", "task_b"))
    # They come from one method, and every other agrees.
    for method in ("weight_avg", "arithmetic", "tsv", "ties", "dare", "isotropic"):
        implied = (published[f"acc_{method}_a"] / f_a + published[f"acc_{method}_b"] / f_b) / 2
        off = (implied - published[f"norm_acc_{method}"]).abs()
        assert off.notna().sum() > 180
        assert off.max() < 1e-5


# Shares that float64 holds exactly would hide a mean taken in the wrong order.
ZERO_SHOT = {"a": 0.3, "b": 0.45, "c": 0.9, "d": 0.1, "e": 0.64, "f": 0.33}


@pytest.fixture
def pairs(table):
    """Outcomes that imply the fine-tuned accuracies, and the base accuracies of both tasks."""
    frame, _ = _with_halves(table, OWN)
    return frame.assign(**{f"base_accuracy_{end}": frame[f"task_{end}"].map(ZERO_SHOT) for end in "ab"})


def _ratios(frame, zero_shot, own):
    """Pair by pair, the mean of both ratios."""
    return [
        (zero_shot.get(a, np.nan) / own[a] + zero_shot.get(b, np.nan) / own[b]) / 2
        for a, b in zip(frame["task_a"], frame["task_b"], strict=True)
    ]


def test_ratios_follow_from_base_accuracies_and_outcomes(pairs):
    found, notes = with_zero_shot_ratio(pairs)
    np.testing.assert_allclose(found["zero_shot_ratio"], _ratios(pairs, ZERO_SHOT, OWN), rtol=1e-9)
    assert notes == []
    pd.testing.assert_frame_equal(found.drop(columns="zero_shot_ratio"), pairs)


def test_given_accuracies_come_first_and_outcomes_tell_the_rest(pairs):
    given = pairs.assign(
        finetuned_accuracy_a=pairs["task_a"].map({"a": 0.95}), finetuned_accuracy_b=[np.nan] * 15
    )
    own = OWN | {"a": 0.95}
    assert finetuned_accuracies(given) == pytest.approx(own, rel=1e-9)
    found, _ = with_zero_shot_ratio(given)
    np.testing.assert_allclose(found["zero_shot_ratio"], _ratios(pairs, ZERO_SHOT, own), rtol=1e-9)
    means = [(own[a] + own[b]) / 2 for a, b in zip(pairs["task_a"], pairs["task_b"], strict=True)]
    np.testing.assert_allclose(with_finetuned_accuracy(given)[FINETUNED], means, rtol=1e-9)


def test_one_row_of_a_model_is_enough(pairs):
    """Each base accuracy once, in either column; the other cells are empty."""
    once = {"a": ("a", 0), "b": ("b", 0), "c": ("b", 1), "d": ("b", 2), "e": ("a", 14), "f": ("b", 14)}
    cells = {end: np.full(15, np.nan) for end in "ab"}
    for task, (end, row) in once.items():
        assert pairs[f"task_{end}"][row] == task
        cells[end][row] = ZERO_SHOT[task]
    sparse = pairs.assign(base_accuracy_a=cells["a"], base_accuracy_b=cells["b"])
    found, notes = with_zero_shot_ratio(sparse)
    np.testing.assert_allclose(found["zero_shot_ratio"], _ratios(pairs, ZERO_SHOT, OWN), rtol=1e-9)
    assert notes == []


def test_models_without_an_accuracy_are_counted_and_named(pairs):
    some = {task: value for task, value in ZERO_SHOT.items() if task not in "be"}
    fewer = pairs.assign(**{f"base_accuracy_{end}": pairs[f"task_{end}"].map(some) for end in "ab"})
    found, notes = with_zero_shot_ratio(fewer)
    np.testing.assert_allclose(found["zero_shot_ratio"], _ratios(pairs, some, OWN), rtol=1e-9)
    assert found["zero_shot_ratio"].notna().sum() == 6
    assert notes == [
        "zero_shot_ratio is unknown for 9 of 15 pairs: no base accuracy for b, e (2 of 6 models)."
    ]


def test_a_model_that_is_never_right_has_no_ratio(pairs):
    own = {**dict.fromkeys("abcde", 0.8), "f": 0.0}
    tuned = {f"finetuned_accuracy_{end}": pairs[f"task_{end}"].map(own) for end in "ab"}
    found, notes = with_zero_shot_ratio(pairs.assign(**tuned))
    assert found["zero_shot_ratio"].isna().tolist() == (pairs["task_b"] == "f").tolist()
    (note,) = notes
    assert note.endswith("5 of 15 pairs: a fine-tuned accuracy of 0 for f (1 of 6 models).")


def test_without_fine_tuned_accuracies_there_is_no_ratio_but_a_reason(pairs):
    found, notes = with_zero_shot_ratio(pairs.drop(columns="acc_ties_a"))
    assert "zero_shot_ratio" not in found.columns
    (note,) = notes
    assert "unknown for 15 of 15 pairs: no fine-tuned accuracy for a, b, c, d, e, f (6 of 6 models)" in note
    untouched = pairs.drop(columns=["base_accuracy_a", "base_accuracy_b"])
    found, notes = with_zero_shot_ratio(untouched)
    assert found is untouched
    assert notes == []


def test_a_column_of_ratios_is_kept_and_its_empty_cells_are_filled(pairs):
    expected = np.array(_ratios(pairs, ZERO_SHOT, OWN))
    given = pairs.assign(zero_shot_ratio=np.where(np.arange(15) == 4, np.nan, expected))
    found, _ = with_zero_shot_ratio(given)
    np.testing.assert_allclose(found["zero_shot_ratio"], expected, rtol=1e-9)


def _cell(column, row, value):
    return lambda t: t.astype({column: object}).assign(
        **{column: [value if i == row else one for i, one in enumerate(t[column])]}
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda t: t.drop(columns="base_accuracy_b"),
            "Expected the columns base_accuracy_a and base_accuracy_b, one for each task of a pair, got only base_accuracy_a. Add "
            "base_accuracy_b, or remove base_accuracy_a.",
        ),
        (
            lambda t: t.drop(columns="base_accuracy_a"),
            "got only base_accuracy_b. Add base_accuracy_a, or remove base_accuracy_b.",
        ),
        (
            lambda t: t.assign(finetuned_accuracy_b=0.5),
            "got only finetuned_accuracy_b. Add finetuned_accuracy_a,",
        ),
        (
            _cell("base_accuracy_a", 3, 30.0),
            "Expected accuracies in [0, 1] in column base_accuracy_a, got 30 for a (row 4). Give 65 % as 0.65.",
        ),
        (_cell("base_accuracy_b", 0, -0.1), "got -0.1 for b (row 1)"),
        (
            lambda t: t.assign(finetuned_accuracy_a=1.5, finetuned_accuracy_b=0.5),
            "in column finetuned_accuracy_a, got 1.5 for a (row 1)",
        ),
        (
            _cell("base_accuracy_a", 1, 0.31),
            "Expected one base_accuracy for a, got 0.3 (row 1, base_accuracy_a) and 0.31 (row 2, base_accuracy_a). "
            "Correct one of the two values.",
        ),
        (
            _cell("base_accuracy_b", 0, 0.46),
            "base_accuracy for b, got 0.45 (row 6, base_accuracy_a) and 0.46 (row 1, base_accuracy_b)",
        ),
        (
            _cell("base_accuracy_a", 2, "high"),
            "Expected numbers in column base_accuracy_a, got 'high' in row 3",
        ),
        (_cell("base_accuracy_a", 2, np.inf), "is infinite in row 3"),
        (
            lambda t: t.assign(zero_shot_ratio=0.5),
            "Expected the column zero_shot_ratio to agree with the accuracies of the models, got 0.5 instead of",
        ),
    ],
)
def test_bad_accuracies_are_refused_in_one_sentence(pairs, spoil, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        with_zero_shot_ratio(spoil(pairs))


def test_the_published_ratios_by_least_squares_of_all_methods(joined):
    """2 norm_acc = acc_a / f_a + acc_b / f_b, all six methods stacked in one system."""
    ends = joined[["task_a", "task_b"]].to_numpy()
    tasks = sorted(set(ends.ravel()))
    blocks, sums = [], []
    for method in ("weight_avg", "arithmetic", "tsv", "ties", "dare", "isotropic"):
        a, b, both = (joined[f"{name}_{method}{end}"].to_numpy()[:, None] for name, end in
                      (("acc", "_a"), ("acc", "_b"), ("norm_acc", "")))  # fmt: skip
        rows = (ends[:, :1] == tasks) * a + (ends[:, 1:] == tasks) * b
        known = ~np.isnan(rows).any(axis=1) & ~np.isnan(both[:, 0])
        blocks.append(rows[known])
        sums.append(2 * both[known, 0])
    inverse = np.linalg.lstsq(np.vstack(blocks), np.concatenate(sums), rcond=None)[0]
    base = {
        task: value
        for end in "ab"
        for task, value in joined[[f"task_{end}", f"base_accuracy_{end}"]].to_numpy()
    }
    ratio = {task: base[task] * inverse[i] for i, task in enumerate(tasks)}
    expected = [(ratio[a] + ratio[b]) / 2 for a, b in ends]
    found, notes = with_zero_shot_ratio(joined)
    np.testing.assert_allclose(found["zero_shot_ratio"], expected, atol=1e-6)
    assert notes == []


@pytest.mark.parametrize("strength", [3, 30, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 10))])
def test_one_number_of_each_model_helps_the_28_on_the_published_table(joined, strength):
    """Two unseen tasks, r beyond the mean of the five methods by plain loops; docs/results.md has these figures."""
    metrics, outcomes = list(joined.columns[2:30]), [f"norm_acc_{method}" for method in FIVE]
    frame = with_zero_shot_ratio(joined)[0].dropna(subset=[*metrics, *outcomes])
    assert len(frame) == 185
    ends, Y = frame[["task_a", "task_b"]].to_numpy(), frame[outcomes].to_numpy()
    scores = []
    for columns in (metrics, [*metrics, "zero_shot_ratio"]):
        X = frame[columns].to_numpy()
        beyond = np.zeros((2, *Y.shape))
        for row, pair in enumerate(ends):
            seen = ~np.isin(ends, pair).any(axis=1)
            low, high = X[seen].min(0), X[seen].max(0)
            scaled = 2 * (X - low) / (high - low) - 1
            mean = Y[seen].mean(axis=0)
            predicted = SklearnRidge(strength).fit(scaled[seen], Y[seen]).predict(scaled[[row]])[0]
            beyond[:, row] = predicted - mean, Y[row] - mean
        scores.append(np.mean([np.corrcoef(*beyond[:, :, k])[0, 1] for k in range(len(FIVE))]))
    assert scores[1] > scores[0] + 0.1


@pytest.mark.slow
def test_one_number_of_each_model_helps_the_28_with_the_nested_strength(joined):
    frame, metrics = with_zero_shot_ratio(joined)[0], list(joined.columns[2:30])
    scores = []
    for columns in (metrics, [*metrics, "zero_shot_ratio"]):
        records = evaluate_predictors(
            frame, columns, {"ridge": Ridge()}, FIVE, ["norm_acc"], [LeaveTwoTasksOut()], rows="complete"
        ).records
        assert {record["n_pairs"] for record in records} == {185}
        scores.append(np.mean([record["r_beyond_mean"] for record in records]))
    assert scores[1] > scores[0] + 0.1


def test_a_pair_without_a_task_leaves_only_the_given_accuracies(table):
    frame, _ = _with_halves(table, OWN)
    assert finetuned_accuracies(frame) == pytest.approx(OWN)
    frame.loc[3, "task_a"] = None
    assert finetuned_accuracies(frame) == {}
    given = frame.assign(finetuned_accuracy_a=0.5, finetuned_accuracy_b=0.5)
    assert finetuned_accuracies(given) == dict.fromkeys("abcdef", 0.5)
