"""Measure how much the scores of a predictor vary with its random initialisation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mergeability.prediction.predictors.base import BatchPredictor, Predictor, traits
from mergeability.prediction.validation.folds import Fold
from mergeability.prediction.validation.scores import pearson_r


def seed_spread(
    predictors: Mapping[str, Predictor], folds: Sequence[Fold], seeds: Sequence[int]
) -> pd.DataFrame:
    """Fit each randomly initialised predictor with several seeds, and correlate the predictions with the outcomes.

    Args:
        predictors: name → regressor; those without a random start are skipped.
        folds: folds of all outcomes.
        seeds: seeds of the random starts.

    Returns:
        One row per predictor, target, method and seed, with `r`, the mean over the folds.
    """
    rows = []
    for name, predictor in predictors.items():
        own_traits = traits(predictor)
        if not isinstance(predictor, BatchPredictor) or not own_traits.random_start:
            continue
        inputs = own_traits.inputs
        problems = [(fold.shared.training_features(inputs), fold.training_outcome, None) for fold in folds]
        fitted = predictor.fit_many(
            [problem for _ in seeds for problem in problems], seeds=[seed for seed in seeds for _ in problems]
        )
        for position, seed in enumerate(seeds):
            own = fitted[position * len(folds) : (position + 1) * len(folds)]
            found: dict[tuple[str, str], list[float]] = {}
            for fold, model in zip(folds, own, strict=True):
                rows_of = fold.split.validation
                predicted = model.predict(fold.shared.features(inputs)[rows_of])
                found.setdefault((fold.target, fold.method), []).append(
                    pearson_r(np.asarray(predicted, dtype=float), fold.outcome[rows_of])
                )
            for (target, method), values in found.items():
                known = np.array(values)[~np.isnan(values)]
                r = float(known.mean()) if len(known) else float("nan")
                rows.append({"predictor": name, "target": target, "method": method, "seed": seed, "r": r})
    return pd.DataFrame(rows, columns=["predictor", "target", "method", "seed", "r"])


def seed_table(spread: pd.DataFrame) -> pd.DataFrame:
    """Compute `r_mean`, `r_std`, `r_least` and `r_most` over seeds for each predictor, target and method."""
    keys = ["predictor", "target", "method"]
    if spread.empty:
        return pd.DataFrame(columns=[*keys, "seeds", "r_mean", "r_std", "r_least", "r_most"])
    groups = spread.groupby(keys, sort=False)["r"]
    table = pd.DataFrame(
        {
            "seeds": groups.size(),
            "r_mean": groups.mean(),
            "r_std": groups.std(ddof=0),
            "r_least": groups.min(),
            "r_most": groups.max(),
        }
    )
    return table.reset_index()
