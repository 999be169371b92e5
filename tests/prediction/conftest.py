"""A small pair table whose outcomes follow known metrics, a study of it, and the published table."""

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor

from mergeability.prediction import (
    Additive,
    Pearson,
    PredictionResult,
    Ridge,
    StudySettings,
    study_predictions,
)
from mergeability.prediction.study import Known

PUBLISHED = Path(
    os.environ.get(
        "MERGEABILITY_PUBLISHED_TABLE",
        Path(__file__).parents[2].parent / "shared" / "published" / "vit_b16_adamw.csv",
    )
)


@pytest.fixture
def table() -> pd.DataFrame:
    return _table()


def _table() -> pd.DataFrame:
    """Six tasks, 15 pairs, three metrics; `ties` is 0.8 + 0.1 first - 0.05 second, `average` pure noise."""
    generator = np.random.default_rng(0)
    pairs = list(combinations("abcdef", 2))
    frame = pd.DataFrame(pairs, columns=["task_a", "task_b"])
    for metric in ("first", "second", "third"):
        frame[metric] = generator.normal(size=len(pairs))
    frame["norm_acc_ties"] = 0.8 + 0.1 * frame["first"] - 0.05 * frame["second"]
    frame["norm_acc_average"] = generator.uniform(size=len(pairs))
    frame["norm_acc_ties_a"] = 1.0
    return frame


@dataclass(frozen=True)
class Studied:
    """A study with everything in it, and its ingredients."""

    table: pd.DataFrame
    metrics: list[str]
    predictors: dict
    settings: StudySettings
    known: Known
    result: PredictionResult


@pytest.fixture(scope="session")
def studied() -> Studied:
    """The study of the small table that answers every question; computed once, so leave it unchanged."""
    table, metrics = _table(), ["first", "second", "third"]
    predictors = {
        "mean": DummyRegressor(),
        "additive": Additive(),
        "ridge": Ridge(),
        "pearson": Pearson(max_steps=30),
    }
    settings = StudySettings(targets=("norm_acc",), permutations=9, seeds=2)
    known = Known(
        categories={"one": ["first"], "rest": ["second", "third"], "none here": ["else"]},
        sets=pd.DataFrame(
            {"tasks": ["a+b+c", "b+c+d", "d+e+f"], "arity": 3, "norm_acc_ties": [0.6, 0.7, 0.5]}
        ),
    )
    result = study_predictions(table, metrics, predictors, settings=settings, known=known)
    return Studied(table, metrics, predictors, settings, known, result)


@pytest.fixture(scope="session")
def published() -> pd.DataFrame:
    """The published pair table: 20 tasks, 28 metrics in columns 2 to 30, outcomes of six methods."""
    if not PUBLISHED.is_file():
        pytest.skip(
            f"the published pair table is not at {PUBLISHED}; set MERGEABILITY_PUBLISHED_TABLE to its path"
        )
    return pd.read_csv(PUBLISHED)


@pytest.fixture(scope="session")
def joined(published):
    """The published table with the zero-shot accuracies of ViT-B/16 from the file next to it."""
    path = PUBLISHED.parent / "zero_shot.csv"
    if not path.is_file():
        pytest.skip(f"the zero-shot accuracies are not at {path}")
    zero_shot = pd.read_csv(path).set_index("task")["vit_b16"]
    return published.assign(
        **{f"base_accuracy_{end}": published[f"task_{end}"].map(zero_shot) for end in "ab"}
    )
