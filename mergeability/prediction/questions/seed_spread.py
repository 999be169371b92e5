"""How much a predictor that starts at random depends on its start."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd

from mergeability.prediction.validation.folds import Fold, inputs_of
from mergeability.prediction.validation.scores import pearson_r


def starts_at_random(predictor: Any) -> bool:
    """Say whether a predictor fits many problems at once, each from a start of its own."""
    return hasattr(predictor, "fit_many") and "seeds" in signature(predictor.fit_many).parameters


def seed_spread(predictors: Mapping[str, Any], folds: Sequence[Fold], seeds: Sequence[int]) -> pd.DataFrame:
    """Fit each fold from every seed: one row a predictor, target, method and seed, `r` the mean over the folds.

    Predictors without a random start are passed over; all runs of one are a single batch.
    """
    rows = []
    for name, predictor in predictors.items():
        if not starts_at_random(predictor):
            continue
        inputs = inputs_of(predictor)
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
    """Summarise over seeds: one row a predictor, target and method with `r_mean`, `r_std`, `r_least`, `r_most`."""
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
