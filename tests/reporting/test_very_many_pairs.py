"""Reports and verdicts of very many pairs: bounded, and what is not shown is counted."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mergeability.pipeline import verdicts
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdicts import verdict
from mergeability.reporting import page
from mergeability.reporting.budget_section import predicted_pairs
from mergeability.reporting.figures.heat_maps import MOST_TASKS, matrix_heat_map


def with_predictions():
    pairs = pd.DataFrame(list(itertools.combinations("abcd", 2)), columns=["task_a", "task_b"])
    pairs = pairs.assign(effective_rank=1.5, norm_acc_ta=[0.9, 0.8, np.nan, 0.7, np.nan, 0.6])
    predicted = pairs.loc[[2, 4], ["task_a", "task_b"]].assign(
        predicted_norm_acc_ta=[0.75, 0.65],
        predicted_low_norm_acc_ta=[0.7, 0.6],
        predicted_high_norm_acc_ta=[0.8, 0.7],
    )
    accuracy = pd.DataFrame(
        [
            {"target": "norm_acc", "method": "ta", "predictor": "additive", "n_measured": 4, "n_predicted": 2,
             "mae": 0.02, "mae_of_mean": 0.1, "r": 0.9, "half_width": 0.05, "level": 0.8}
        ]
    )  # fmt: skip
    return Analysis(
        "t",
        pairs,
        ["effective_rank"],
        ["ta"],
        evaluated=4,
        predicted_pairs=predicted,
        predicted_accuracy=accuracy,
    )


@pytest.mark.parametrize("count", [MOST_TASKS, MOST_TASKS + 1, 300])
def test_a_heat_map_shows_a_hundred_models_and_says_of_how_many(count):
    matrix = np.arange(count**2, dtype=float).reshape(count, count)
    figure = matrix_heat_map(matrix, [f"t{i}" for i in range(count)])
    shown = min(count, MOST_TASKS)
    assert np.array(figure.data[0].z, dtype=float).shape == (shown, shown)
    assert len(figure.data[0].x) == shown
    # The colours stay those of all values.
    assert figure.data[0].zmax == count**2 - 1
    title = figure.layout.title.text
    assert title is None if count <= MOST_TASKS else f"The first {MOST_TASKS} of {count}" in title


def test_a_long_table_ends_with_the_number_of_rows_that_are_not_shown(monkeypatch):
    monkeypatch.setattr(page, "MOST_ROWS", 3)
    frame = pd.DataFrame({"x": range(5)}, index=list("abcde"))
    text = page.table(frame, {"x": "x"}, "row")
    assert text.count("<tr>") == 1 + 3
    assert "2 more rows are in the CSV files of the run folder." in text
    assert "more rows" not in page.table(frame.head(3), {"x": "x"}, "row")


def test_a_pair_that_was_not_evaluated_gets_the_verdict_of_its_prediction():
    analysis = with_predictions()
    found = verdict(analysis, ["d", "a"])
    assert (
        found.answer
        == "Merge by ta: expect 75.0% of the fine-tuned accuracy, from 70% to 80% for 80% of such pairs."
    )
    assert found.forecasts[0].source == "additive, fitted on 4 pairs"
    assert "not measured" in found.sureness[0]
    assert "Measured on labelled test images" in verdict(analysis, ["a", "b"]).sureness[0]
    assert any("4 of the 6 pairs were merged and evaluated." in one for one in verdict(analysis).choice)


def test_the_section_lists_predictions_alone():
    section = predicted_pairs(with_predictions())
    assert section is not None
    body = section.body
    assert 0 <= body.find("a + d") < body.find("b + d")
    assert "a + b" not in body
    assert predicted_pairs(Analysis("t", pd.DataFrame(), [])) is None


def test_a_thousand_models_without_outcomes_have_one_answer(monkeypatch):
    pairs = pd.DataFrame(list(itertools.combinations(range(40), 2)), columns=["task_a", "task_b"]).astype(str)

    def refuse(*_):
        raise AssertionError("no pair needs an answer of its own")

    monkeypatch.setattr(verdicts, "_of_one", refuse)
    found = verdict(Analysis("t", pairs.assign(effective_rank=1.5), ["effective_rank"]))
    assert found.subject == "780 pairs of 40 models"
    assert found.answer.startswith("No prediction")


def test_the_models_are_in_the_order_of_the_models_then_of_the_pairs():
    pairs = pd.DataFrame({"task_a": ["c", "c", "b"], "task_b": ["b", "d", "d"]})
    models = pd.DataFrame(index=["a", "b"])
    assert Analysis("t", pairs, [], models=models).tasks == ["a", "b", "c", "d"]
