"""What others got on the published pair table, leave-one-task-out, target `acc`, rows complete for all five."""

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction import (
    MLP,
    Additive,
    BackwardElimination,
    Dyadic,
    ElasticNet,
    ForwardSelection,
    LeaveOneTaskOut,
    LeaveTwoTasksOut,
    PairTable,
    Pearson,
    Ridge,
    Trees,
    evaluate_predictors,
)
from mergeability.prediction.predictors.scaling import RangeScaler
from mergeability.prediction.validation.scores import pearson_r

FIVE = ["weight_avg", "arithmetic", "tsv", "ties", "dare"]


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_mean_over_seeds_of_pearson_l1_is_the_published_one(published, count):
    outcomes = [f"acc_{method}" for method in FIVE]
    table = PairTable.validate(published, list(published.columns[2:30]), outcomes)
    problems, validation = [], []
    for outcome in outcomes:
        rows, _ = table.rows(outcome, outcomes)
        for training, held_out in LeaveOneTaskOut().split(rows.features, groups=rows.ends):
            X = RangeScaler().fit(rows.features[training]).transform(rows.features)
            problems.append((X[training], rows.outcome[training], None))
            validation.append((X[held_out], rows.outcome[held_out]))
    model = Pearson(
        penalty=1,
        initial_std=0.1,
        sum_to_one=False,
        max_steps=2000,
        patience=100,
        tolerance=1e-5,
        cutoff=1e-3,
    )
    seeds = np.repeat(np.arange(count), len(problems)).tolist()
    fitted = model.fit_many(problems * count, seeds)
    r = [pearson_r(X @ fit.coef_, y) for fit, (X, y) in zip(fitted, validation * count, strict=True)]
    means = np.reshape(r, (count, 5, 20)).mean(axis=(0, 2))
    np.testing.assert_allclose(means, [0.609, 0.466, 0.639, 0.469, 0.622], atol=0.03)


def test_no_predictor_falls_behind_least_squares_for_tsv(published):
    """Least squares gets .652 (`test_evaluate.py`)."""
    metrics = list(published.columns[2:30])
    whole = published[published[metrics + [f"acc_{method}" for method in FIVE]].notna().all(axis=1)]
    least = {
        "elastic_net": (ElasticNet(), 0.66),
        "backward_elimination": (BackwardElimination(), 0.655),
        "forward_selection": (ForwardSelection(), 0.665),
        "mlp": (MLP(), 0.66),
        "trees": (Trees(trees=20), 0.79),
    }
    predictors = {name: model for name, (model, _) in least.items()}
    records = evaluate_predictors(whole, metrics, predictors, ["tsv"], ["acc"], [LeaveOneTaskOut()]).records
    assert {record["n_pairs"] for record in records} == {185}
    found = {record["predictor"]: record["r_mean"] for record in records}
    assert not {name: found[name] for name, (_, bound) in least.items() if found[name] < bound}


@pytest.mark.slow
def test_no_predictor_falls_behind_what_others_got(published):
    """Least squares gets .530, the published network .493, a lasso .593, trees .726."""
    least = {
        "elastic_net": (ElasticNet(), 0.575),
        "backward_elimination": (BackwardElimination(), 0.530),
        "forward_selection": (ForwardSelection(), 0.525),
        "mlp": (MLP(), 0.560),
        "trees": (Trees(trees=40), 0.700),
    }
    metrics = list(published.columns[2:30])
    predictors = {name: model for name, (model, _) in least.items()}
    records = evaluate_predictors(
        published, metrics, predictors, FIVE, ["acc"], [LeaveOneTaskOut()], rows="complete"
    ).records
    means = pd.DataFrame(records).groupby("predictor")["r_mean"].mean()
    behind = {name: means[name] for name, (_, bound) in least.items() if means[name] < bound}
    assert not behind


def _by_method(published, predictors, target, protocol, score):
    metrics = list(published.columns[2:30])
    records = evaluate_predictors(
        published, metrics, predictors, FIVE, [target], [protocol], rows="complete"
    ).records
    assert {record["n_pairs"] for record in records} == {185}
    return pd.DataFrame(records).pivot_table(index="method", columns="predictor", values=score, sort=False)


def test_task_effects_alone_foresee_most_and_metrics_add_to_them_for_tsv(published):
    predictors = {"additive": Additive(), "dyadic": Dyadic()}
    acc, norm_acc = (
        _by_method(published, predictors, target, LeaveOneTaskOut(), "r_mean")
        for target in ("acc", "norm_acc")
    )
    assert acc["additive"].mean() >= 0.96
    assert norm_acc["additive"].mean() >= 0.87
    for scores in (acc, norm_acc):
        assert (scores["dyadic"] >= scores["additive"] - 0.005).all()
    assert norm_acc.loc["tsv", "dyadic"] > norm_acc.loc["tsv", "additive"]


def test_pairs_of_two_new_tasks_are_foreseen_beyond_the_mean_as_a_plain_loop_does(published):
    metrics = list(published.columns[2:30])
    outcomes = [f"norm_acc_{method}" for method in FIVE]
    whole = published[published[metrics + outcomes].notna().all(axis=1)]
    result = evaluate_predictors(
        whole, metrics, {"ridge": Ridge()}, ["tsv"], ["norm_acc"], [LeaveTwoTasksOut()]
    )
    found = result.predictions[result.predictions["method"] == "tsv"]
    record = next(record for record in result.records if record["method"] == "tsv")
    assert record["r_beyond_mean"] == pytest.approx(0.48, abs=0.01)
    # The same end to end, every strength tried by solving normal equations.
    ends, y = whole[["task_a", "task_b"]].to_numpy(), whole["norm_acc_tsv"].to_numpy()
    raw = whole[metrics].to_numpy()
    apart = np.array([[not set(one) & set(other) for other in ends] for one in ends])
    strengths = [1000, 300, 100, 30, 10, 3, 1]  # of equals the largest comes first
    beyond, truth = [], []
    every_twentieth = range(0, len(y), 20)
    for row in every_twentieth:
        kept = np.flatnonzero(apart[row])
        low, high = raw[kept].min(axis=0), raw[kept].max(axis=0)
        X = 2 * (raw - low) / (high - low) - 1
        scores = []
        inner = [(kept[apart[one][kept]], one) for one in kept]
        sums = [_normal_equations(X[rows], y[rows]) for rows, _ in inner]
        grams = np.stack([one[0] for one in sums])
        pulls = np.stack([one[1] for one in sums])
        for strength in strengths:
            weights = np.linalg.solve(grams + strength * np.eye(28), pulls[:, :, None])[:, :, 0]
            predicted = [
                (X[one] - mean) @ w for (_, one), (_, _, mean, _), w in zip(inner, sums, weights, strict=True)
            ]
            measured = [y[one] - level for (_, one), (_, _, _, level) in zip(inner, sums, strict=True)]
            scores.append(np.corrcoef(predicted, measured)[0, 1])
        gram, pull, mean, level = _normal_equations(X[kept], y[kept])
        w = np.linalg.solve(gram + strengths[int(np.argmax(scores))] * np.eye(28), pull)
        beyond.append((X[row] - mean) @ w)
        truth.append(y[row] - level)
    own = found.iloc[list(every_twentieth)]
    np.testing.assert_allclose(own["predicted"] - own["training_mean"], beyond, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(own["measured"] - own["training_mean"], truth)
    whole_beyond, whole_truth = (found[name] - found["training_mean"] for name in ("predicted", "measured"))
    assert record["r_beyond_mean"] == pytest.approx(np.corrcoef(whole_beyond, whole_truth)[0, 1])


def _normal_equations(X, y):
    centred = X - X.mean(axis=0)
    return centred.T @ centred, centred.T @ (y - y.mean()), X.mean(axis=0), y.mean()
