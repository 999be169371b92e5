"""Write the conclusions of an analysis on one pair or set of models, or on new pairs of similar models."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.pipeline.predicted_verdicts import of_predicted_pair
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdict_reasons import (
    distance,
    known_models,
    next_steps,
    of_base,
    of_mean_features,
    of_pairs_like_these,
    of_tier,
    readings_of_probes,
    unusual_images,
)
from mergeability.prediction.answers import TARGET_WORDS, Forecast, Verdict
from mergeability.prediction.fits import Evidence
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.predictors.own_evidence import probe_columns
from mergeability.prediction.questions.evidence_costs import evidence_costs

# 90 % of the outcomes were within .08, .10 and .12 of the probe on 64 images, on three suites of ten rendered
# tasks (docs/decisions/0022-evidence.md). The largest is used, because other data may be harder.
PROBE_HALF_WIDTH = 0.12
_NAN = float("nan")
_WORDS = {
    "measured": "test images with labels",
    "probe": "a probe of the merge on unlabelled images",
    "mean": "the mean of these merges",
}


def verdict(analysis: Analysis, models: Sequence[str] | None = None) -> Verdict:
    """Return the verdict on some models: whether they merge well, with which method, how certainly, and why.

    Measured outcomes are preferred to the predictions of a fitted predictor, and these to the values of a probe.

    Args:
        analysis: the results of an analysis.
        models: two or more models of the analysis; by default its only pair or set, or else new pairs like its own.

    Raises:
        UserError: the analysis has no such pair or set.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.pipeline import Analysis, verdict
        >>> pairs = pd.DataFrame({"task_a": ["cars"], "task_b": ["svhn"], "norm_acc_ties": [0.95]})
        >>> verdict(Analysis("Two models", pairs, metrics=[], methods=["ties"])).recommended
        'ties'
    """
    if models is not None:
        return _of_one(analysis, *_row(analysis, list(models)))
    sets = analysis.sets
    if len(analysis.pairs) == 1 and sets.empty:
        pair = analysis.pairs.iloc[0]
        return _of_one(analysis, pair, [str(pair["task_a"]), str(pair["task_b"])])
    if _has_outcomes(analysis, analysis.pairs):
        return _of_new_pairs(analysis)
    if (
        len(sets)
        and analysis.scores.empty
        and not any(_probed(analysis, row) for _, row in analysis.pairs.iterrows())
    ):
        rows = [(str(row["tasks"]).split("+"), row) for _, row in sets.iterrows()]
        answers = [(" + ".join(models), _of_one(analysis, row, models)) for models, row in rows]
        return answers[0][1] if len(answers) == 1 else _of_many(analysis, answers, "set")
    if analysis.scores.empty and not any(
        str(name).startswith("probe_overlap_") for name in analysis.pairs.columns
    ):
        # No evidence covers any of the pairs.
        return _unanswered(analysis, f"{len(analysis.pairs)} pairs of {len(analysis.tasks)} models")
    pairs = [([str(row["task_a"]), str(row["task_b"])], row) for _, row in analysis.pairs.iterrows()]
    places = _places(analysis)
    return _of_many(
        analysis,
        [(" + ".join(models), _of_one(analysis, row, models, places)) for models, row in pairs],
        "pair",
    )


def _unanswered(analysis: Analysis, subject: str) -> Verdict:
    """Return the verdict on models for which only metrics are known."""
    return Verdict(
        subject,
        TARGETS[0],
        "No prediction: these models were compared, but neither merged nor scored by a fitted predictor.",
        next_steps=tuple(next_steps(analysis)),
        cautions=tuple(unusual_images(analysis, analysis.tasks)),
    )


def _row(analysis: Analysis, models: list[str]) -> tuple[pd.Series, list[str]]:
    """Find the row of a pair or set."""
    wanted = set(models)
    for _, pair in analysis.pairs.iterrows():
        if {str(pair["task_a"]), str(pair["task_b"])} == wanted:
            return pair, models
    for _, one in analysis.sets.iterrows():
        if set(str(one["tasks"]).split("+")) == wanted:
            return one, models
    raise UserError(
        f"This analysis contains no merge of {', '.join(models)}. Its models: {', '.join(analysis.tasks)}."
    )


def _has_outcomes(analysis: Analysis, table: pd.DataFrame) -> bool:
    columns = [f"{t}_{m}" for t in TARGETS for m in analysis.methods if f"{t}_{m}" in table.columns]
    return bool(columns) and bool(table[columns].notna().any(axis=None))


def _of_one(
    analysis: Analysis, row: pd.Series, models: list[str], places: Mapping[frozenset[str], int] | None = None
) -> Verdict:
    """Return the verdict on one pair or set; `places` maps pairs to rows of the scores, if there are many verdicts."""
    subject = f"Merging {' + '.join(models)}"
    measured = _measured(analysis, row)
    if measured is not None:
        return _from_measured(analysis, subject, models, *measured)
    scores = _scores_of(analysis, models, _places(analysis) if places is None else places)
    if scores is not None and scores["recommended"]:
        return _from_scores(analysis, subject, models, scores)
    probed = _probed(analysis, row)
    if probed:
        return _from_probe(analysis, subject, models, row, probed)
    predicted = of_predicted_pair(analysis, subject, models)
    if predicted is not None:
        return predicted
    cautions = [*known_models(analysis, models), *unusual_images(analysis, models)]
    if scores is not None:
        cautions.insert(0, f"Outside the range of the fitted predictor: {scores['abstains']}.")
    return Verdict(
        subject,
        TARGETS[0],
        "No prediction: these models were compared, but neither merged nor scored by a fitted predictor.",
        reasons=tuple(of_base(analysis, models)),
        next_steps=tuple(next_steps(analysis)),
        cautions=tuple(cautions),
    )


def _measured(analysis: Analysis, row: pd.Series) -> tuple[str, list[Forecast]] | None:
    """Return the target and the outcomes of a row, best first; None if none was measured."""
    for target in TARGETS:
        found = [
            Forecast(
                method,
                float(row[f"{target}_{method}"]),
                float(row.get(f"low_{target}_{method}", _NAN)),
                float(row.get(f"high_{target}_{method}", _NAN)),
                _WORDS["measured"],
            )
            for method in analysis.methods
            if pd.notna(row.get(f"{target}_{method}", _NAN))
        ]
        if found:
            return target, sorted(found, key=lambda one: -one.expected)
    return None


def _from_measured(
    analysis: Analysis, subject: str, models: list[str], target: str, forecasts: list[Forecast]
) -> Verdict:
    best = forecasts[0]
    return Verdict(
        subject,
        target,
        f"Merge by {best.method}: it keeps {best.expected:.1%} {TARGET_WORDS[target]} on the test images.",
        tuple(forecasts),
        choice=tuple(distance(forecasts)),
        sureness=("Measured on labelled test images of each task, not predicted.",),
        reasons=tuple(of_base(analysis, models)),
        cautions=tuple(unusual_images(analysis, models)),
    )


def _places(analysis: Analysis) -> dict[frozenset[str], int]:
    """Find the row of each pair among the scores by the fitted predictor."""
    if analysis.scores.empty:
        return {}
    ends = zip(analysis.scores["task_a"].astype(str), analysis.scores["task_b"].astype(str), strict=True)
    return {frozenset(pair): place for place, pair in enumerate(ends)}


def _scores_of(
    analysis: Analysis, models: list[str], places: Mapping[frozenset[str], int]
) -> pd.Series | None:
    """Find the scores of a pair by the fitted predictor."""
    place = places.get(frozenset(models)) if len(models) == 2 else None
    return None if place is None else analysis.scores.iloc[place]


def _from_scores(analysis: Analysis, subject: str, models: list[str], scores: pd.Series) -> Verdict:
    assert analysis.scorer is not None
    scorer = analysis.scorer
    tier = next(one for one in scorer.evidence if one.name == scores["evidence"])
    forecasts = [
        Forecast(
            method,
            float(scores[f"score_{method}"]),
            float(scores[f"score_low_{method}"]),
            float(scores[f"score_high_{method}"]),
            f"{tier.name}, fitted on {tier.methods[method].n_pairs} pairs",
        )
        for method in tier.methods
    ]
    best = str(scores["recommended"])
    forecasts.sort(key=lambda one: (one.method != best, -one.expected))
    first = forecasts[0]
    answer = (
        f"Merge by {best}: expect {first.expected:.1%} {TARGET_WORDS[scorer.target]}, between {first.interval} for"
        f" {tier.methods[best].level:.0%} of such pairs."
    )
    reasons = of_base(analysis, models)
    if scores["driven_by"]:
        reasons.append(
            "These metrics contribute most to the difference between this prediction and the mean outcome of"
            f" earlier merges: {scores['driven_by']}."
        )
    return Verdict(
        subject,
        scorer.target,
        answer.replace("between", "from"),
        tuple(forecasts),
        tier.methods[best].level,
        tuple(_choice_by(tier)),
        tuple(of_tier(tier, scorer.tasks)),
        tuple(reasons),
        tuple(next_steps(analysis)),
        (*known_models(analysis, models), *unusual_images(analysis, models)),
    )


def _choice_by(tier: Evidence) -> list[str]:
    """Describe the loss from choosing the method by a tier of evidence."""
    if not tier.informative:
        return [
            "This evidence does not predict any method better than its mean outcome, so the method with the "
            "best mean is"
            " recommended for every pair."
        ]
    if tier.regret is None or tier.fixed_regret is None:
        return []
    return [
        f"Chosen by {tier.name}, the method lost {100 * tier.regret:.2f} points against each pair's best one on pairs"
        f" the fit had not seen; always taking the best on average lost {100 * tier.fixed_regret:.2f}."
    ]


def _probed(analysis: Analysis, row: pd.Series) -> list[Forecast]:
    """Read the probes of a row as estimates of the normalised accuracy, best first."""
    found = []
    names = dict.fromkeys([*analysis.methods, *analysis.merged])
    for method in names:
        value = row.get(probe_columns("norm_acc", method)[0], _NAN)
        if pd.notna(value):
            ends = (float(value) - PROBE_HALF_WIDTH, float(value) + PROBE_HALF_WIDTH)
            found.append(Forecast(method, float(value), *ends, _WORDS["probe"]))
    return sorted(found, key=lambda one: -one.expected)


def _from_probe(
    analysis: Analysis, subject: str, models: list[str], row: pd.Series, forecasts: list[Forecast]
) -> Verdict:
    best = forecasts[0]
    return Verdict(
        subject,
        "norm_acc",
        f"Merge by {best.method}: expect {best.expected:.1%} {TARGET_WORDS['norm_acc']}, from {best.interval} for"
        " 90% of such merges.",
        tuple(forecasts),
        0.9,
        tuple(distance(forecasts)),
        tuple(readings_of_probes(PROBE_HALF_WIDTH)),
        (*of_base(analysis, models), *of_mean_features(row)),
        tuple(next_steps(analysis)),
        tuple(unusual_images(analysis, models)),
    )


def _of_new_pairs(analysis: Analysis) -> Verdict:
    """Return the verdict on new pairs of models like those whose merges this analysis evaluated."""
    target = analysis.targets[0]
    records = analysis.prediction.records if analysis.prediction is not None else []
    tables = analysis.prediction.tables if analysis.prediction is not None else {}
    worth = evidence_costs(records, tables, target)
    widths, level = _spread(tables.get("intervals", pd.DataFrame()), target)
    forecasts = []
    for method, mean in analysis.ranked_methods(target).items():
        count = int(analysis.pairs[f"{target}_{method}"].count())
        width = float(widths.get(str(method), _NAN))
        forecasts.append(
            Forecast(str(method), float(mean), mean - width, mean + width, f"mean of {count} pairs")
        )
    best = forecasts[0]
    spread = f", from {best.interval} for {level:.0%} of pairs" if best.interval else ""
    choice = distance(forecasts)
    fixed = _NAN if "mean" not in worth.index else float(worth["fixed_regret"]["mean"])
    if pd.notna(fixed):
        choice.append(
            f"If {best.method} is used for every pair, outcomes are {100 * fixed:.2f} points lower on average"
            " than with the best method of each pair."
        )
    return Verdict(
        f"Two new models like these {len(analysis.tasks)}",
        target,
        f"Merge by {best.method}: expect {best.expected:.1%} {TARGET_WORDS[target]}{spread}.",
        tuple(forecasts),
        level,
        (*analysis.of_budget, *choice),
        *of_pairs_like_these(analysis, worth),
    )


def _spread(intervals: pd.DataFrame, target: str) -> tuple[dict[str, float], float]:
    """Return each method's half-width around its mean outcome for pairs of two new tasks, and the level."""
    if len(intervals):
        intervals = intervals[(intervals["target"] == target) & (intervals["predictor"] == "mean")]
    if not len(intervals):
        return {}, _NAN
    own = intervals[intervals["protocol"] == intervals["protocol"].iloc[-1]]
    return dict(zip(own["method"].astype(str), own["half_width"].astype(float), strict=True)), float(
        own["level"].max()
    )


def _of_many(analysis: Analysis, answers: Sequence[tuple[str, Verdict]], noun: str) -> Verdict:
    """Summarise the verdicts on pairs or sets of models: the best and the worst, and their methods."""
    answered = [(name, one) for name, one in answers if one.forecasts]
    subject = f"{len(answers)} {noun}s of {len(analysis.tasks)} models"
    if not answered:
        return _unanswered(analysis, subject)
    answered.sort(key=lambda item: -item[1].forecasts[0].expected)
    (good, best), (bad, worst) = answered[0], answered[-1]
    words, verb = (
        TARGET_WORDS[best.target],
        "merges" if _WORDS["measured"] in best.forecasts[0].source else "should merge",
    )
    answer = f"{good} {verb} best, by {best.recommended} ({best.forecasts[0].expected:.1%} {words})"
    if len(answered) > 1:
        answer += f"; {bad} worst, by {worst.recommended} ({worst.forecasts[0].expected:.1%})"
    taken = pd.Series([one.recommended for _, one in answered]).value_counts()
    choice = [
        f"{method} is recommended for {count} of {len(answered)} {noun}s." for method, count in taken.items()
    ]
    if len(answered) < len(answers):
        choice.append(f"{len(answers) - len(answered)} of {len(answers)} {noun}s were not predicted.")
    cautions = [*known_models(analysis, analysis.tasks), *unusual_images(analysis, analysis.tasks)]
    return Verdict(
        subject,
        best.target,
        f"{answer}.",
        # One forecast per method, the mean over the pairs or sets, so that the table describes all of them.
        tuple(_mean_forecasts([one for _, one in answered])),
        float("nan"),
        tuple(choice),
        best.sureness,
        tuple(of_base(analysis, analysis.tasks)),
        tuple(next_steps(analysis)),
        tuple(cautions),
    )


def _mean_forecasts(verdicts: Sequence[Verdict]) -> list[Forecast]:
    """Average every method's forecasts over pairs or sets, the best mean first."""
    found: dict[str, list[Forecast]] = {}
    for one in verdicts:
        for forecast in one.forecasts:
            found.setdefault(forecast.method, []).append(forecast)
    means = [
        Forecast(method, float(np.mean([one.expected for one in own])), _NAN, _NAN, f"mean of {len(own)}")
        for method, own in found.items()
    ]
    return sorted(means, key=lambda one: -one.expected)
