"""The whole evaluation: records, leaks, undefined folds, and the published table."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression

from mergeability.errors import UserError
from mergeability.prediction import (
    Additive,
    Lasso,
    LeaveOneTaskOut,
    LeaveTwoTasksOut,
    Pearson,
    Ridge,
    evaluate_predictors,
)

METRICS = ["first", "second", "third"]
RECORD = {
    "method", "predictor", "protocol", "situation", "target", "r_mean", "r_std", "rho_mean", "train_r_mean",
    "pooled_r", "pooled_r_low", "pooled_r_high", "r_beyond_mean", "r_beyond_mean_low", "r_beyond_mean_high",
    "mae", "r2_over_training_mean", "n_folds", "n_pairs", "n_undefined",
}  # fmt: skip
LOTO = [LeaveOneTaskOut()]
FIVE = ["weight_avg", "arithmetic", "tsv", "ties", "dare"]


@pytest.fixture(scope="module")
def everything():
    return {
        "mean": DummyRegressor(),
        "additive": Additive(),
        "ols": LinearRegression(),
        "lasso": Lasso(),
        "pearson": Pearson(max_steps=60),
    }


@pytest.fixture(scope="module")
def evaluated(studied, everything):
    """Everything on the small table; computed once, so leave it unchanged."""
    return evaluate_predictors(studied.table, METRICS, everything, targets=["norm_acc"])


def _record(result, **wanted):
    return next(r for r in result.records if all(r[key] == value for key, value in wanted.items()))


def test_records_hold_exactly_what_is_promised_and_are_json(evaluated):
    result = evaluated
    # Two outcomes of five predictors, three of which are closed forms and face pairs of new tasks as well.
    assert len(result.records) == 2 * 5 + 2 * 3
    assert all(set(record) == RECORD for record in result.records)
    assert json.loads(json.dumps(result.records, allow_nan=False)) == result.records
    found = {(r["protocol"], r["situation"], r["n_folds"], r["n_pairs"]) for r in result.records}
    assert found == {("loto", "known partner", 6, 15), ("l2to", "both new", 15, 15)}
    in_pairs = {r["predictor"] for r in result.records if r["protocol"] == "l2to"}
    assert in_pairs == {"mean", "additive", "ols"}


def test_scores_are_those_of_a_plain_loop(table):
    result = evaluate_predictors(table, METRICS, {"ols": LinearRegression()}, ["average"], ["norm_acc"], LOTO)
    X, y = table[METRICS].to_numpy(), table["norm_acc_average"].to_numpy()
    predicted, measured, means, r, rho, training_r = [], [], [], [], [], []
    for task in "abcdef":
        out = ((table["task_a"] == task) | (table["task_b"] == task)).to_numpy()
        design = np.column_stack([np.ones(10), X[~out]])
        weights = np.linalg.lstsq(design, y[~out], rcond=None)[0]
        fold = np.column_stack([np.ones(5), X[out]]) @ weights
        r.append(pearsonr(fold, y[out])[0])
        rho.append(spearmanr(fold, y[out])[0])
        training_r.append(pearsonr(design @ weights, y[~out])[0])
        predicted, measured = [*predicted, *fold], [*measured, *y[out]]
        means += [y[~out].mean()] * 5
    predicted, measured, means = map(np.array, (predicted, measured, means))
    record = result.records[0]
    assert record["r_mean"] == pytest.approx(np.mean(r))
    assert record["r_std"] == pytest.approx(np.std(r))
    assert record["rho_mean"] == pytest.approx(np.mean(rho))
    assert record["train_r_mean"] == pytest.approx(np.mean(training_r))
    assert record["pooled_r"] == pytest.approx(pearsonr(predicted, measured)[0])
    assert record["mae"] == pytest.approx(np.abs(predicted - measured).mean())
    r2 = 1 - ((predicted - measured) ** 2).sum() / ((measured - means) ** 2).sum()
    assert record["r2_over_training_mean"] == pytest.approx(r2)
    np.testing.assert_allclose(result.predictions["predicted"], predicted)


def test_r_beyond_the_training_mean_is_that_of_plain_numpy(table):
    result = evaluate_predictors(
        table, METRICS, {"ols": LinearRegression()}, ["average"], ["norm_acc"], [LeaveTwoTasksOut()]
    )
    X, y = table[METRICS].to_numpy(), table["norm_acc_average"].to_numpy()
    ends = table[["task_a", "task_b"]].to_numpy()
    design = np.column_stack([np.ones(15), X])
    beyond, truth = np.zeros(15), np.zeros(15)
    for row, pair in enumerate(ends):
        rows = [i for i, other in enumerate(ends) if not set(pair) & set(other)]
        weights = np.linalg.lstsq(design[rows], y[rows], rcond=None)[0]
        beyond[row], truth[row] = design[row] @ weights - y[rows].mean(), y[row] - y[rows].mean()
    record = result.records[0]
    assert record["r_beyond_mean"] == pytest.approx(np.corrcoef(beyond, truth)[0, 1])
    without = [
        np.arctanh(np.corrcoef(beyond[kept], truth[kept])[0, 1])
        for kept in ((ends != task).all(axis=1) for task in "abcdef")
    ]
    half = 1.959964 * np.sqrt(4 / 12 * ((without - np.mean(without)) ** 2).sum())
    z = np.arctanh(record["r_beyond_mean"])
    assert record["r_beyond_mean_low"] == pytest.approx(np.tanh(z - half))
    assert record["r_beyond_mean_high"] == pytest.approx(np.tanh(z + half))
    assert record["r_mean"] is None
    assert (record["n_folds"], record["n_undefined"]) == (15, 15)


def test_what_predicts_the_training_mean_has_no_correlation_beyond_it(table):
    """Pooled, the means of the folds correlate with the outcomes by themselves: nobody foresaw anything."""
    predictors = {"mean": DummyRegressor(), "additive": Additive()}
    records = evaluate_predictors(
        table, METRICS, predictors, targets=["norm_acc"], protocols=[LeaveTwoTasksOut()]
    ).records
    assert len(records) == 4
    for record in records:
        assert abs(record["pooled_r"]) > 0.1
        assert record["r_beyond_mean"] is None
        assert record["r_beyond_mean_low"] is None


def test_what_hardly_leaves_the_training_mean_predicts_nothing_beyond_it(table):
    """A strong penalty shrinks predictions: to a hundredth of the outcomes' spread they count."""
    found = {}
    for strength in (100, 3000):
        result = evaluate_predictors(
            table, METRICS, {"it": Ridge((strength,))}, ["ties"], ["norm_acc"], [LeaveTwoTasksOut()]
        )
        own = result.predictions
        spreads = [(own[name] - own["training_mean"]).std() for name in ("predicted", "measured")]
        found[strength] = spreads[0] / spreads[1], result.records[0]["r_beyond_mean"]
    assert 0.01 < found[100][0] < 0.1
    assert found[100][1] > 0.5
    assert found[3000][0] < 0.01
    assert found[3000][1] is None


def test_an_exact_law_is_found_with_its_signs(table):
    result = evaluate_predictors(table, METRICS, {"ols": LinearRegression()}, ["ties"], ["norm_acc"])
    assert result.records[0]["r_mean"] == pytest.approx(1.0)
    assert result.records[0]["mae"] == pytest.approx(0.0, abs=1e-12)
    signs = np.sign(result.coefficients.groupby("metric")["coefficient"].mean().round(9))
    assert signs.to_dict() == {"first": 1, "second": -1, "third": 0}


def test_nothing_of_a_validation_row_reaches_its_fit(table, everything, evaluated):
    """Garbage in the rows of task c must not move any coefficient of the fold that leaves c out."""
    spoiled = table.copy()
    rows = (table["task_a"] == "c") | (table["task_b"] == "c")
    generator = np.random.default_rng(1)
    for column in [*METRICS, "norm_acc_ties", "norm_acc_average"]:
        spoiled.loc[rows, column] = 1e3 * generator.normal(size=int(rows.sum()))
    clean = evaluated.coefficients
    dirty = evaluate_predictors(
        spoiled, METRICS, everything, targets=["norm_acc"], protocols=LOTO
    ).coefficients
    own = clean["held_out"] == "c"
    assert set(clean.loc[own, "predictor"]) == set(everything) - {"mean"}
    np.testing.assert_allclose(
        clean.loc[own, "coefficient"], dirty.loc[own, "coefficient"], rtol=1e-6, atol=1e-9
    )
    others = clean.loc[~own, "coefficient"] - dirty.loc[~own, "coefficient"]
    assert others.abs().max() > 1e-3, "the garbage must matter where it may"


def test_other_columns_are_never_features(table, everything):
    leaking = table.assign(acc_ties_a=table["norm_acc_ties"], note="x")
    first, second = (
        evaluate_predictors(frame, METRICS, everything, ["ties"], ["norm_acc"], LOTO)
        for frame in (table, leaking)
    )
    assert first.records == second.records


def test_a_constant_prediction_has_no_correlation_but_is_counted_and_named(table):
    result = evaluate_predictors(table, METRICS, {"mean": DummyRegressor()}, ["ties"], ["norm_acc"])
    record = result.records[0]
    assert (record["r_mean"], record["r_std"], record["rho_mean"], record["train_r_mean"]) == (None,) * 4
    assert (record["n_undefined"], record["n_folds"]) == (6, 6)
    assert record["r2_over_training_mean"] == 0.0
    assert any("mean has no correlation in every fold" in note for note in result.notes)


def test_a_constant_outcome_in_one_fold_is_passed_over(table):
    rows = (table["task_a"] == "d") | (table["task_b"] == "d")
    table.loc[rows, "norm_acc_average"] = 0.5
    result = evaluate_predictors(table, METRICS, {"ols": LinearRegression()}, ["average"], ["norm_acc"])
    assert result.records[0]["n_undefined"] == 1
    defined = result.folds.loc[result.folds["held_out"] != "d", "r"]
    assert result.records[0]["r_mean"] == pytest.approx(defined.mean())
    assert any("in fold d" in note for note in result.notes)


def test_a_metric_constant_in_a_training_fold_gets_weight_zero_and_a_note(table, everything):
    rows = (table["task_a"] == "b") | (table["task_b"] == "b")
    table.loc[~rows, "third"] = 7.0
    result = evaluate_predictors(table, METRICS, everything, targets=["norm_acc"], protocols=LOTO)
    frozen = result.coefficients.query("metric == 'third' and held_out == 'b'")["coefficient"]
    assert len(frozen) == 2 * 3
    assert (frozen == 0).all()
    assert any(note.startswith("third is constant where b is held out") for note in result.notes)


def test_rows_per_method_or_complete(table):
    table.loc[2, "norm_acc_ties"] = np.nan
    fit = {"ols": LinearRegression()}
    own = evaluate_predictors(table, METRICS, fit, targets=["norm_acc"], protocols=LOTO)
    whole = evaluate_predictors(table, METRICS, fit, targets=["norm_acc"], protocols=LOTO, rows="complete")
    assert [r["n_pairs"] for r in own.records] == [14, 15]
    assert [r["n_pairs"] for r in whole.records] == [14, 14]
    assert any("1 pair left out" in note and "a-d" in note for note in own.notes)


def test_without_outcomes_there_is_nothing_to_predict(table):
    bare = table[["task_a", "task_b", *METRICS]]
    result = evaluate_predictors(bare, METRICS, {"ols": LinearRegression()})
    assert result.records == []
    assert len(result.notes) == 1


def test_a_method_without_any_value_is_named_and_skipped(table):
    table["norm_acc_average"] = np.nan
    result = evaluate_predictors(table, METRICS, {"ols": LinearRegression()}, targets=["norm_acc"])
    assert [record["method"] for record in result.records] == ["ties", "ties"]
    assert any("norm_acc_average" in note and "nothing was predicted" in note for note in result.notes)


def test_four_tasks_are_enough_and_wrong_words_are_refused(table, everything):
    four = table[~table["task_a"].isin(["a", "b"]) & ~table["task_b"].isin(["a", "b"])]
    assert len(evaluate_predictors(four, METRICS, everything, targets=["norm_acc"]).records) == 16
    with pytest.raises(UserError, match="Expected rows='per_method' or rows='complete', got 'some'"):
        evaluate_predictors(table, METRICS, everything, rows="some")
    with pytest.raises(UserError, match="Expected a target among"):
        evaluate_predictors(table, METRICS, everything, targets=["f1"])


def test_saved_files_can_be_read_back(evaluated, tmp_path):
    result = evaluated
    result.save(tmp_path)
    assert json.loads((tmp_path / "prediction.json").read_text()) == result.records
    read = pd.read_csv(tmp_path / "coefficients.csv")
    assert list(read.columns) == [
        "protocol",
        "method",
        "target",
        "predictor",
        "held_out",
        "metric",
        "coefficient",
    ]
    assert len(read) == len(result.coefficients)


def _published_rows(published, predictors, target):
    metrics = list(published.columns[2:30])
    result = evaluate_predictors(published, metrics, predictors, FIVE, [target], LOTO, rows="complete")
    assert {record["n_pairs"] for record in result.records} == {185}
    return {
        name: [_record(result, method=method, predictor=name)["r_mean"] for method in FIVE]
        for name in predictors
    }


def test_closed_forms_give_the_published_tables_figures(published):
    rows = _published_rows(published, {"ols": LinearRegression(), "additive": Additive(0.1)}, "acc")
    np.testing.assert_allclose(rows["ols"], [0.577, 0.420, 0.652, 0.430, 0.572], atol=5.1e-4)
    np.testing.assert_allclose(rows["additive"], [0.957, 0.991, 0.950, 0.997, 0.954], atol=5.1e-4)
    normalised = _published_rows(published, {"additive": Additive(0.1)}, "norm_acc")
    np.testing.assert_allclose(normalised["additive"], [0.847, 0.981, 0.715, 0.997, 0.844], atol=5.1e-4)


@pytest.mark.slow  # one method and fewer seeds of the same in test_published.py
def test_iterative_fits_come_close_to_the_published_tables_means(published):
    """Neither the published starts nor the reference grid of strengths is known, hence no third digit."""
    l1 = Pearson(
        penalty=1,
        initial_std=0.1,
        sum_to_one=False,
        max_steps=2000,
        patience=100,
        tolerance=1e-5,
        cutoff=1e-3,
    )
    rows = _published_rows(published, {"pearson_l1": l1, "lasso": Lasso()}, "acc")
    assert np.mean(rows["pearson_l1"]) == pytest.approx(0.544, abs=0.025)
    assert np.mean(rows["lasso"]) == pytest.approx(0.593, abs=0.015)


def test_a_predictor_that_asks_for_unknown_columns_is_refused(table):
    class Odd(LinearRegression):
        inputs = "everything"

    with pytest.raises(UserError, match="one of metrics, raw, tasks, both, got 'everything'"):
        evaluate_predictors(table, METRICS, {"odd": Odd()}, ["ties"], ["norm_acc"], LOTO)
