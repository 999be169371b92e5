"""What a pair table must look like, and which sentence says so."""

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.prediction.pair_table import PairTable, outcome_methods
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
        (lambda t: _with(t, 3, "first", "high"), "Expected numbers in column first, got 'high' in row 4"),
        (
            lambda t: _with(t, 0, OUTCOME, "n/a?"),
            "Expected numbers in column norm_acc_ties, got 'n/a?' in row 1",
        ),
        (lambda t: _with(t, 2, "third", np.inf), "infinite in row 3"),
        (lambda t: t.assign(second=[True] * 15), "Expected numbers in column second, got 'True' in row 1"),
        (lambda t: _with(t, 1, "task_a", None), "Row 2 of the pair table has no task_a or no task_b"),
        (lambda t: _with(t, 1, "task_b", "a"), "with itself"),
        (
            lambda t: pd.concat([t, t.iloc[[0]].rename(columns={"task_a": "task_b", "task_b": "task_a"})]),
            "more than once",
        ),
        (lambda t: t[~t["task_a"].isin(["a", "b", "c"])], "at least 4, but the pair table has 3"),
        (lambda t: t.iloc[:0], "at least 4, but the pair table has 0"),
        (lambda t: t.assign(task_a=range(len(t))), "Expected task names to be text, got"),
        (lambda t: pd.concat([t, t[["first"]]], axis=1), "Column first occurs more than once"),
        (lambda t: t.assign(first=np.nan, second=np.nan, third=np.nan), "all requested metrics are empty"),
    ],
)
def test_an_unusable_table_is_refused_with_the_reason(table, spoil, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        PairTable.validate(spoil(table), METRICS, [OUTCOME])


@pytest.mark.parametrize("leak", ["norm_acc_ties_a", "norm_acc_ties", "norm_acc_average"])
def test_an_outcome_cannot_be_a_metric(table, leak):
    with pytest.raises(UserError, match="is an outcome, but only metrics can predict"):
        PairTable.validate(table, ["first", leak], [OUTCOME])


def test_no_metric_or_one_twice_is_refused(table):
    with pytest.raises(UserError, match="at least one metric"):
        PairTable.validate(table, [], [OUTCOME])
    with pytest.raises(UserError, match="first occurs more than once"):
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
    sentence = r"Column first contains 1\.02 for b and d \(row 7\), outside the metric's range \[-1, 1\]"
    with pytest.raises(UserError, match=sentence):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (-1.0, 1.0)})
    table.loc[6, "first"] = -1.02
    with pytest.raises(UserError, match=r"contains -1\.02 for b and d"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (-1.0, 1.0)})


def test_rounding_of_single_precision_and_empty_cells_are_inside_every_range(table):
    table["first"] = 0.5
    table.loc[0, "first"] = 1 + 1e-6
    table.loc[1, "first"] = -1e-6
    table.loc[2, "first"] = np.nan
    PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, 1.0)})
    with pytest.raises(UserError, match="outside the metric's range"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, 0.9)})
    table.loc[3, "first"] = -0.1
    with pytest.raises(UserError, match=r"\[0, inf\]"):
        PairTable.validate(table, METRICS, [OUTCOME], {"first": (0.0, np.inf)})


def test_a_pair_is_given_twice_in_either_order(table):
    for again in (table.iloc[[4]], table.iloc[[4]].rename(columns={"task_a": "task_b", "task_b": "task_a"})):
        with pytest.raises(UserError, match="is in the table more than once"):
            PairTable.validate(pd.concat([table, again], ignore_index=True), METRICS, [OUTCOME])
