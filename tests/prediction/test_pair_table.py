"""What a pair table must look like, and which sentence says so."""

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.prediction.pair_table import (
    FINETUNED,
    PairTable,
    outcome_methods,
    with_finetuned_accuracy,
)
from mergeability.prediction.predictors.scaling import RangeScaler

METRICS = ["first", "second", "third"]
OUTCOME = "norm_acc_ties"


def _with(table: pd.DataFrame, row: int, column: str, value: object) -> pd.DataFrame:
    return table.astype({column: object}).assign(
        **{column: [value if i == row else v for i, v in enumerate(table[column])]}
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t.drop(columns="second"), "no column second"),
        (lambda t: t.drop(columns="task_b"), "no column task_b"),
        (lambda t: _with(t, 3, "first", "high"), "Column first must hold numbers, and row 4 holds 'high'"),
        (lambda t: _with(t, 0, OUTCOME, "n/a?"), "Column norm_acc_ties must hold numbers"),
        (lambda t: _with(t, 2, "third", np.inf), "infinite in row 3"),
        (lambda t: _with(t, 1, "task_a", None), "Row 2 of the pair table lacks"),
        (lambda t: _with(t, 1, "task_b", "a"), "with itself"),
        (
            lambda t: pd.concat([t, t.iloc[[0]].rename(columns={"task_a": "task_b", "task_b": "task_a"})]),
            "more than once",
        ),
        (lambda t: t[~t["task_a"].isin(["a", "b", "c"])], "at least 4; the pair table has 3"),
        (lambda t: t.iloc[:0], "at least 4; the pair table has 0"),
        (lambda t: t.assign(task_a=range(len(t))), "must be text"),
        (lambda t: pd.concat([t, t[["first"]]], axis=1), "Column first is given more than once"),
        (lambda t: t.assign(first=np.nan, second=np.nan, third=np.nan), "none of those named has any"),
    ],
)
def test_an_unusable_table_is_refused_with_the_reason(table, spoil, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        PairTable.validate(spoil(table), METRICS, [OUTCOME])


@pytest.mark.parametrize("leak", ["norm_acc_ties_a", "norm_acc_ties", "norm_acc_average"])
def test_an_outcome_cannot_be_a_metric(table, leak):
    with pytest.raises(UserError, match="is an outcome and cannot predict"):
        PairTable.validate(table, ["first", leak], [OUTCOME])


def test_no_metric_or_one_twice_is_refused(table):
    with pytest.raises(UserError, match="at least one metric"):
        PairTable.validate(table, [], [OUTCOME])
    with pytest.raises(UserError, match="first is given more than once"):
        PairTable.validate(table, ["first", "first"], [OUTCOME])


def test_rows_without_a_metric_or_the_outcome_are_left_out_and_named(table):
    table.loc[0, "second"] = np.nan
    table.loc[4, OUTCOME] = np.nan
    table.loc[7, "norm_acc_average"] = np.nan
    checked = PairTable.validate(table, METRICS, [OUTCOME, "norm_acc_average"])
    rows, left_out = checked.rows(OUTCOME)
    assert left_out == ["a-b", "a-f"]
    assert len(rows.outcome) == 13
    _, left_out = checked.rows(OUTCOME, [OUTCOME, "norm_acc_average"])
    assert left_out == ["a-b", "a-f", "b-e"]


def test_incidence_marks_the_two_tasks_of_each_pair(table):
    rows, _ = PairTable.validate(table, METRICS, [OUTCOME]).rows(OUTCOME)
    assert (rows.incidence.sum(axis=1) == 2).all()
    expected = [[task in pair for task in rows.tasks] for pair in rows.ends]
    np.testing.assert_array_equal(rows.incidence, np.array(expected, dtype=float))


def test_a_metric_without_any_value_is_left_out_with_a_note(table):
    checked = PairTable.validate(table.assign(second=np.nan), METRICS, [OUTCOME])
    assert checked.metrics == ("first", "third")
    assert "second" in checked.notes[0]


def test_validation_does_not_touch_its_input(table):
    before = table.copy()
    PairTable.validate(table, METRICS, [OUTCOME]).rows(OUTCOME)
    pd.testing.assert_frame_equal(table, before)


def test_methods_are_read_from_columns_without_the_halves():
    columns = [
        "task_a",
        "acc_ties",
        "norm_acc_ties",
        "acc_ties_a",
        "acc_ties_b",
        "norm_acc_ties_a",
        "acc_plan_a",
    ]
    assert outcome_methods(pd.DataFrame(columns=columns)) == ["ties", "plan_a"]
    assert outcome_methods(pd.DataFrame(columns=columns), ["norm_acc"]) == ["ties"]


def test_the_scaler_maps_the_range_seen_to_one_and_a_constant_to_zero():
    training = np.array([[0.0, 5.0], [4.0, 5.0], [1.0, 5.0]])
    scaler = RangeScaler().fit(training)
    np.testing.assert_allclose(scaler.transform(training), [[-1, 0], [1, 0], [-0.5, 0]])
    np.testing.assert_allclose(scaler.transform(np.array([[6.0, 7.0]])), [[2, 0]])
    assert scaler.constant_.tolist() == [False, True]


def test_a_value_outside_its_range_is_refused_with_column_pair_and_range(table):
    table["first"] = np.linspace(-1, 1, 15)
    PairTable.validate(table, METRICS, [OUTCOME], {"first": (-1.0, 1.0), "third": (-np.inf, np.inf)})
    table.loc[6, "first"] = 1.02
    sentence = r"Column first holds 1\.02 for b and d \(row 7\), outside its range \[-1, 1\]"
    with pytest.raises(UserError, match=sentence):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (-1.0, 1.0)})
    table.loc[6, "first"] = -1.02
    with pytest.raises(UserError, match=r"holds -1\.02 for b and d"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (-1.0, 1.0)})


def test_rounding_of_single_precision_and_empty_cells_are_inside_every_range(table):
    table["first"] = 0.5
    table.loc[0, "first"] = 1 + 1e-6
    table.loc[1, "first"] = -1e-6
    table.loc[2, "first"] = np.nan
    PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, 1.0)})
    with pytest.raises(UserError, match="outside its range"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, 0.9)})
    table.loc[3, "first"] = -0.1
    with pytest.raises(UserError, match=r"\[0, inf\]"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, np.inf)})


def test_a_pair_is_given_twice_in_either_order(table):
    for again in (table.iloc[[4]], table.iloc[[4]].rename(columns={"task_a": "task_b", "task_b": "task_a"})):
        with pytest.raises(UserError, match="is in the table more than once"):
            PairTable.validate(pd.concat([table, again], ignore_index=True), METRICS, [OUTCOME])


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
