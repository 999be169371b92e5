"""The fitted predictor as a file: its numbers by scikit-learn, its silence by hand."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.errors import UserError
from mergeability.prediction import LeaveTwoTasksOut, Ridge, Scorer, evaluate_predictors
from mergeability.prediction.fits import Evidence, MethodFit
from mergeability.prediction.scorer import FILE, transfer_table
from mergeability.prediction.validation.intervals import half_width, residuals_of

TASKS = "abcdefgh"
PAIRS = list(combinations(TASKS, 2))
METRICS = ["cosine", "norm", "images"]
TIERS = {"weights": ["cosine", "norm"], "again": ["cosine", "norm"], "none": ["unknown"]}


@pytest.fixture(scope="module")
def pairs():
    """Eight tasks; `ties` listens to two metrics; one pair has no outcome of `tsv`, and one lacks `images`."""
    generator = np.random.default_rng(7)
    frame = pd.DataFrame(PAIRS, columns=["task_a", "task_b"])
    for metric, scale in zip(METRICS, (1, 100, 1e-3), strict=True):
        frame[metric] = scale * generator.normal(size=28)
    frame["norm_acc_ties"] = (
        0.8 + 0.05 * frame["cosine"] + 3e-4 * frame["norm"] + 0.01 * generator.normal(size=28)
    )
    frame["norm_acc_tsv"] = 0.7 + 20 * frame["images"] + 0.02 * generator.normal(size=28)
    frame["acc_ties"] = 0.5
    frame.loc[5, "norm_acc_tsv"] = np.nan
    frame.loc[9, "images"] = np.nan
    return frame


@pytest.fixture(scope="module")
def scorer(pairs):
    return Scorer.fit(pairs, METRICS, ["ties", "tsv"], TIERS)


def _scaled(frame, metrics, whole):
    low, high = whole[metrics].min(), whole[metrics].max()
    return (2 * (frame[metrics] - low) / (high - low) - 1).to_numpy()


@pytest.mark.parametrize(("metrics", "place"), [(METRICS, 0), (["cosine", "norm"], 1)])
@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_scores_are_those_of_scikit_learns_ridge_on_scaled_metrics(pairs, scorer, metrics, place, method):
    whole = pairs[pairs[metrics].notna().all(axis=1)]
    known = whole[whole[f"norm_acc_{method}"].notna()]
    X, y = _scaled(known, metrics, whole), known[f"norm_acc_{method}"].to_numpy()
    folds = [
        (fold.training, fold.validation)
        for fold in LeaveTwoTasksOut().folds(known[["task_a", "task_b"]].to_numpy())
    ]
    judge = SklearnRidge(Ridge().fit(X, y, folds).strength_).fit(X, y)
    columns = ["task_a", "task_b", *metrics]
    found = scorer.score(whole[columns])
    expected = judge.predict(_scaled(whole, metrics, whole))
    np.testing.assert_allclose(found[f"score_{method}"], expected, rtol=1e-9)
    fit = scorer.evidence[place].methods[method]
    assert fit.n_pairs == len(known)
    np.testing.assert_allclose(fit.weights, judge.coef_)


def test_the_interval_and_the_worth_of_a_fit_come_from_leaving_two_tasks_out(pairs, scorer):
    result = evaluate_predictors(
        pairs, METRICS, {"ridge": Ridge()}, ["ties"], ["norm_acc"], [LeaveTwoTasksOut()]
    )
    width, level = half_width(residuals_of(result.predictions))
    fit = scorer.evidence[0].methods["ties"]
    assert (fit.half_width, fit.level) == pytest.approx((width, level))
    assert level == 0.9
    assert fit.r_beyond_mean == pytest.approx(result.records[0]["r_beyond_mean"])
    assert fit.r_low == pytest.approx(result.records[0]["r_beyond_mean_low"])
    found = scorer.score(pairs)
    # One pair lacks a metric of the first tier, and is scored by the other.
    found = found[found["evidence"] == "metrics"]
    assert len(found) == 27
    for side, sign in (("low", -1), ("high", 1)):
        np.testing.assert_allclose(found[f"score_{side}_ties"], found["score_ties"] + sign * width)


def test_the_target_is_the_first_that_the_table_has(pairs, scorer):
    assert scorer.target == "norm_acc"
    only = pairs.drop(columns=["norm_acc_ties", "norm_acc_tsv"]).assign(acc_ties=pairs["norm_acc_ties"])
    assert Scorer.fit(only, METRICS, ["ties"]).target == "acc"
    assert scorer.tasks == list(TASKS)


def test_a_file_gives_back_the_same_scorer_to_the_last_digit(pairs, scorer, tmp_path):
    scorer.save(tmp_path / FILE)
    assert Scorer.load(tmp_path) == Scorer.load(str(tmp_path / FILE)) == scorer
    pd.testing.assert_frame_equal(Scorer.load(tmp_path).score(pairs), scorer.score(pairs), check_exact=True)
    json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)


@pytest.fixture
def simple():
    """Two methods and three metrics in [0, 10], [-1, 1] and without spread; numbers to calculate with."""
    methods = {
        "ties": MethodFit([0.2, -0.1, 0.0], 0.6, 0.05, 0.9, 0.5, 0.1, 28),
        "tsv": MethodFit([0.0, 0.3, 0.0], 0.7, 0.20, 0.9, None, None, 28),
    }
    largest = Evidence(
        ["size", "angle", "flat"], [0.0, -1.0, 4.0], [10.0, 1.0, 4.0], [0.5, -0.5, 0.0], methods
    )
    fewer = Evidence(
        ["angle"],
        [-1.0],
        [1.0],
        [0.0],
        {"ties": MethodFit([1.0], 0.0, 0.1, 0.9, None, None, 28)},
        "angle alone",
    )
    return Scorer("acc", list("abcd"), [largest, fewer])


def _rows(*rows):
    return pd.DataFrame(
        [("a", f"x{i}", *row) for i, row in enumerate(rows)],
        columns=["task_a", "task_b", "size", "angle", "flat"],
    )


def test_score_bounds_recommendation_and_drivers_by_hand(simple):
    found = simple.score(_rows((10.0, 0.5, 4.0), (5.0, -1.0, 4.0), (5.0, 1.0, 4.0)))
    # Scaled: (1, 0.5), (0, -1), (0, 1).
    np.testing.assert_allclose(found["score_ties"], [0.75, 0.7, 0.5])
    np.testing.assert_allclose(found["score_tsv"], [0.85, 0.4, 1.0])
    np.testing.assert_allclose(found["score_low_ties"], [0.70, 0.65, 0.45])
    np.testing.assert_allclose(found["score_high_tsv"], [1.05, 0.6, 1.2])
    # In the first row tsv has the higher score, but its lower bound, 0.65, is below that of ties.
    assert found["recommended"].tolist() == ["ties", "ties", "tsv"]
    # Weight times distance from the mean pair, of the recommended method.
    assert found["driven_by"].tolist() == [
        "size (+0.100), angle (-0.100)",
        "size (-0.100), angle (+0.050)",
        "angle (+0.450)",
    ]
    assert found["abstains"].tolist() == [""] * 3


def test_it_abstains_beyond_the_range_and_the_margin_and_says_where(simple):
    simple = replace(simple, evidence=simple.evidence[:1])
    rows = _rows((10.99, 0.0, 4.0), (11.01, 0.0, 4.0), (-1.01, -1.21, 4.0), (-0.99, 1.19, 4.0))
    found = simple.score(rows, margin=0.1)
    assert found["abstains"].tolist() == ["", "size", "size, angle", ""]
    silent = found["abstains"] != ""
    assert found.loc[silent, [c for c in found.columns if c.startswith("score")]].isna().all(axis=None)
    assert (found.loc[silent, ["recommended", "driven_by"]] == "").all(axis=None)
    assert found.loc[~silent, "score_ties"].notna().all()
    assert simple.score(rows, margin=0)["abstains"].tolist() == ["size", "size", "size, angle", "size, angle"]
    assert simple.score(rows, margin=1)["abstains"].tolist() == [""] * 4
    for nonsense in (-0.1, float("nan")):
        with pytest.raises(UserError, match="margin of at least 0"):
            simple.score(rows, margin=nonsense)


def test_a_pair_that_the_best_tier_does_not_know_is_scored_by_the_next(simple):
    found = simple.score(_rows((10.0, 0.5, 4.0), (99.0, 0.5, 4.0), (99.0, 9.0, 4.0)))
    assert found["evidence"].tolist() == ["metrics", "angle alone", ""]
    np.testing.assert_allclose(found["score_ties"], [0.75, 0.5, np.nan])
    np.testing.assert_allclose(found["score_high_ties"] - found["score_ties"], [0.05, 0.1, np.nan])
    np.testing.assert_allclose(found["score_tsv"], [0.85, np.nan, np.nan])
    assert found["abstains"].tolist() == ["", "", "size, angle"]
    # No correlation of the second tier is known to lie above 0: its best mean, and no drivers.
    assert found["recommended"].tolist() == ["ties", "ties", ""]
    assert found["driven_by"].tolist()[1:] == ["", ""]


def test_without_a_correlation_above_0_the_best_mean_is_recommended_for_every_pair(simple):
    largest = simple.evidence[0]
    fits = {
        "ties": replace(largest.methods["ties"], r_low=-0.1, mean=0.5),
        "tsv": replace(largest.methods["tsv"], mean=0.6),
    }
    blind = replace(simple, evidence=[replace(largest, methods=fits)])
    found = blind.score(_rows((10.0, 0.5, 4.0), (5.0, -1.0, 4.0), (99.0, 1.0, 4.0)))
    assert found["recommended"].tolist() == ["tsv", "tsv", ""]
    assert found["driven_by"].tolist() == [""] * 3
    np.testing.assert_allclose(found["score_ties"], [0.75, 0.7, np.nan])


def test_pairs_may_be_named_by_columns_or_by_the_index(simple):
    rows = _rows((10.0, 0.5, 4.0), (5.0, -1.0, 4.0)).assign(acc_ties=[0.7, 0.8])
    by_index = rows.set_index(["task_a", "task_b"])
    pd.testing.assert_frame_equal(simple.score(by_index), simple.score(rows))
    scores = simple.score(rows)
    pd.testing.assert_frame_equal(
        transfer_table(simple, by_index, scores), transfer_table(simple, rows, scores)
    )
    with pytest.raises(UserError, match="task_a and task_b as columns or as its index"):
        simple.score(by_index.reset_index(drop=True))


def test_tiers_are_in_the_order_of_their_worth_on_new_pairs(pairs, scorer):
    assert [one.name for one in scorer.evidence] == sorted(
        ("metrics", "weights"), key=lambda name: -next(one.r for one in scorer.evidence if one.name == name)
    )
    noise = pairs.assign(noise=np.random.default_rng(3).normal(size=len(pairs)))
    found = Scorer.fit(noise, ["noise"], ["ties"], {"good": ["cosine", "norm"]})
    assert [one.name for one in found.evidence] == ["good", "metrics"]
    assert found.evidence[0].informative
    assert not found.evidence[1].informative


def test_probes_are_a_tier_whose_scores_are_the_probes(pairs):
    generator = np.random.default_rng(4)
    probed = pairs.assign(
        **{
            f"probe_overlap_{method}": np.clip(
                pairs[f"norm_acc_{method}"] + 0.01 * generator.normal(size=28), 0, 1
            )
            for method in ("ties", "tsv")
        }
    )
    found = Scorer.fit(probed, METRICS, ["ties", "tsv"])
    first = found.evidence[0]
    assert (first.name, first.lowest, first.highest) == ("probe", [0.0, 0.0], [1.0, 1.0])
    scores = found.score(probed)
    known = probed["probe_overlap_tsv"].notna()
    for method in ("ties", "tsv"):
        np.testing.assert_allclose(
            scores.loc[known, f"score_{method}"], probed.loc[known, f"probe_overlap_{method}"]
        )
    off = (probed["norm_acc_ties"] - probed["probe_overlap_ties"]).abs()
    # Every pair is held out once, and nothing is fitted: ⌈29 · 0.9⌉ = 27.
    assert first.methods["ties"].half_width == pytest.approx(sorted(off)[26])
    # By hand: the regret of taking the method with the larger probe.
    whole = probed[known]
    measured = whole[["norm_acc_ties", "norm_acc_tsv"]].to_numpy()
    taken = whole[["probe_overlap_ties", "probe_overlap_tsv"]].to_numpy().argmax(axis=1)
    assert first.regret == pytest.approx(np.mean(measured.max(axis=1) - measured[range(len(whole)), taken]))
    # The other metrics still score pairs without probes.
    assert set(found.score(pairs)["evidence"]) <= {"metrics", ""}


def test_models_of_the_fit_are_kept_by_their_hashes(scorer, tmp_path):
    known = scorer.with_models({"a": "1f", "b": "2e", "elsewhere": "3d"})
    assert known.models == {"a": "1f", "b": "2e"}
    known.save(tmp_path / FILE)
    assert Scorer.load(tmp_path).models == {"a": "1f", "b": "2e"}


def test_it_abstains_where_a_metric_that_weighs_is_undefined(simple):
    simple = replace(simple, evidence=simple.evidence[:1])
    found = simple.score(_rows((np.nan, 0.0, 4.0), (5.0, 0.0, np.nan), (5.0, 0.0, 9.0)))
    # A metric without spread weighs nothing, whatever it is.
    assert found["abstains"].tolist() == ["size", "", ""]
    np.testing.assert_allclose(found["score_ties"], [np.nan, 0.6, 0.6])


def test_a_table_with_fewer_metrics_is_scored_by_the_fit_on_those(simple, pairs, scorer):
    weights_only = pairs.drop(columns="images")
    assert scorer.evidence_for(list(weights_only.columns)).metrics == ["cosine", "norm"]
    assert scorer.evidence_for(list(pairs.columns)).metrics == METRICS
    assert len(scorer.evidence) == 2, "repeated and empty lists are not fitted"
    found = simple.score(_rows((0, 0.5, 0)).drop(columns="size"))
    assert found["score_ties"].tolist() == [0.5]
    assert "score_tsv" not in found
    with pytest.raises(UserError, match="not measured: angle"):
        simple.score(_rows((0, 0, 0)).drop(columns="angle"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "3",
        lambda text: json.dumps(json.loads(text) | {"evidence": []}),
        lambda text: json.dumps(json.loads(text) | {"evidence": [{"metrics": ["cosine"]}]}),
        lambda text: json.dumps(json.loads(text) | {"evidence": {}}),
        lambda text: text.replace('"weights": [', '"weights": [0.5, ', 1),
        lambda text: text.replace('"intercept"', '"level_ground"', 1),
        lambda text: text.replace('"target"', '"goal"', 1),
    ],
)
def test_a_damaged_file_is_refused(scorer, tmp_path, spoil):
    scorer.save(tmp_path / FILE)
    text = (tmp_path / FILE).read_text()
    assert spoil(text) != text
    (tmp_path / FILE).write_text(spoil(text))
    with pytest.raises(UserError, match="is not a fitted predictor"):
        Scorer.load(tmp_path)


def test_a_file_of_another_format_or_none_is_refused(scorer, tmp_path):
    with pytest.raises(UserError, match="There is no fitted predictor at"):
        Scorer.load(tmp_path)
    scorer.save(tmp_path / "other.json")
    text = (tmp_path / "other.json").read_text().replace('"format": 2', '"format": 99')
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match="has format 99, but this version reads format 1 and 2"):
        Scorer.load(tmp_path / "other.json")


@pytest.mark.parametrize("field", ["weights", "intercept", "half_width"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_numbers_that_are_none_are_refused(simple, tmp_path, field, value):
    simple.save(tmp_path / FILE)
    content = json.loads((tmp_path / FILE).read_text())
    fit = content["evidence"][0]["methods"]["ties"]
    fit[field] = [value] * 3 if field == "weights" else value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a fitted predictor"):
        Scorer.load(tmp_path)


def test_tables_that_allow_no_fit_are_refused(pairs):
    three = pairs[pairs["task_a"].isin(list("abc")) & pairs["task_b"].isin(list("abc"))]
    with pytest.raises(UserError, match="at least 4"):
        Scorer.fit(three, METRICS, ["ties"])
    with pytest.raises(UserError, match="No pair has all requested metrics"):
        Scorer.fit(
            pairs.assign(
                norm=pairs["norm"].where(pairs.index % 2 == 0),
                cosine=pairs["cosine"].where(pairs.index % 2 == 1),
            ),
            METRICS,
            ["ties"],
        )


def test_transfer_by_hand(simple):
    simple = replace(simple, evidence=simple.evidence[:1])
    table = _rows((10.0, 0.5, 4.0), (5.0, -1.0, 4.0), (5.0, 1.0, 4.0), (99.0, 0.0, 4.0), (99.0, 0.0, 4.0))
    # The last pair has neither score nor outcome. Scores of ties are .75, .7, .5 and none, within 0.05; of tsv .85, .4, 1 and none, within 0.2.
    table["acc_ties"] = [0.79, 0.60, 0.46, 0.9, np.nan]
    table["acc_tsv"] = [0.9, np.nan, 0.7, 0.9, np.nan]
    found = transfer_table(simple, table, simple.score(table)).set_index("method")
    ties = found.loc["ties"]
    assert ties["r"] == pytest.approx(pearsonr([0.75, 0.7, 0.5], [0.79, 0.6, 0.46])[0])
    assert ties["mae"] == pytest.approx((0.04 + 0.10 + 0.04) / 3)
    mean = (0.79 + 0.60 + 0.46) / 3
    assert ties["mae_of_mean"] == pytest.approx((abs(0.79 - mean) + abs(0.60 - mean) + abs(0.46 - mean)) / 3)
    assert ties["covered"] == pytest.approx(2 / 3)
    assert (ties["half_width"], ties["level"], ties["evidence"]) == (pytest.approx(0.05), 0.9, "metrics")
    assert (ties["n_pairs"], ties["n_abstained"]) == (3, 1)
    tsv = found.loc["tsv"]
    assert np.isnan(tsv["r"]), "two pairs have no correlation"
    assert tsv["mae"] == pytest.approx((0.05 + 0.3) / 2)
    assert tsv["covered"] == 0.5
    assert (tsv["n_pairs"], tsv["n_abstained"]) == (2, 1)
    assert (found["target"] == "acc").all()


def test_transfer_without_outcomes_or_without_any_score(simple):
    simple = replace(simple, evidence=simple.evidence[:1])
    table = _rows((99.0, 0.0, 4.0))
    assert len(transfer_table(simple, table, simple.score(table))) == 0
    row = transfer_table(simple, table.assign(acc_ties=0.5), simple.score(table)).iloc[0]
    assert row[["r", "mae", "mae_of_mean", "covered"]].isna().all()
    assert (row["n_pairs"], row["n_abstained"]) == (0, 1)


def test_a_scorer_of_other_numbers_is_another(scorer):
    assert replace(scorer, target="acc") != scorer


def test_pairs_that_all_share_a_task_cannot_be_fitted(pairs):
    star = pairs[pairs["task_a"] == "a"].reset_index(drop=True)
    with pytest.raises(UserError, match="too few pairs to leave two tasks out"):
        Scorer.fit(star, ["cosine", "norm"], ["ties"])


def test_probes_of_too_few_pairs_are_no_tier(pairs):
    probed = pairs.assign(probe_overlap_ties=[0.8, *[np.nan] * 27])
    found = Scorer.fit(probed, METRICS, ["ties", "tsv"])
    assert "probe" not in {one.name for one in found.evidence}
