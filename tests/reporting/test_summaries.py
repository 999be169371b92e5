"""Sentences and tables by hand, on numbers that can be checked at sight."""

from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mergeability.pipeline import Analysis
from mergeability.prediction.validation.evaluate import PredictionResult
from mergeability.reporting import summary_table
from mergeability.reporting.figures import layer_map
from mergeability.reporting.first_screen import outcome_columns
from mergeability.reporting.headline import headline
from mergeability.reporting.prediction_sections import _beyond
from mergeability.reporting.summaries import (
    best_predictor,
    curve_table,
    method_table,
    pair_extremes,
    predictor_table,
    scale_table,
    sets_table,
)


def _record(method, predictor, r, mae=0.1, target="norm_acc"):
    return {
        "method": method, "predictor": predictor, "protocol": "loto", "situation": "known partner", "target": target,
        "r_mean": r, "r_std": 0.2,
        "rho_mean": r, "train_r_mean": r, "pooled_r": r, "mae": mae, "r2_over_training_mean": 0.0, "n_folds": 3,
        "n_pairs": 3, "n_undefined": 3 if r is None else 0,
    }  # fmt: skip


@pytest.fixture
def pairs():
    return pd.DataFrame(
        {
            "task_a": ["a", "a", "b"],
            "task_b": ["b", "c", "c"],
            "norm_acc_ties": [0.9, 0.6, np.nan],
            "norm_acc_ta": [0.8, 0.9, 1.0],
            "acc_ties": [0.5, 0.4, np.nan],
            "kept_gain_ties": [0.5, -9.0, 0.7],
        },
        index=[5, 6, 7],
    )


@pytest.fixture
def records():
    return [
        _record("ties", "mean", None, 0.3),
        _record("ta", "mean", None, 0.3),
        _record("ties", "additive", 0.9),
        _record("ta", "additive", 0.8),
        _record("ties", "ols", 0.5),
        _record("ta", "ols", 0.1),
        _record("ties", "lasso", 0.4),
        _record("ta", "lasso", 0.6),
    ]


def test_methods_are_summarised_best_first(pairs):
    table = method_table(pairs, ["ties", "ta", "absent"], {"ties": 0.4})
    assert list(table.index) == ["ta", "ties", "absent"]
    assert table.loc["ta", "mean_norm_acc"] == pytest.approx(0.9)
    assert table.loc["ties", ["worst_norm_acc", "worst_pair", "n_pairs", "alpha"]].tolist() == [
        0.6,
        "a + c",
        2,
        0.4,
    ]
    assert table.loc["ties", "mean_acc"] == pytest.approx(0.45)
    assert table.loc["ties", "median_kept_gain"] == 0.5
    assert np.isnan(table.loc["absent", ["mean_norm_acc", "median_kept_gain"]].tolist()).all()


def test_pairs_are_ranked_only_where_every_method_was_measured(pairs):
    assert pair_extremes(pairs, ["ties", "ta"], "norm_acc") == (
        "a + b",
        pytest.approx(0.85),
        "a + c",
        pytest.approx(0.75),
    )
    assert pair_extremes(pairs.iloc[2:], ["ties", "ta"], "norm_acc") is None


def test_baselines_come_first_and_the_undefined_stays_undefined(records):
    table = predictor_table(records, "norm_acc")
    assert list(table.index) == ["mean", "additive", "lasso", "ols"]
    assert np.isnan(table.loc["mean", "r_mean"])
    assert table["n_undefined"].tolist() == [6, 0, 0, 0]
    assert table.loc["additive", "r_mean"] == pytest.approx(0.85)


def test_the_best_predictor_is_never_a_baseline(records):
    assert best_predictor(records, "norm_acc") == "lasso"
    assert best_predictor(records, "norm_acc", "ties") == "ols"
    assert best_predictor(records[:4], "norm_acc") is None


def test_the_headline_says_what_was_found_beside_its_baselines(pairs, records):
    analysis = Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=PredictionResult(records))
    text = " ".join(headline(analysis))
    assert "3 tasks, 3 pairs, 1 metric and 2 merge methods" in text
    assert (
        "ta merges best on average: mean normalised accuracy 90.0% over 3 pairs, and 80.0% on its worst, a + b"
        in text
    )
    assert "lasso, reaches a mean correlation of r = 0.50" in text
    assert "0.100, against 0.300 for always predicting the training mean" in text
    assert "r = 0.85. In this analysis, the metrics predict no better than these averages." in text
    assert "at most 2 pairs" in text


def test_the_headline_admits_when_metrics_win_or_nothing_correlates(pairs, records):
    better = [r | {"r_mean": 0.95} if r["predictor"] == "lasso" else r for r in records]
    text = " ".join(
        headline(Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=PredictionResult(better)))
    )
    assert "the metrics predict better than these averages." in text
    text = " ".join(headline(Analysis("t", pairs, ["m"], ["ties"], prediction=PredictionResult(records[:2]))))
    assert "No predictor that uses metrics has a defined correlation" in text


def test_the_terminal_table_has_a_row_a_method_and_dashes_for_the_unknown(pairs, records):
    console = Console(width=120, record=True, file=StringIO())
    console.print(
        summary_table(
            Analysis("Runs [1]", pairs, ["m"], ["ties", "ta"], prediction=PredictionResult(records))
        )
    )
    console.print(summary_table(Analysis("bare", pairs, ["m"], ["ties"])))
    lines = console.export_text().splitlines()
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert ["ta", "0.900", "0.800", "lasso", "0.600", "0.800"] in cells
    assert ["ties", "0.750", "0.600", "ols", "0.500", "0.900"] in cells
    assert ["ties", "0.750", "0.600", "–", "–", "–"] in cells
    assert lines[0].startswith("Runs [1]")


def _both_new(method, low, high, predictor="ridge"):
    own = {"protocol": "l2to", "situation": "both new", "r_beyond_mean": (low + high) / 2}
    return _record(method, predictor, None) | own | {"r_beyond_mean_low": low, "r_beyond_mean_high": high}


def test_both_new_tasks_are_foreseen_only_where_the_interval_excludes_zero(pairs, records):
    new = [_both_new("ties", 0.1, 0.5), _both_new("ta", -0.1, 0.5), _both_new("ta", 0.7, 0.9, "ols")]
    text = " ".join(
        headline(Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=PredictionResult([*records, *new])))
    )
    assert (
        "is predictive for ties (r = 0.30 after the training mean is subtracted, 95 % from 0.10 to 0.50)"
        in text
    )
    assert "for ta the interval reaches below 0" in text
    result = PredictionResult([*records, _both_new("ties", -0.1, 0.5)])
    text = " ".join(headline(Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=result)))
    assert "predicts no better than the training mean for any method" in text


def test_the_headline_says_in_those_words_where_metrics_add_nothing(pairs, records):
    tested = pd.DataFrame(
        {
            "target": ["norm_acc"] * 3,
            "method": ["ties", "ta", "tsv"],
            "gain": [0.2, 0.1, -0.1],
            "p_beyond": [0.01, 0.3, 0.001],
        }
    )
    result = PredictionResult(records, tables={"relabelling": tested})
    text = " ".join(headline(Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=result)))
    assert "For ta, tsv the metrics add nothing beyond task effects" in text
    assert (
        "The metrics improve predictions beyond task effects for ties (20.0% of the squared error)." in text
    )


def test_what_uses_task_effects_is_no_rival_of_metrics_alone(pairs, records):
    both = [_record("ties", "dyadic", 0.95), _record("ta", "dyadic", 0.97)]
    assert best_predictor([*records, *both], "norm_acc") == "lasso"
    text = " ".join(
        headline(Analysis("t", pairs, ["m"], ["ties", "ta"], prediction=PredictionResult([*records, *both])))
    )
    assert "Metrics and averages together (dyadic) reach r = 0.96." in text


def test_a_predictor_that_lacks_folds_does_not_win_against_a_whole_one():
    whole, holey = _record("ta", "ols", 0.3), {**_record("ta", "lasso", 0.9), "n_undefined": 2}
    assert best_predictor([whole, holey], "norm_acc") == "ols"
    assert best_predictor([holey], "norm_acc") == "lasso"


@pytest.fixture
def scaled():
    """Two methods at their own scale and at the tuned one, on two pairs."""
    pairs = pd.DataFrame(
        {
            "task_a": ["a", "a"],
            "task_b": ["b", "c"],
            "norm_acc_ta": [0.6, 0.8],
            "norm_acc_ta_tuned": [0.9, 0.7],
            "norm_acc_ties": [0.7, 0.8],
            "norm_acc_ties_tuned": [0.7, 0.85],
            "low_norm_acc_ta": [0.5, 0.7],
            "high_norm_acc_ta": [0.7, 1.0],
        }
    )
    curves = pd.DataFrame(
        [
            {"tasks": tasks, "method": "ta_tuned", "alpha": alpha, "task": task, "norm_accuracy": value, "chosen": chosen}
            for tasks, task, alpha, value, chosen in [
                ("a+b", "a", 0.5, 0.2, False),
                ("a+b", "b", 0.5, 0.4, False),
                ("a+b", "a", 1.0, 0.6, True),
                ("a+b", "b", 1.0, 1.0, True),
                ("a+c", "a", 0.5, 0.9, True),
                ("a+c", "c", 0.5, 0.9, True),
                ("a+c", "a", 1.0, 0.1, False),
                ("a+c", "c", 1.0, 0.3, False),
            ]
        ]
    )  # fmt: skip
    return Analysis(
        "scaled",
        pairs,
        [],
        ["ta", "ta_tuned", "ties", "ties_tuned"],
        alphas={"ta": 0.3, "ta_tuned": "0.75 (0.5 to 1)", "ties": 1.0, "ties_tuned": 1.0},
        curves=curves,
    )


def test_own_and_tuned_scale_stand_side_by_side(scaled):
    table = scale_table(scaled)
    assert list(table.index) == ["ta", "ties"], "best tuned mean first"
    assert table.loc["ta"].tolist() == [
        0.3,
        pytest.approx(0.7),
        0.6,
        "0.75 (0.5 to 1)",
        pytest.approx(0.8),
        0.7,
    ]
    assert table.loc["ties", ["mean", "tuned_mean", "tuned_worst"]].tolist() == pytest.approx(
        [0.75, 0.775, 0.7]
    )
    assert scale_table(Analysis("one", scaled.pairs, [], ["ta", "ties"])).empty
    lead = " ".join(headline(scaled))
    assert "and 2 merge methods" in lead
    assert "changes the mean by +2.5 to +10.0 points (most for ta)" in lead
    assert "ties at its own α (75.0%) and ta at the tuned one (80.0%)" in lead


def test_curves_are_averaged_over_tasks_then_merges(scaled):
    table = curve_table(scaled.curves)
    assert table["alpha"].tolist() == [0.5, 1.0]
    np.testing.assert_allclose(table["norm_accuracy"], [(0.3 + 0.9) / 2, (0.8 + 0.2) / 2])
    np.testing.assert_allclose(table["chosen"], [0.5, 0.5])


def test_intervals_of_part_of_the_images_are_summarised(scaled):
    table = method_table(scaled.pairs, ["ta", "ties"], {})
    assert table.loc["ta", "median_margin"] == pytest.approx((0.1 + 0.15) / 2)
    assert np.isnan(table.loc["ties", "median_margin"])


def test_sets_are_summarised_by_size_and_method():
    sets = pd.DataFrame(
        {
            "tasks": ["a+b+c", "a+b+d", "a+b+c+d"],
            "arity": [3, 3, 4],
            "norm_acc_ta": [0.5, 0.7, 0.4],
            "norm_acc_ties": [0.6, 0.4, np.nan],
            "worst_norm_acc_ta": [0.3, 0.6, 0.1],
            "worst_norm_acc_ties": [0.5, 0.2, np.nan],
        }
    )
    analysis = Analysis(
        "many", pd.DataFrame({"task_a": ["a"], "task_b": ["b"]}), [], ["ta", "ties"], sets=sets
    )
    table = sets_table(analysis)
    assert table[["arity", "method", "sets"]].to_numpy().tolist() == [
        [3, "ta", 2],
        [3, "ties", 2],
        [4, "ta", 1],
    ]
    np.testing.assert_allclose(table["mean"], [0.6, 0.5, 0.4])
    assert table["worst_set"].tolist() == ["a + b + c", "a + b + d", "a + b + c + d"]
    assert table["worst_task"].tolist() == [0.3, 0.2, 0.1]
    lead = " ".join(headline(analysis))
    assert (
        "The best method for merging 3 models at once is ta: mean normalised accuracy 60.0% over 2 sets."
        in lead
    )
    assert sets_table(Analysis("none", analysis.pairs, [])).empty


def test_outcomes_that_are_all_missing_are_said_to_be(pairs):
    none = pairs.assign(norm_acc_ties=np.nan, norm_acc_ta=np.nan, acc_ties=np.nan)
    found = headline(Analysis("t", none, ["m"], ["ties", "ta"]))
    assert "No merge has a measured outcome." in found
    assert not any("merges best" in one for one in found)


def test_without_a_pair_that_every_method_merged_none_is_called_the_best(pairs):
    apart = pairs.assign(norm_acc_ta=[np.nan, np.nan, 1.0])
    text = " ".join(headline(Analysis("t", apart, ["m"], ["ties", "ta"])))
    assert "ta merges best on average: mean normalised accuracy 100.0% over 1 pair" in text
    assert "Averaged over methods" not in text


def test_the_first_screen_shows_the_outcome_that_was_measured(pairs):
    analysis = Analysis("t", pairs.assign(norm_acc_ties=np.nan, norm_acc_ta=np.nan), ["m"], ["ties", "ta"])
    assert outcome_columns(analysis) == ("accuracy", {"ties": "acc_ties"})
    probed = Analysis(
        "t",
        pairs.assign(acc_ties=np.nan, probe_overlap_ta=0.5)[
            ["task_a", "task_b", "acc_ties", "probe_overlap_ta"]
        ],
        ["m"],
        ["ties"],
        merged=["ta"],
    )
    assert outcome_columns(probed) == ("overlap of the probe", {"ta": "probe_overlap_ta"})


@pytest.mark.parametrize("count", [400, 401])
def test_layers_of_very_many_pairs_are_drawn_as_ranges(count):
    cosines = pd.DataFrame(
        np.random.default_rng(0).uniform(-1, 1, (3, count)), index=["first", "second", "last"]
    )
    figure = layer_map(cosines)
    if count == 400:
        assert np.shape(figure.data[0].z) == (3, 400)
        return
    expected = [cosines.min(axis=1), cosines.median(axis=1), cosines.max(axis=1)]
    assert [one.name for one in figure.data] == [
        f"{name} of 401 pairs" for name in ("lowest", "median", "highest")
    ]
    for drawn, values in zip(figure.data, expected, strict=True):
        assert list(drawn.y) == ["first", "second", "last"]
        np.testing.assert_allclose(np.array(drawn.x, dtype=float), values, atol=1e-3)


def test_shares_of_variance_are_shown_without_permutation_tests(pairs):
    variance = pd.DataFrame(
        {
            "target": "norm_acc",
            "method": ["ties"],
            "task_effects": [0.6],
            "metrics_beyond": [0.1],
            "residual": [0.3],
        }
    )
    section = _beyond(
        Analysis("t", pairs, ["m"], ["ties"], prediction=PredictionResult(tables={"variance": variance}))
    )
    assert section is not None
    assert section.heading == "Do metrics improve predictions beyond task effects?"
    assert "The tests as a table" not in section.body
    assert _beyond(Analysis("t", pairs, ["m"], ["ties"], prediction=PredictionResult())) is None
