"""Kinds of evidence compared: against plain loops with scikit-learn, within groups of tasks and across them."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import MinMaxScaler

from mergeability.errors import UserError
from mergeability.prediction import Additive, AdditiveProbe, Functional, Known, Probe, Ridge
from mergeability.prediction.questions import evidence_comparison
from mergeability.prediction.questions.evidence_comparison import KEYS, compare_evidence, over_seeds

OLD, NEW = list("abcdef"), list("uvwxy")
METHODS = ("ties", "ta")
STRENGTH = 0.3
FIXED = {
    "mean": DummyRegressor(),
    "additive": Additive(0.1),
    "ridge": Ridge((STRENGTH,)),
    "known": Known((STRENGTH,)),
    "functional": Functional((STRENGTH,)),
    "probe": Probe(),
    "additive_probe": AdditiveProbe(),
}
FEATURES = {
    "ridge": ["one", "two"],
    "functional": ["base_agreement", "ensemble_overlap"],
    "activation": ["two"],
}


def _pairs(seed: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(list(combinations([*OLD, *NEW], 2)), columns=["task_a", "task_b"])
    for name in ("one", "two", "base_agreement", "ensemble_overlap"):
        frame[name] = generator.uniform(size=len(frame))
    for method in METHODS:
        noise = 0.1 * generator.normal(size=(2, len(frame)))
        frame[f"norm_acc_{method}"] = 0.3 + 0.4 * frame["base_agreement"] + noise[0]
        frame[f"probe_overlap_{method}"] = frame[f"norm_acc_{method}"] + 0.02 + noise[1] / 2
    return frame


def _compare(pairs, groups=None):
    groups = {"old": OLD, "new": NEW} if groups is None else groups
    return compare_evidence(pairs, ["one", "two"], groups, {"activation": ["two"]}, targets=("norm_acc",))


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_comparison, "PREDICTORS", FIXED)
        return _compare(_pairs())


def _row(table, group, predictor, situation="both new"):
    same = (table["group"] == group) & (table["predictor"] == predictor) & (table["situation"] == situation)
    return table[same].iloc[0]


def _fitted(rows: pd.DataFrame, training: np.ndarray, validation: np.ndarray, columns, method) -> np.ndarray:
    """Predict by scikit-learn alone: columns scaled to [-1, 1] by the training rows, then ridge."""
    scaler = MinMaxScaler((-1, 1)).fit(rows.loc[training, columns])
    model = SklearnRidge(STRENGTH).fit(
        scaler.transform(rows.loc[training, columns]), rows.loc[training, f"norm_acc_{method}"]
    )
    return model.predict(scaler.transform(rows.loc[validation, columns]))


def _two_left_out(rows, columns, method):
    """Predict each pair by a fit on the pairs that share no task with it; return the predictions and training means."""
    predicted, means = [], []
    for a, b in rows[["task_a", "task_b"]].to_numpy():
        training = ~rows[["task_a", "task_b"]].isin([a, b]).any(axis=1).to_numpy()
        own = (rows["task_a"] == a).to_numpy() & (rows["task_b"] == b).to_numpy()
        predicted += list(_fitted(rows, training, own, columns, method))
        means.append(rows.loc[training, f"norm_acc_{method}"].mean())
    return np.array(predicted), np.array(means)


@pytest.mark.parametrize("predictor", ["ridge", "functional", "activation"])
def test_both_new_within_a_group_is_a_plain_loop_with_scikit_learn(found, predictor):
    rows = _pairs()[lambda one: one["task_a"].isin(OLD) & one["task_b"].isin(OLD)].reset_index(drop=True)
    r, error = [], []
    for method in METHODS:
        predicted, means = _two_left_out(rows, FEATURES[predictor], method)
        measured = rows[f"norm_acc_{method}"].to_numpy()
        r.append(np.corrcoef(predicted - means, measured - means)[0, 1])
        error.append(np.abs(predicted - measured).mean())
    row = _row(found.scores, "old", predictor)
    assert row["r"] == pytest.approx(np.mean(r))
    assert row["mae"] == pytest.approx(np.mean(error))
    assert (row["n_pairs"], row["n_methods"]) == (15, 2)


def test_the_interval_over_tasks_leaves_each_out_of_all_methods(found):
    rows = _pairs()[lambda one: one["task_a"].isin(OLD) & one["task_b"].isin(OLD)].reset_index(drop=True)
    sides = []
    for method in METHODS:
        predicted, means = _two_left_out(rows, FEATURES["functional"], method)
        sides.append((predicted - means, rows[f"norm_acc_{method}"].to_numpy() - means))

    def mean_r(kept):
        return np.mean([np.corrcoef(p[kept], m[kept])[0, 1] for p, m in sides])

    without = [mean_r(~rows[["task_a", "task_b"]].isin([task]).any(axis=1).to_numpy()) for task in OLD]
    z, count = np.arctanh(without), len(OLD)
    error = np.sqrt((count - 2) / (2 * count) * ((z - z.mean()) ** 2).sum())
    whole = np.arctanh(mean_r(np.ones(len(rows), dtype=bool)))
    row = _row(over_seeds({0: found}), "old", "functional")
    assert row["r_low"] == pytest.approx(np.tanh(whole - stats.norm.ppf(0.975) * error), abs=1e-6)
    assert row["r_high"] == pytest.approx(np.tanh(whole + stats.norm.ppf(0.975) * error), abs=1e-6)


def test_across_groups_is_one_fit_on_the_pairs_of_the_first(found):
    rows = _pairs()
    fitted, new = ((rows["task_a"].isin(own) & rows["task_b"].isin(own)).to_numpy() for own in (OLD, NEW))
    r, covered, widths = [], [], []
    for method in METHODS:
        measured = rows.loc[new, f"norm_acc_{method}"].to_numpy()
        predicted = _fitted(rows, fitted, new, FEATURES["functional"], method)
        r.append(np.corrcoef(predicted, measured)[0, 1])
        old = rows[fitted].reset_index(drop=True)
        off = np.sort(
            np.abs(_two_left_out(old, FEATURES["functional"], method)[0] - old[f"norm_acc_{method}"])
        )
        widths.append(off[int(np.ceil(16 * 0.9)) - 1])
        inside = np.abs(predicted - measured) <= widths[-1]
        ends = rows.loc[new, ["task_a", "task_b"]].to_numpy()
        covered.append(np.mean([inside[(ends == task).any(axis=1)].mean() for task in NEW]))
    row = _row(found.scores, "old to new", "functional")
    assert row["r"] == pytest.approx(np.mean(r))
    assert row["half_width"] == pytest.approx(np.mean(widths)), "calibrated on the pairs of the fitted group"
    assert row["coverage"] == pytest.approx(np.mean(covered))
    assert row["n_pairs"] == 10


def test_the_probe_is_read_directly_and_chooses_the_method(found):
    rows = _pairs()[lambda one: one["task_a"].isin(NEW) & one["task_b"].isin(NEW)]
    measured, read = (
        rows[[f"{name}_{method}" for method in METHODS]].to_numpy() for name in ("norm_acc", "probe_overlap")
    )
    row = _row(found.scores, "new", "probe")
    assert row["bias"] == pytest.approx((read - measured).mean())
    assert row["mae"] == pytest.approx(np.abs(read - measured).mean())
    chosen = measured[np.arange(len(rows)), read.argmax(axis=1)]
    assert row["regret"] == pytest.approx((measured.max(axis=1) - chosen).mean())
    other = _row(found.scores, "old to new", "probe")
    assert [other[name] for name in ("bias", "mae", "regret")] == pytest.approx(
        [row[n] for n in ("bias", "mae", "regret")]
    )


def test_a_known_partner_is_the_mean_over_folds(found):
    rows = _pairs()[lambda one: one["task_a"].isin(OLD) & one["task_b"].isin(OLD)].reset_index(drop=True)
    ends, r = rows[["task_a", "task_b"]], []
    for method in METHODS:
        for task in OLD:
            held_out = ends.isin([task]).any(axis=1).to_numpy()
            tasks = np.array([ends.isin([one]).any(axis=1) for one in OLD], dtype=float).T
            y = rows[f"norm_acc_{method}"].to_numpy()
            predicted = SklearnRidge(0.1).fit(tasks[~held_out], y[~held_out]).predict(tasks[held_out])
            r.append(np.corrcoef(predicted, y[held_out])[0, 1])
    assert _row(found.scores, "old", "additive", "known partner")["r"] == pytest.approx(np.mean(r))
    alone = found.scores[found.scores["situation"] == "both new"]
    assert not {"additive", "additive_probe"} & set(alone["predictor"])


def test_seeds_are_averaged_with_students_t(found):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_comparison, "PREDICTORS", FIXED)
        seeds = {0: found, **{seed: _compare(_pairs(seed), {"old": OLD}) for seed in (1, 2)}}
    row = _row(over_seeds(seeds), "old", "ridge")
    r = np.array([_row(one.scores, "old", "ridge")["r"] for one in seeds.values()])
    assert row["r"] == pytest.approx(r.mean())
    interval = stats.t.interval(0.95, 2, r.mean(), stats.sem(r))
    assert (row["seed_low"], row["seed_high"]) == pytest.approx(interval)
    assert row["seeds"] == 3
    without = [one.without for one in seeds.values()]
    means = (
        pd.concat(without).groupby([*KEYS, "task"])["r"].mean().loc["old", "both new", "norm_acc", "ridge"]
    )
    assert len(means) == len(OLD)
    one = _row(over_seeds({0: found}), "old", "ridge")
    assert np.isnan(one["seed_low"])
    assert one["r_low"] < one["r"] < one["r_high"]


def test_a_small_group_is_left_out_and_named():
    found = _compare(_pairs(), {"old": OLD, "small": ["u", "v"]})
    assert set(found.scores["group"]) == {"old"}
    assert "Group small is left out: 2 of its tasks are in the table, and 4 are needed." in found.notes


def test_missing_probes_are_named():
    pairs = _pairs().drop(columns=[f"probe_overlap_{method}" for method in METHODS])
    found = _compare(pairs, {"old": OLD})
    assert "probe" not in set(found.scores["predictor"])
    assert any(
        note.startswith("probe predicted nothing: the table lacks its columns") for note in found.notes
    )


@pytest.mark.parametrize(
    ("groups", "pairs", "sentence"),
    [
        ({"few": ["a", "b"]}, _pairs(), "Expected at least 4 tasks in one group"),
        ({"old": OLD}, _pairs().drop(columns=[f"norm_acc_{method}" for method in METHODS]), "contains none. Set merge=…"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(groups, pairs, sentence):
    with pytest.raises(UserError, match=sentence):
        _compare(pairs, groups)
