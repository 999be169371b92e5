"""Write the verdict on a pair that was predicted because the budget did not include an evaluation of this pair."""

import pandas as pd

from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdict_reasons import distance, of_base, unusual_images
from mergeability.prediction.answers import TARGET_WORDS, Forecast, Verdict
from mergeability.prediction.pair_table import TARGETS


def of_predicted_pair(analysis: Analysis, subject: str, models: list[str]) -> Verdict | None:
    """Return the verdict on a pair that was predicted from other pairs; None if it was not predicted."""
    predicted = _forecasts(analysis, models)
    if predicted is None:
        return None
    target, forecasts = predicted
    best = forecasts[0]
    accuracy = analysis.predicted_accuracy
    own = accuracy[(accuracy["target"] == target) & (accuracy["method"] == best.method)].iloc[0]
    return Verdict(
        subject,
        target,
        f"Merge by {best.method}: expect {best.expected:.1%} {TARGET_WORDS[target]}, from {best.interval} for"
        f" {own['level']:.0%} of such pairs.",
        tuple(forecasts),
        float(own["level"]),
        choice=tuple(distance(forecasts)),
        sureness=(
            f"Predicted from {own['n_measured']} evaluated pairs of these models, not measured: in cross-validation"
            f" over these pairs, the mean absolute error was {own['mae']:.3f} ({own['mae_of_mean']:.3f} for "
            "always predicting"
            f" the mean), and r = {own['r']:.2f}.",
        ),
        reasons=tuple(of_base(analysis, models)),
        next_steps=(f"Evaluate this pair: pairs='[[{', '.join(models)}]]'.",),
        cautions=tuple(unusual_images(analysis, models)),
    )


def _forecast(row: pd.Series, target: str, accuracy: pd.Series) -> Forecast:
    name = f"{target}_{accuracy['method']}"
    return Forecast(
        str(accuracy["method"]),
        float(row[f"predicted_{name}"]),
        float(row[f"predicted_low_{name}"]),
        float(row[f"predicted_high_{name}"]),
        f"{accuracy['predictor']}, fitted on {accuracy['n_measured']} pairs",
    )


def _forecasts(analysis: Analysis, models: list[str]) -> tuple[str, list[Forecast]] | None:
    """Return the target and the predicted outcomes of a pair beyond the budget, best first, or None."""
    table = analysis.predicted_pairs
    if table.empty:
        return None
    ends = table[["task_a", "task_b"]]
    rows = table[ends.isin(models).all(axis=1)]
    accuracy = analysis.predicted_accuracy
    for target in TARGETS if len(rows) else ():
        found = [
            _forecast(rows.iloc[0], target, one)
            for _, one in accuracy[accuracy["target"] == target].iterrows()
        ]
        found = [one for one in found if one.expected == one.expected]
        if found:
            return target, sorted(found, key=lambda one: -one.expected)
    return None
