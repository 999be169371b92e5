"""The permutation test against explicitly permuted tables and plain loops of fits, for the same draws."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, pearsonr
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.prediction import PairTable
from mergeability.prediction.validation.permutation import _Test, permutation_test

METRICS = ["first", "second"]
TASKS = "abcdef"


def _pairs(tasks=TASKS, seed=0, strength=0.5):
    """Metrics with task effects and noise; `ties` listens to the first, `average` to nothing but tasks."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])

    def effects():
        own = dict(zip(tasks, generator.normal(size=len(tasks)), strict=True))
        return frame["task_a"].map(own) + frame["task_b"].map(own)

    for metric in METRICS:
        frame[metric] = effects() + generator.normal(size=len(frame))
    noise = 0.3 * generator.normal(size=(2, len(frame)))
    frame["acc_ties"] = effects() + strength * frame["first"] + noise[0]
    frame["acc_average"] = effects() + noise[1]
    return frame


def _found(frame, permutations=0, seed=0, methods=("ties", "average"), metrics=METRICS):
    table = PairTable.validate(frame, metrics, [f"acc_{method}" for method in methods])
    return permutation_test(table, [("acc", method) for method in methods], permutations, seed)


def _renamed(frame, drawn, tasks=TASKS):
    """Give pair (a, b) the metrics of (π(a), π(b)); rows whose new pair has none are dropped."""
    name = {task: tasks[drawn[i]] for i, task in enumerate(tasks)}
    own = {frozenset((row.task_a, row.task_b)): row for row in frame.itertuples()}
    rows = []
    for row in frame.to_dict("records"):
        other = own.get(frozenset((name[row["task_a"]], name[row["task_b"]])))
        if other is not None:
            rows.append(row | {metric: getattr(other, metric) for metric in METRICS})
    return pd.DataFrame(rows)


def _statistics(whole, frame, method):
    """r of ridge 3, and by which share ridge 30 of residuals lowers additive's error, over left-out tasks."""
    low, high = whole[METRICS].min(), whole[METRICS].max()
    X = (2 * (frame[METRICS] - low) / (high - low) - 1).to_numpy()
    y = frame[f"acc_{method}"].to_numpy()
    ends = frame[["task_a", "task_b"]].to_numpy()
    J = np.array([[float(task in pair) for task in TASKS] for pair in ends])
    r, additive_error, error = [], 0.0, 0.0
    for task in TASKS:
        out = np.array([task in pair for pair in ends])
        if out.all() or not out.any():
            continue
        predicted = SklearnRidge(3).fit(X[~out], y[~out]).predict(X[out])
        if out.sum() >= 3:
            r.append(pearsonr(predicted, y[out])[0])
        of_outcome = SklearnRidge(0.1).fit(J[~out], y[~out])
        of_metrics = SklearnRidge(0.1).fit(J[~out], X[~out])
        rest_x, rest_y = (
            X[~out] - of_metrics.predict(J[~out]),
            y[~out] - of_outcome.predict(J[~out]),
        )
        rest = SklearnRidge(30).fit(rest_x, rest_y)
        additive = y[out] - of_outcome.predict(J[out])
        both = additive - rest.predict(X[out] - of_metrics.predict(J[out]))
        additive_error += ((additive - additive.mean()) ** 2).sum()
        error += ((both - both.mean()) ** 2).sum()
    return np.mean(r), 1 - error / additive_error


CASES = {"all pairs": (), "two pairs missing": (3, 9)}


@pytest.fixture(params=CASES.values(), ids=CASES)
def frame(request):
    return _pairs().drop(index=list(request.param)).reset_index(drop=True)


def test_statistics_are_those_of_plain_loops_of_fits(frame):
    found = _found(frame).methods.set_index("method")
    for method in ("ties", "average"):
        r, gain = _statistics(frame, frame, method)
        assert found.loc[method, "r"] == pytest.approx(r)
        assert found.loc[method, "gain"] == pytest.approx(gain)


def test_statistics_of_a_permutation_are_those_of_the_explicitly_renamed_table(frame):
    rows = PairTable.validate(frame, METRICS, ["acc_ties"]).rows("acc_ties")[0]
    test = _Test(rows, rows.outcome[:, None])
    generator = np.random.default_rng(4)
    for drawn in [generator.permutation(6) for _ in range(4)]:
        place = {pair: i for i, pair in enumerate(map(frozenset, rows.ends))}
        name = {task: TASKS[drawn[i]] for i, task in enumerate(rows.tasks)}
        taken = np.array([place.get(frozenset((name[a], name[b])), -1) for a, b in rows.ends])
        found = np.ravel(test._statistics(taken))
        np.testing.assert_allclose(found, _statistics(frame, _renamed(frame, drawn), "ties"), rtol=1e-6)


def test_a_permutation_that_changes_nothing_counts_as_equally_good():
    """Of four tasks, one permutation in 24 is the identity; an outcome that is the metric beats all others."""
    frame = pd.DataFrame(list(combinations("abcd", 2)), columns=["task_a", "task_b"])
    frame["first"] = [0.0, 1.0, 3.0, 7.0, 15.0, 31.0]
    frame["acc_ties"] = frame["first"]
    generator = np.random.default_rng(3)
    identities = sum((generator.permutation(4) == np.arange(4)).all() for _ in range(60))
    assert identities > 0
    found = _found(frame, 60, 3, ["ties"], ["first"])
    assert found.methods["p"].item() == pytest.approx((1 + identities) / 61)
    assert found.single["p"].item() == pytest.approx((1 + identities) / 61)


def test_p_values_count_explicitly_renamed_tables(frame):
    permutations = 9
    generator = np.random.default_rng(4)
    draws = [generator.permutation(6) for _ in range(permutations)]
    found = _found(frame, permutations, 4)
    methods = found.methods.set_index("method")
    single = found.single.set_index(["method", "metric"])
    counted = set()
    for method in ("ties", "average"):
        r, gain = _statistics(frame, frame, method)
        as_good, as_large = np.zeros(2), np.zeros(2)
        for drawn in draws:
            renamed = _renamed(frame, drawn)
            other_r, other_gain = _statistics(frame, renamed, method)
            as_good += [other_r >= r, other_gain >= gain]
            for m, metric in enumerate(METRICS):
                own = abs(pearsonr(frame[metric], frame[f"acc_{method}"])[0])
                as_large[m] += abs(pearsonr(renamed[metric], renamed[f"acc_{method}"])[0]) >= own - 1e-12
        counted |= set(as_good)
        expected = (1 + as_good) / (1 + permutations)
        assert methods.loc[method, ["p", "p_beyond"]].tolist() == pytest.approx(expected.tolist())
        expected = (1 + as_large) / (1 + permutations)
        assert [single.loc[(method, metric), "p"] for metric in METRICS] == pytest.approx(expected.tolist())
    assert len(counted) > 1, "the counts must differ between statistics"


def test_pairs_that_a_permutation_sends_to_missing_ones_are_dropped():
    frame = _pairs().drop(index=[3, 9]).reset_index(drop=True)
    sizes = {len(_renamed(frame, np.random.default_rng(seed).permutation(6))) for seed in range(20)}
    assert sizes <= {11, 12, 13}
    assert len(sizes) > 1, "the cases above must contain dropped pairs"


def test_single_correlations_and_their_usual_p_are_scipys():
    frame = _pairs()
    frame.loc[2, "second"] = np.nan
    found = _found(frame, 5).single.set_index(["method", "metric"])
    for method in ("ties", "average"):
        for metric in METRICS:
            known = frame[metric].notna()
            r, p = pearsonr(frame.loc[known, metric], frame.loc[known, f"acc_{method}"])
            row = found.loc[(method, metric)]
            assert row["r"] == pytest.approx(r)
            assert row["p_usual"] == pytest.approx(p)
            assert row["n_pairs"] == known.sum()


@pytest.fixture(scope="module")
def many_p_values():
    """p-values of outcomes that listen to tasks and to nothing else, and of as many that listen to a metric."""
    found = [_found(_pairs("abcdefgh", seed), 19, seed) for seed in range(40)]
    return (
        pd.concat([one.methods for one in found], ignore_index=True),
        pd.concat([one.single for one in found], ignore_index=True),
    )


def test_p_values_of_an_independent_outcome_are_uniform(many_p_values):
    methods, single = many_p_values
    own = methods[methods["method"] == "average"]
    first = single[(single["method"] == "average") & (single["metric"] == "first")]
    for p in (own["p"], own["p_beyond"], first["p"]):
        assert len(p) == 40
        # On the grid of 20 values, a uniform law at most a step off.
        assert kstest(p, lambda x: np.floor(x * 20 + 1e-9) / 20).pvalue > 0.01
        assert np.mean(p <= 0.1) < 0.25


def test_the_usual_p_value_is_too_small_for_outcomes_and_metrics_with_task_effects(many_p_values):
    single = many_p_values[1].query("method == 'average' and metric == 'first'")
    assert np.mean(single["p_usual"] < 0.05) > 0.15


def test_p_values_of_a_dependent_outcome_are_small(many_p_values):
    own = many_p_values[0].query("method == 'ties'")
    # The smallest value there is: no permutation is as good.
    assert own["p_beyond"].median() == pytest.approx(0.05)
    assert np.mean(own["gain"] > 0) > 0.9


def test_without_permutations_there_is_no_p_and_draws_are_those_of_the_seed():
    frame = _pairs()
    none = _found(frame, 0)
    assert none.methods[["p", "p_beyond"]].isna().all(axis=None)
    assert none.single["p"].isna().all()
    first, again, other = (_found(frame, 10, seed).methods for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_outcomes_are_tested_alike_together_and_alone():
    frame = _pairs()
    together = _found(frame, 8)
    for method in ("ties", "average"):
        alone = _found(frame, 8, methods=(method,))
        own = together.methods.query("method == @method").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, alone.methods)
        own = together.single.query("method == @method").reset_index(drop=True)
        pd.testing.assert_frame_equal(own.sort_values("metric"), alone.single.sort_values("metric"))


def test_a_constant_metric_has_no_correlation_and_no_p():
    frame = _pairs().assign(second=1.0)
    row = _found(frame, 10).single.query("metric == 'second'")
    assert row[["r", "p", "p_usual"]].isna().all(axis=None)


def test_progress_wraps_the_permutations():
    table = PairTable.validate(_pairs(), METRICS, ["acc_ties"])
    seen = []

    def progress(draws, title, total):
        seen.append((title, total))
        return draws

    permutation_test(table, [("acc", "ties")], 7, 0, progress)
    assert seen == [("permutation test", 7)]


def test_single_metrics_correlate_with_published_outcomes_as_published(published):
    metrics = list(published.columns[2:30])
    methods = ["arithmetic", "weight_avg", "isotropic", "tsv"]
    table = PairTable.validate(published, metrics, [f"norm_acc_{method}" for method in methods])
    found = permutation_test(table, [("norm_acc", method) for method in methods], 0).single
    r = found.set_index(["metric", "method"])["r"]
    expected = {
        "activation_dot_product": [0.094, 0.450, -0.095, 0.572],
        "task_vector_l2_distance": [-0.079, -0.079, -0.041, -0.211],
    }
    for metric, values in expected.items():
        np.testing.assert_allclose([r[metric, method] for method in methods], values, atol=5.1e-4)


def test_an_outcome_of_two_pairs_is_not_tested():
    frame = _pairs().assign(acc_tsv=[0.5, 0.6, *[np.nan] * 13])
    found = _found(frame, methods=("tsv", "ties"))
    assert found.methods["method"].tolist() == ["ties"]
    single = found.single.set_index(["method", "metric"])
    assert single.loc[("ties", "first"), "n_pairs"] == 15
    assert single.loc["ties", "r"]["first"] == pytest.approx(pearsonr(frame["first"], frame["acc_ties"])[0])
    assert not np.isfinite(single["r"].reindex([("tsv", "first"), ("tsv", "second")])).any()
