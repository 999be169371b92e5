"""Write the sentences of a verdict: its evidence, its certainty, and how to make it more certain."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergeability.pipeline.result import Analysis
from mergeability.prediction.answers import Forecast
from mergeability.prediction.fits import Evidence
from mergeability.profiles.answers import BY_CHANCE

_BETTER = 0.05
"""The increase in correlation from which a next step is worth mentioning."""


def distance(forecasts: Sequence[Forecast]) -> list[str]:
    """Describe how much better the best method is than the second best and the worst method."""
    if len(forecasts) < 2:
        return ["Only one method was tried."]
    best, second, last = forecasts[0], forecasts[1], forecasts[-1]
    sentence = f"{second.method} comes second, {100 * (best.expected - second.expected):.1f} points lower"
    if last is not second:
        sentence += f"; {last.method} is last, {100 * (best.expected - last.expected):.1f} points lower"
    return [f"{sentence}."]


def of_base(analysis: Analysis, models: Sequence[str]) -> list[str]:
    """Describe how well the base model already solves the task of each model."""
    known = analysis.models
    if "base_agreement" in known.columns and known["base_agreement"].notna().any():
        agreement = known["base_agreement"].dropna()
        return _extremes(
            agreement, models, "The base agrees with {name}'s model on {value:.0%} of its unlabelled images"
        )
    if {"base_accuracy", "finetuned_accuracy"} <= set(known.columns):
        ratio = (
            known["base_accuracy"] / known["finetuned_accuracy"].where(known["finetuned_accuracy"] > 0)
        ).dropna()
        return _extremes(
            ratio, models, "The base alone reaches {value:.0%} of the accuracy of {name}'s model"
        )
    return []


def of_mean_features(row: pd.Series) -> list[str]:
    """Describe how often the mean of the models' features predicts the same class as each model."""
    value = row.get("ensemble_overlap")
    if value is None or value != value:
        return []
    return [
        f"The mean of the models' features agrees with each task's own model to {value:.0%} (ensemble_overlap)."
    ]


def _extremes(values: pd.Series, models: Sequence[str], sentence: str) -> list[str]:
    """Describe every model of a pair, or the models with the lowest and highest value of many."""
    values = values.sort_values()
    shown = [name for name in values.index if str(name) in models]
    if len(shown) > 2:
        shown = [shown[0], shown[-1]]
    found = []
    for name in shown:
        place = ""
        if len(values) > 2 and name == values.index[0]:
            place = f", the lowest of {len(values)}"
        elif len(values) > 2 and name == values.index[-1]:
            place = f", the highest of {len(values)}"
        found.append(f"{sentence.format(name=name, value=values[name])}{place}.")
    return found


def of_tier(tier: Evidence, tasks: Sequence[str]) -> list[str]:
    """Describe how accurate predictions from one kind of evidence are on pairs that were not part of the fit."""
    if not tier.informative:
        found = [
            f"Fitted on merges of {len(tasks)} tasks. On pairs of two tasks left out of the fit, {tier.name} predicted"
            " no better than the mean outcome of each method."
        ]
    else:
        above = sum((fit.r_low or 0) > 0 for fit in tier.methods.values())
        found = [
            f"Fitted on merges of {len(tasks)} tasks. On pairs of two tasks left out of the fit, {tier.name}"
            f" correlated with the outcome after subtracting the training mean, r = {tier.r:.2f} (95 % intervals"
            f" above 0: {above} of {len(tier.methods)} methods)."
        ]
    covered = [fit.coverage for fit in tier.methods.values() if fit.coverage is not None]
    if covered:
        width = np.mean([fit.half_width for fit in tier.methods.values()])
        found.append(
            f"The prediction intervals (± {width:.3f}) contained the outcomes of {np.mean(covered):.0%} of"
            " the pairs left out."
        )
    return found


def of_pairs_like_these(
    analysis: Analysis, worth: pd.DataFrame
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the certainty of predictions for new pairs of similar models, with reasons, next steps and cautions."""
    sureness = []
    for name, row in worth.iterrows():
        if name == "mean":
            continue
        sentence = f"{name} ({row['rests_on']}; {row['cost']}): "
        if row["informative"]:
            sentence += (
                f"r = {row['r']:.2f} (95 %: {row['r_low']:.2f} to {row['r_high']:.2f}; above 0 for {row['informative']}"
                f" of {row['n_methods']} methods)"
            )
        else:
            sentence += "no better than the mean outcome, for any method"
        if row["half_width"] == row["half_width"]:
            sentence += f", outcomes within ± {row['half_width']:.3f}"
        sureness.append(f"{sentence}.")
    if sureness:
        sureness.insert(
            0,
            "Correlation with the outcome after subtracting the training mean, on pairs of two tasks left out of the"
            " fit:",
        )
    useful = worth[(worth["informative"] > 0)] if len(worth) else worth
    reasons = []
    if {"functional", "known"} & set(useful.index):
        reasons += _direction(analysis)
        reasons += of_base(analysis, analysis.tasks)
    steps = (
        [_of_probe(float(worth["regret"]["probe"]), float(worth["fixed_regret"]["probe"]))]
        if "probe" in useful.index
        else []
    )
    steps += next_steps(analysis)
    cautions = []
    if 0 < len(analysis.tasks) < 15:
        cautions.append(
            f"These results are based on {len(analysis.tasks)} tasks; other tasks may behave differently."
        )
    return (
        tuple(sureness),
        tuple(reasons),
        tuple(steps),
        (*cautions, *unusual_images(analysis, analysis.tasks)),
    )


def _direction(analysis: Analysis) -> list[str]:
    """Describe whether these pairs merge better or worse if the base model is closer to the models."""
    pairs, target = analysis.pairs, analysis.targets[0]
    words = {
        "base_agreement": "the base already agrees with the models",
        "zero_shot_ratio": "the base is already nearly as accurate as the models",
    }
    column = next((name for name in words if name in pairs.columns), None)
    outcomes = [f"{target}_{method}" for method in analysis.methods if f"{target}_{method}" in pairs.columns]
    if column is None:
        return []
    r = float(pairs[column].corr(pairs[outcomes].mean(axis=1)))
    if r != r or r == 0:
        return []
    return [
        f"These models merge {'better' if r > 0 else 'worse'} if {words[column]}; predictions use this relation."
    ]


def _of_probe(regret: float, fixed_regret: float) -> str:
    sentence = (
        "Probe this pair with probe=64: one merge per method, evaluated on 64 unlabelled images of each task"
    )
    if regret == regret:
        sentence += (
            f"; choosing the method by the probe loses {100 * regret:.2f} points against each pair's best "
            "method, instead of"
            f" {100 * fixed_regret:.2f}"
        )
    return f"{sentence}."


def readings_of_probes(half_width: float) -> list[str]:
    """Describe the accuracy of a probe, which needs only unlabelled images and is not fitted to earlier merges."""
    return [
        "No earlier merges are used: the merged model classifies unlabelled images of each task, and the "
        "overlap with the"
        " predictions of the task's own model estimates its normalised accuracy: a small evaluation without labels.",
        "On three suites of ten rendered tasks with 64 images each, 90 % of the outcomes were within .08, .10 "
        "and .12 of"
        f" the estimate, which was .02 to .04 too low on average. The interval here is ± {half_width:.2f}; on "
        "other data the"
        " error may be larger.",
    ]


def known_models(analysis: Analysis, models: Sequence[str]) -> list[str]:
    """Return a caution that lists models whose weights were in the training set of the predictor."""
    if analysis.scorer is None or not analysis.scorer.models:
        return []
    hashes = analysis.run.get("checkpoint_sha256", {})
    fitted = {value: task for task, value in analysis.scorer.models.items()}
    found = {name: fitted[hashes[name]] for name in models if hashes.get(name) in fitted}
    if not found:
        return []
    names = ", ".join(name if name == task else f"{name} (there {task})" for name, task in found.items())
    verb = "was" if len(found) == 1 else "were"
    return [f"{names} {verb} part of the fit: the prediction is more accurate than for new models."]


def unusual_images(analysis: Analysis, models: Sequence[str]) -> list[str]:
    """List indications that the images given for a model belong to another model's task."""
    return [
        sentence
        for sentence in analysis.missing
        if BY_CHANCE in sentence and any(f"'{name}'" in sentence for name in models)
    ]


def next_steps(analysis: Analysis) -> list[str]:
    """List ways to make a verdict more certain, with their costs, cheapest first."""
    columns = set(analysis.pairs.columns)
    found = []
    models = max(len(analysis.tasks), 2)
    if "base_agreement" not in columns:
        passes = 64 * models * (models + 1)
        found.append(
            f"Functional evidence (metric=functional) costs {passes} forward passes on unlabelled images, and needs"
            " neither merges nor labels."
        )
    if not any(name.startswith("probe_overlap") for name in columns):
        found.append(
            "A probe (probe=64) costs one merge per method, which is evaluated on 64 unlabelled images of each task."
        )
    if analysis.scorer is None and not analysis.targets:
        found.append(
            "A predictor fitted on earlier merges of other models (fitted=<run folder>) needs no "
            "further merges. The errors on the earlier merges give prediction intervals."
        )
    if not analysis.targets:
        found.append("With labelled test images, the outcome can be measured instead of predicted.")
    return found
