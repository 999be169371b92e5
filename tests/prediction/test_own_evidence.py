"""Predictors with columns of their own: solved by hand, studied on the same pairs, and named where they have none."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.prediction import (
    AdditiveProbe,
    Functional,
    Known,
    LeaveOneTaskOut,
    LeaveTwoTasksOut,
    Probe,
    Ridge,
    study_predictions,
)
from mergeability.prediction.pair_table import incidence
from mergeability.prediction.study import StudySettings

TASKS = "abcdefg"
ONE = StudySettings(permutations=0, seeds=0, ablation=False, targets=("norm_acc",))
FEW = StudySettings(permutations=19, seeds=0, ablation=False)
OWN = {
    "known": Known((0.3,)),
    "functional": Functional((0.3,)),
    "probe": Probe(),
    "additive_probe": AdditiveProbe(),
}
METRICS = ["noise_1", "noise_2"]


@pytest.fixture(scope="module")
def pairs():
    """Seven tasks; outcomes of two methods follow the probe, the base's agreement follows them less well."""
    generator = np.random.default_rng(4)
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    known = dict(zip(TASKS, generator.uniform(0.1, 0.9, len(TASKS)), strict=True))
    mean = (frame["task_a"].map(known) + frame["task_b"].map(known)) / 2
    for name in METRICS:
        frame[name] = generator.normal(size=len(frame))
    frame["base_agreement"] = mean
    frame["zero_shot_ratio"] = mean + 0.05 * generator.normal(size=len(frame))
    for target, column in (("norm_acc", "overlap"), ("acc", "confidence")):
        for method in ("ties", "ta"):
            outcome = 0.5 + 0.4 * mean + 0.03 * generator.normal(size=len(frame))
            frame[f"{target}_{method}"] = outcome
            frame[f"probe_{column}_{method}"] = outcome + 0.005 * generator.normal(size=len(frame))
        frame[f"ensemble_{column}"] = 0.6 + 0.3 * mean + 0.02 * generator.normal(size=len(frame))
    return frame


def records(result, predictor, protocol="l2to"):
    return {
        (one["target"], one["method"]): one
        for one in result.records
        if one["predictor"] == predictor and one["protocol"] == protocol
    }


def chosen(rows, **labels):
    for name, value in labels.items():
        rows = rows[rows[name] == value]
    return rows


def study(frame, settings=ONE):
    return study_predictions(frame, METRICS, {"ridge": Ridge((3,)), **OWN}, settings=settings)


@pytest.fixture(scope="module")
def whole(pairs):
    """The study of all pairs and both targets."""
    return study(pairs, FEW)


def test_each_is_studied_on_every_pair_under_every_protocol(whole):
    result = whole
    for name in OWN:
        for protocol, folds in (("loto", 7), ("l2to", 21)):
            found = records(result, name, protocol)
            assert set(found) == {(t, m) for t in ("norm_acc", "acc") for m in ("ties", "ta")}
            assert {one["n_folds"] for one in found.values()} == {folds}
            assert {one["n_pairs"] for one in found.values()} == {21}
    # What follows the outcome foresees it for two new models; noise does not.
    assert all(one["r_beyond_mean"] > 0.8 for one in records(result, "probe").values())
    assert all(one["r_beyond_mean"] > 0.3 for one in records(result, "functional").values())
    assert all((one["r_beyond_mean"] or 0) < 0.3 for one in records(result, "ridge").values())


def test_a_probe_is_its_column(pairs, whole):
    found = whole.predictions
    for target, column in (("norm_acc", "overlap"), ("acc", "confidence")):
        for method in ("ties", "ta"):
            rows = chosen(found, predictor="probe", protocol="l2to", target=target, method=method)
            assert rows["predicted"].tolist() == pairs[f"probe_{column}_{method}"].tolist()


@pytest.mark.parametrize(
    ("name", "target", "columns"),
    [
        ("known", "norm_acc", ["zero_shot_ratio"]),
        ("functional", "norm_acc", ["base_agreement", "ensemble_overlap"]),
        ("functional", "acc", ["base_agreement", "ensemble_confidence"]),
    ],
)
def test_ridge_on_own_columns_is_scikit_learns_on_columns_scaled_by_their_ranges(
    pairs, whole, name, target, columns
):
    rows = chosen(whole.predictions, predictor=name, protocol="l2to", target=target, method="ties")
    ends = pairs[["task_a", "task_b"]].to_numpy(dtype=object)
    expected = []
    for fold in LeaveTwoTasksOut().folds(ends):
        X = pairs[columns].to_numpy()
        low, high = X[fold.training].min(0), X[fold.training].max(0)
        X, y = 2 * (X - low) / (high - low) - 1, pairs[f"{target}_ties"].to_numpy()
        expected.append(
            SklearnRidge(0.3).fit(X[fold.training], y[fold.training]).predict(X[fold.validation])[0]
        )
    assert rows["predicted"].to_numpy() == pytest.approx(np.array(expected), abs=1e-9)


def test_additive_probe_is_two_regressions(pairs, whole):
    """Task effects of outcome and probe by scikit-learn's ridge, then least squares of what they leave."""
    rows = chosen(
        whole.predictions, predictor="additive_probe", protocol="loto", target="norm_acc", method="ta"
    )
    ends = pairs[["task_a", "task_b"]].to_numpy(dtype=object)
    J, y, p = (
        incidence(ends, tuple(TASKS)),
        pairs["norm_acc_ta"].to_numpy(),
        pairs["probe_overlap_ta"].to_numpy(),
    )
    expected = []
    for fold in LeaveOneTaskOut().folds(ends):
        t, v = fold.training, fold.validation
        of_y, of_p = SklearnRidge(0.1).fit(J[t], y[t]), SklearnRidge(0.1).fit(J[t], p[t])
        rest = LinearRegression(fit_intercept=False).fit(
            (p[t] - of_p.predict(J[t]))[:, None], y[t] - of_y.predict(J[t])
        )
        expected += list(of_y.predict(J[v]) + rest.predict((p[v] - of_p.predict(J[v]))[:, None]))
    assert rows["predicted"].to_numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_known_takes_the_labels_where_every_pair_has_them_and_says_which(pairs, whole):
    assert "known looks at zero_shot_ratio." in whole.notes
    some = pairs.assign(zero_shot_ratio=pairs["zero_shot_ratio"].where(pairs["task_a"] != "a"))
    result = study(some)
    assert "known looks at base_agreement. zero_shot_ratio is known for 15 of 21 pairs only." in result.notes
    assert {one["n_pairs"] for one in records(result, "known").values()} == {21}
    none = study(pairs.drop(columns="zero_shot_ratio"))
    assert "known looks at base_agreement." in none.notes


def test_columns_that_are_not_there_are_named_and_the_rest_is_studied(pairs):
    result = study(pairs[["task_a", "task_b", *METRICS, "norm_acc_ties", "acc_ties", "base_agreement"]])
    assert not records(result, "functional")
    assert records(result, "known")
    (note,) = [one for one in result.notes if "predicted nothing" in one]
    assert note.startswith("functional, probe, additive_probe predicted nothing: the table has no ")
    for part in ("ensemble_overlap", "probe_overlap_ties", "metric=[paper,functional]", "probe=64"):
        assert part in note


def test_a_task_without_functional_values_is_left_out_of_these_alone(pairs):
    holey = pairs.assign(ensemble_overlap=pairs["ensemble_overlap"].where(pairs["task_b"] != "g"))
    result = study(holey)
    assert records(result, "functional")["norm_acc", "ties"]["n_pairs"] == 15
    assert records(result, "probe")["norm_acc", "ties"]["n_pairs"] == 21
    assert any("6 pairs left out for an empty cell" in note for note in result.notes)


def test_other_predictors_never_see_the_columns(pairs):
    """Garbage in them changes nothing that looks at the metrics."""
    own = [name for name in pairs.columns if name.startswith(("probe_", "base_", "ensemble_", "zero_"))]
    spoiled = pairs.assign(**dict.fromkeys(own, 0.123))
    clean, other = (chosen(study(frame).predictions, predictor="ridge") for frame in (pairs, spoiled))
    assert clean["predicted"].tolist() == other["predicted"].tolist()


def test_left_out_outcomes_do_not_reach_their_own_fold(pairs):
    changed = pairs.copy()
    rows = (pairs["task_a"] == "c") | (pairs["task_b"] == "c")
    for column in ("norm_acc_ties", "norm_acc_ta", "acc_ties", "acc_ta"):
        changed.loc[rows, column] = 9.0
    found = [study(frame).predictions for frame in (pairs, changed)]
    for name in OWN:
        clean, spoiled = (chosen(one, predictor=name, protocol="loto", held_out="c") for one in found)
        assert len(clean) == 6 * 2
        assert clean["predicted"].tolist() == spoiled["predicted"].tolist()


def test_the_permutation_test_sees_what_each_evidence_adds(whole):
    tested = whole.tables["evidence"].set_index(["evidence", "target", "method"])
    assert set(tested.index.get_level_values("evidence")) == {"known", "functional", "probe"}
    assert tested.loc[("probe", "norm_acc", "ties"), "p_beyond"] == pytest.approx(1 / 20)
    assert tested.loc[("probe", "norm_acc", "ties"), "gain"] > 0.3
    assert tested.loc[("known", "norm_acc", "ties"), "columns"] == "zero_shot_ratio"


def test_complete_rows_are_those_of_all_methods(pairs):
    holey = pairs.assign(norm_acc_ta=pairs["norm_acc_ta"].where(pairs.index != 4))
    settings = StudySettings(permutations=0, seeds=0, ablation=False, rows="complete", targets=("norm_acc",))
    result = study(holey, settings=settings)
    counts = {records(result, name)["norm_acc", "ties"]["n_pairs"] for name in (*OWN, "ridge")}
    assert counts == {20}
