"""Choose a merge method for each pair by the predicted outcomes, and compare the chosen method with the best method."""

import numpy as np
import pandas as pd

KEYS = ["protocol", "target", "predictor"]
PLACES = ["held_out", "task_a", "task_b"]
VALUES = ["measured", "predicted", "training_mean"]


def method_choice(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compare, for each validation pair, the recommended method with the method that had the best measured outcome.

    Only pairs with an outcome and a prediction for every method count. Of methods with equal predictions, the one with
    the better training mean is chosen.

    Args:
        predictions: `PredictionResult.predictions`, one row per fold, outcome and validated pair.

    Returns:
        One row per protocol, target and predictor: `regret`, the mean of (best measured outcome - outcome of the
        chosen method), in outcome units, at least 0; `hit_rate`, the share of pairs whose chosen method is the best
        one; `fixed_regret` and `fixed_hit_rate`, the same for always choosing the method with the best mean outcome on
        the fold's training pairs; `n_choices`, the number of pairs, each counted once per fold that validates it.
        There is no row with fewer than two methods.
    """
    if predictions.empty:
        return pd.DataFrame()
    # One table for all predictors, because many small tables would dominate the time of a study.
    values = predictions.pivot_table(index=[*KEYS, *PLACES], columns="method", values=VALUES, sort=False)
    rows = []
    for key, group in values.groupby(KEYS, sort=False):
        outcomes = pd.DataFrame(group["measured"]).dropna(axis=1, how="all")
        whole = outcomes.notna().all(axis=1)
        if outcomes.shape[1] < 2 or not whole.any():
            continue
        measured, predicted, means = (group[name][outcomes.columns][whole].to_numpy() for name in VALUES)
        best = measured.max(axis=1)
        # Adding 1e-7 of the training mean decides only between equal predictions.
        chosen = _at(measured, predicted + 1e-7 * means)
        fixed = _at(measured, means)
        rows.append(
            dict(zip(KEYS, key, strict=True))
            | {
                "n_choices": len(measured),
                "n_methods": measured.shape[1],
                "regret": float((best - chosen).mean()),
                "hit_rate": float((chosen == best).mean()),
                "fixed_regret": float((best - fixed).mean()),
                "fixed_hit_rate": float((fixed == best).mean()),
            }
        )
    return pd.DataFrame(rows)


def _at(measured: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Take each row's measured outcome of the method with the largest score."""
    return measured[np.arange(len(measured)), scores.argmax(axis=1)]
