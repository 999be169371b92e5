"""Files that version 0.1.0 wrote are still read: a card, a table of pairs, the scores of predictors, a fitted predictor."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mergeability.finetuning.resume import finished_card
from mergeability.pipeline.suites import TableSuite
from mergeability.prediction.pair_table import PairTable, outcome_methods
from mergeability.prediction.scorer import Scorer
from mergeability.reporting.summaries import predictor_table

PUBLISHED = Path(__file__).parent / "published"
METHODS = ["average", "ta", "ties", "dare", "tsv", "iso_c"]


@pytest.fixture
def pairs() -> pd.DataFrame:
    return TableSuite("table", str(PUBLISHED / "pairs_0.1.0.csv")).read()


def test_a_published_training_is_finished_by_its_card(tmp_path):
    card = json.loads((PUBLISHED / "card_0.1.0.json").read_text())
    for name in ("model.safetensors", "head.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert finished_card(tmp_path, card["settings"]) == card
    # Without this the line above could not fail.
    (tmp_path / "head.safetensors").unlink()
    assert finished_card(tmp_path, card["settings"]) is None


def test_a_published_table_of_pairs_is_read(pairs):
    assert outcome_methods(pairs) == METHODS
    assert (pairs["task_a"] == "digits").all()
    metrics = ["task_vector_cosine_similarity", "subspace_overlap"]
    table = PairTable.of(pairs, metrics, METHODS, ["norm_acc"])
    assert len(table.frame) == len(pairs) == 7


def test_a_published_predictor_scores_as_it_did(pairs):
    scores = Scorer.load(PUBLISHED / "fitted_0.1.0.json").score(pairs, 0.1)
    # Written by version 0.1.0 from the same two files.
    expected = pd.read_csv(PUBLISHED / "scores_0.1.0.csv")
    assert list(scores.columns) == [*expected.columns, "evidence"]
    numbers = [column for column in expected.columns if column.startswith("score_")]
    assert len(numbers) == 3 * len(METHODS)
    np.testing.assert_allclose(scores[numbers], expected[numbers], rtol=1e-12)
    # That fit predicts nothing beyond the mean of any method: since then, the best mean is recommended for every pair.
    fits = Scorer.load(PUBLISHED / "fitted_0.1.0.json").evidence[0].methods
    assert not any((fit.r_low or 0) > 0 for fit in fits.values())
    best = max(fits, key=lambda name: fits[name].mean)
    assert scores["recommended"].tolist() == [best] * len(expected)
    assert (scores["driven_by"] == "").all()


def test_published_scores_of_predictors_are_shown():
    records = json.loads((PUBLISHED / "prediction_0.1.0.json").read_text())
    # Its first records: the mean of the training pairs under four methods, which is undefined within a fold.
    table = predictor_table(records, "norm_acc")
    assert list(table.index) == ["mean"]
    assert table.loc["mean", "n_undefined"] == sum(record["n_undefined"] for record in records)
