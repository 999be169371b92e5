"""The agreement of methods about pairs against SciPy, NumPy's least squares and a case solved by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mergeability.prediction.questions.consistency import method_consistency

CORRELATIONS = ["rho", "rho_low", "rho_high", "rho_beyond"]


def _pairs(tasks):
    return pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])


def _common(frame, tasks, generator):
    effects = dict(zip(tasks, generator.normal(size=len(tasks)), strict=True))
    return frame["task_a"].map(effects) + frame["task_b"].map(effects)


def _only(frame, *methods):
    found = method_consistency(frame, [("acc", method) for method in methods])
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture
def pairs():
    """Seven tasks; each method has its own holes, rounding makes ties, and some pairs name b before a."""
    generator = np.random.default_rng(5)
    frame = _pairs("abcdefg")
    common = _common(frame, "abcdefg", generator)
    shared = generator.normal(size=21)
    for method, holes in {"ties": [3], "tsv": [3, 10], "dare": [0, 20]}.items():
        frame[f"acc_{method}"] = np.round(50 + common + shared + generator.normal(size=21), 1)
        frame.loc[holes, f"acc_{method}"] = np.nan
    turned = frame.index % 3 == 0
    frame.loc[turned, ["task_a", "task_b"]] = frame.loc[turned, ["task_b", "task_a"]].to_numpy()
    return frame


def _left(frame, column):
    """What NumPy's least squares on an intercept and one column a task leaves."""
    ends = frame[["task_a", "task_b"]].to_numpy()
    columns = np.array([[1.0, *(float(task in pair) for task in "abcdefg")] for pair in ends])
    y = frame[column].to_numpy()
    return y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]


@pytest.mark.parametrize(
    ("a", "b", "count"), [("ties", "tsv", 19), ("ties", "dare", 18), ("tsv", "dare", 17)]
)
def test_both_correlations_are_scipys_over_the_pairs_that_both_methods_have(pairs, a, b, count):
    both = pairs.dropna(subset=[f"acc_{a}", f"acc_{b}"])
    row = _only(pairs, a, b)
    assert row["n_pairs"] == len(both) == count
    assert row["rho"] == pytest.approx(stats.spearmanr(both[f"acc_{a}"], both[f"acc_{b}"])[0])
    beyond = stats.spearmanr(_left(both, f"acc_{a}"), _left(both, f"acc_{b}"))[0]
    assert row["rho_beyond"] == pytest.approx(beyond)
    assert abs(row["rho"] - row["rho_beyond"]) > 0.01, "the two must differ for this to be a test"


def test_the_interval_ranks_anew_without_each_task(pairs):
    both = pairs.dropna()
    without = []
    for task in "abcdefg":
        kept = both[(both["task_a"] != task) & (both["task_b"] != task)]
        without.append(np.arctanh(stats.spearmanr(kept["acc_ties"], kept["acc_tsv"])[0]))
    error = np.sqrt(5 / 14 * sum((z - np.mean(without)) ** 2 for z in without))
    z = np.arctanh(stats.spearmanr(both["acc_ties"], both["acc_tsv"])[0])
    half = stats.norm.ppf(0.975) * error
    row = _only(both, "ties", "tsv")
    assert (row["rho_low"], row["rho_high"]) == pytest.approx(
        (np.tanh(z - half), np.tanh(z + half)), abs=1e-6
    )


def test_one_row_a_target_and_two_methods_in_the_order_given(pairs):
    pairs["norm_acc_ties"], pairs["norm_acc_dare"] = pairs["acc_ties"], -pairs["acc_ties"]
    outcomes = [
        ("norm_acc", "ties"),
        ("norm_acc", "dare"),
        *(("acc", one) for one in ("ties", "tsv", "dare")),
    ]
    found = method_consistency(pairs, outcomes)
    assert list(zip(found["target"], found["method_a"], found["method_b"], strict=True)) == [
        ("norm_acc", "ties", "dare"),
        ("acc", "ties", "tsv"),
        ("acc", "ties", "dare"),
        ("acc", "tsv", "dare"),
    ]
    assert found.loc[0, CORRELATIONS].tolist() == pytest.approx([-1] * 4)


def test_only_order_counts(pairs):
    whole = pairs.dropna().assign(acc_bent=lambda frame: np.exp(frame["acc_ties"] / 10))
    assert _only(whole, "ties", "bent")["rho"] == pytest.approx(1)


def test_four_tasks_by_hand():
    """With four tasks what task effects cannot say is one value for each two pairs without a task in common.

    ties has .02, -.03, .01 for ab|cd, ac|bd, ad|bc, tsv .03, -.01, -.02: ranks 3, 1, 2 and 3, 2, 1, whose
    correlation is 1 - 6 · 2 / (3 · 8) = 1/2. Equal values twice each change nothing.
    """
    frame = _pairs("abcd")  # ab, ac, ad, bc, bd, cd
    effects = {"a": 0.31, "b": -0.17, "c": 0.07, "d": 0.22}
    common = 0.5 + frame["task_a"].map(effects) + frame["task_b"].map(effects)
    p, q, r = 0.02, -0.03, 0.01
    frame["acc_ties"] = common + np.array([p, q, r, r, q, p])
    p, q, r = 0.03, -0.01, -0.02
    frame["acc_tsv"] = 0.9 - 2.3 * common + np.array([p, q, r, r, q, p])
    row = _only(frame, "ties", "tsv")
    assert row["rho_beyond"] == pytest.approx(0.5)
    assert row["rho"] == pytest.approx(stats.spearmanr(frame["acc_ties"], frame["acc_tsv"])[0])


def test_methods_that_agree_about_tasks_alone_are_told_from_those_that_agree_about_pairs():
    generator = np.random.default_rng(0)
    frame = _pairs("abcdefghijklmnop")
    common = _common(frame, "abcdefghijklmnop", generator)
    first, second = 0.05 * generator.normal(size=(2, len(frame)))
    frame["acc_ties"], frame["acc_tsv"], frame["acc_dare"] = common + first, common + second, first - common
    same_tasks, same_rest = _only(frame, "ties", "tsv"), _only(frame, "ties", "dare")
    assert same_tasks["rho"] > 0.98
    assert same_tasks["rho_low"] > 0.95
    assert abs(same_tasks["rho_beyond"]) < 0.2
    assert same_rest["rho"] < -0.98
    assert same_rest["rho_beyond"] == pytest.approx(1)


def test_what_is_undefined_is_nan(pairs):
    whole = pairs.dropna()
    flat = _only(whole.assign(acc_flat=0.1 + 0.2), "ties", "flat")
    two, none = _only(whole.head(2), "ties", "tsv"), _only(whole.head(0), "ties", "tsv")
    for row, count in ((flat, len(whole)), (two, 2), (none, 0)):
        assert row[CORRELATIONS].isna().all()
        assert row["n_pairs"] == count


def test_task_effects_that_explain_everything_leave_nothing_to_agree_about():
    generator = np.random.default_rng(1)
    frame = _pairs("abcdef")
    common = _common(frame, "abcdef", generator)
    frame["acc_ties"], frame["acc_tsv"] = common + generator.normal(size=15), 70 + common
    exact = _only(frame, "ties", "tsv")
    assert not np.isnan(exact["rho"])
    assert np.isnan(exact["rho_beyond"])
    # Four tasks and five pairs leave one dimension, in which everything agrees or disagrees perfectly.
    frame = _pairs("abcd").assign(acc_ties=generator.normal(size=6), acc_tsv=generator.normal(size=6))
    assert not np.isnan(_only(frame, "ties", "tsv")["rho_beyond"])
    for count in (5, 4):
        row = _only(frame.head(count), "ties", "tsv")
        assert not np.isnan(row["rho"])
        assert np.isnan(row["rho_beyond"])


def test_a_method_alone_has_nobody_to_agree_with(pairs):
    found = method_consistency(pairs, [("acc", "ties")])
    assert found.empty
    assert list(found) == ["target", "method_a", "method_b", *CORRELATIONS, "n_pairs"]
