"""Score sets of models by the mean score of their pairs."""

from itertools import combinations

import numpy as np
import pandas as pd

from mergeability.prediction.validation.scores import spearman_rho

MEASURED = "measured pairs"
"""The score that needs no predictor: what the set's pairs came to when they were merged."""


def set_score_table(sets: pd.DataFrame, pairs: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Rank sets of models by the scores of their pairs, and compare this ranking with the ranking by measured outcomes.

    A pair's score is its prediction while its tasks were left out, averaged over folds; the score of a set is the mean
    over its pairs. For `measured pairs`, the score of a pair is its own measured outcome.

    Args:
        sets: one row per set: `tasks`, joined by +, `arity`, and outcomes `<target>_<method>`.
        pairs: the pair table.
        predictions: predictions of `PredictionResult`.

    Returns:
        One row per protocol, target, method, arity and predictor: `rho`, Spearman's rank correlation over the `n_sets`
        sets whose pairs all have a score; NaN for fewer than three.
    """
    rows = []
    ends = pairs[["task_a", "task_b"]].itertuples(index=False, name=None)
    names = [frozenset(pair) for pair in ends]
    keys = ["protocol", "target", "method", "predictor"]
    scored = [
        (dict(zip(keys, key, strict=True)), _pair_scores(group))
        for key, group in predictions.groupby(keys, sort=False)
    ]
    outcomes = {(one["target"], one["method"]): None for one, _ in scored}
    for target, method in outcomes:
        column = f"{target}_{method}"
        if column in pairs.columns:
            known = {name: value for name, value in zip(names, pairs[column], strict=True) if value == value}
            scored.append(
                ({"protocol": "", "target": target, "method": method, "predictor": MEASURED}, known)
            )
    for labels, scores in scored:
        column = f"{labels['target']}_{labels['method']}"
        if column not in sets.columns:
            continue
        for arity, group in sets[sets[column].notna()].groupby("arity", sort=True):
            of_sets = np.array([_set_score(str(tasks), scores) for tasks in group["tasks"]])
            usable = ~np.isnan(of_sets)
            measured = group[column].to_numpy(dtype=float)[usable]
            rho = spearman_rho(of_sets[usable], measured)
            rows.append(labels | {"arity": int(str(arity)), "n_sets": int(usable.sum()), "rho": rho})
    return pd.DataFrame(rows, columns=[*keys, "arity", "n_sets", "rho"])


def _pair_scores(predictions: pd.DataFrame) -> dict[frozenset[str], float]:
    means = predictions.groupby(["task_a", "task_b"], sort=False)["predicted"].mean()
    return {frozenset(map(str, pair)): float(value) for pair, value in means.items()}  # type: ignore[arg-type]


def _set_score(tasks: str, scores: dict[frozenset[str], float]) -> float:
    pairs = [frozenset(pair) for pair in combinations(tasks.split("+"), 2)]
    if not all(pair in scores for pair in pairs):
        return float("nan")
    return float(np.mean([scores[pair] for pair in pairs]))
