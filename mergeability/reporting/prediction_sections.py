"""Build the report's sections on prediction."""

from typing import Any

import pandas as pd

from mergeability.prediction.questions.evidence_costs import evidence_costs
from mergeability.prediction.study import beyond_task_effects
from mergeability.prediction.validation.protocols import BOTH_NEW, KNOWN_PARTNER
from mergeability.reporting import figures
from mergeability.reporting.evidence_sections import (
    category_ablation,
    coefficients,
    fingerprints,
    single_metrics,
    stable_metrics,
)
from mergeability.reporting.page import (
    Section,
    bullet_list,
    figure_block,
    folded,
    paragraphs,
    table,
)
from mergeability.reporting.prediction_parts import (
    first_protocol,
    fit_choices,
    study_records,
    study_table,
    target_choice,
)
from mergeability.reporting.summaries import (
    BASELINES,
    TARGET_NAMES,
    Analysis,
    predictor_table,
    record_frame,
)
from mergeability.reporting.uncertainty_sections import (
    choice_of_method,
    prediction_intervals,
    seed_spread,
    set_scores,
)

_PREDICTOR_COLUMNS = {
    "r_mean": "r",
    "r_std": "± folds",
    "rho_mean": "ρ",
    "pooled_r": "pooled r",
    "mae": "error",
    "r2_over_training_mean": "R² over mean",
    "train_r_mean": "r in training",
    "n_undefined": "folds without r",
}


_NEW_COLUMNS = {
    "method": "method",
    "r_beyond_mean": "r beyond mean",
    "r_beyond_mean_low": "95 % from",
    "r_beyond_mean_high": "to",
    "r2_over_training_mean": "R² over mean",
    "mae": "error",
    "pooled_r": "pooled r",
    "n_pairs": "pairs",
}


_COST_COLUMNS = {
    "cost": "cost",
    "rests_on": "rests on",
    "r": "r beyond mean",
    "r_low": "95 % from",
    "r_high": "to",
    "half_width": "± interval",
    "coverage": "coverage",
    "regret": "regret of choice",
}


_SHOWN_PAIRS = 60


def sections(analysis: Analysis) -> list[Section | None]:
    """Create the main sections on prediction; a section without content is None."""
    return [
        _scores(analysis),
        _predictors(analysis),
        _both_new(analysis),
        _beyond(analysis),
        _predictions(analysis),
        prediction_intervals(analysis),
        choice_of_method(analysis),
    ]


def details(analysis: Analysis) -> list[Section | None]:
    """Create the appendix's sections on prediction."""
    return [
        single_metrics(analysis),
        category_ablation(analysis),
        coefficients(analysis),
        fingerprints(analysis),
        stable_metrics(analysis),
        seed_spread(analysis),
        set_scores(analysis),
    ]


def _scores(analysis: Analysis) -> Section | None:
    if analysis.scorer is None or analysis.scores.empty:
        return None
    scorer, scores = analysis.scorer, analysis.scores
    evidence = scorer.evidence_for(list(analysis.pairs.columns))
    body = paragraphs(
        f"The scores are predictions by a ridge regression on {len(evidence.metrics)} metrics, which was fitted"
        f" on earlier merges of pairs of {len(scorer.tasks)} tasks. The interval should contain the outcomes of"
        " 90 % of a new task's pairs; the recommended method is the one whose interval has the highest lower"
        " bound. The predictor abstains where a metric is outside the range of the training pairs.",
        note=True,
    )
    skill = pd.DataFrame(
        {
            name: {
                "r_beyond_mean": fit.r_beyond_mean,
                "r_low": fit.r_low,
                "half_width": fit.half_width,
                "level": fit.level,
                "n_pairs": fit.n_pairs,
            }
            for name, fit in evidence.methods.items()
        }
    ).T
    columns = {
        "r_beyond_mean": "r beyond mean, two new tasks",
        "r_low": "95 % from",
        "half_width": "± interval",
        "level": "at level",
    }
    body += paragraphs("Accuracy of this predictor on pairs outside its training set:", note=True)
    body += table(skill, columns, "method", caption="Skill of the fitted predictor")
    blind = [name for name, fit in evidence.methods.items() if not (fit.r_low or 0) > 0]
    if blind:
        body += paragraphs(
            f"For {', '.join(blind)}, the predictions are no better than the mean outcome of earlier merges."
            " If only such methods are compared, the recommendation is based on mean outcomes alone."
        )
    if len(analysis.transfer):
        body += paragraphs(
            "These pairs were also merged; comparison of scores and measured outcomes:", note=True
        )
        body += table(
            analysis.transfer.set_index("method"),
            {
                "r": "r",
                "mae": "error",
                "mae_of_mean": "error of the mean",
                "covered": "inside the interval",
                "n_pairs": "pairs",
                "n_abstained": "abstained",
            },
            "method",
            caption="Scores against measured outcomes",
        )
    shown = scores.assign(
        pair=[f"{a} + {b}" for a, b in zip(scores["task_a"], scores["task_b"], strict=True)]
    )
    names = {f"score_{name}": name for name in evidence.methods}
    listing = table(
        shown.set_index("pair"),
        {
            "recommended": "recommended",
            **names,
            "driven_by": "driven by",
            "abstains": "abstains: outside the range",
        },
        "pair",
        texts=["recommended", "driven_by", "abstains"],
        caption="Scores of every pair",
    )
    body += listing if len(shown) <= _SHOWN_PAIRS else folded("Every pair", listing)
    return Section("scores", "Will these models merge well?", body)


def _predictors(analysis: Analysis) -> Section | None:
    records = study_records(analysis, KNOWN_PARTNER)
    if not records:
        return None
    frame = record_frame(records)
    body = paragraphs(
        "Leave one task out: predictors are fitted without the pairs of one task and then predict these"
        " pairs, so the other task of each pair occurs in the training set. Values are Pearson correlations"
        " between predicted and measured outcomes on these pairs, averaged over the left-out tasks. Rows with"
        " a coloured background are baselines that use no metrics: `mean` always predicts the training mean"
        " and has no correlation, `additive` uses each task's average outcome, and `finetuned` uses the"
        " accuracies of the two models. Pooled r combines folds with different means, so it can be negative"
        " even for the baseline `mean`; error is the mean absolute error.",
        note=True,
    )
    plots, tables = {}, ""
    for target in dict.fromkeys(frame["target"]):
        summary = predictor_table(records, target)
        plots[target] = [figures.predictor_comparison(frame[frame["target"] == target], list(summary.index))]
        tables += paragraphs(f"Mean over methods, {TARGET_NAMES.get(target, target)}:", note=True)
        tables += table(
            summary,
            _PREDICTOR_COLUMNS,
            "predictor",
            marked=BASELINES,
            caption=f"Predictors of {TARGET_NAMES.get(target, target)}, leave one task out",
        )
    body += figure_block(
        "predictors",
        plots,
        [target_choice(analysis)],
        described="Correlation of every predictor with the outcome",
    )
    by_method = frame.set_index("predictor")
    columns = {"method": "method", "target": "target", **_PREDICTOR_COLUMNS, "n_pairs": "pairs"}
    body += tables + folded(
        "Results of each method",
        table(
            by_method,
            columns,
            "predictor",
            ["method", "target"],
            BASELINES,
            caption="Predictors of every method, leave one task out",
        ),
    )
    return Section("predictors", "How well is a pair with one new task predicted (leave one task out)?", body)


def _both_new(analysis: Analysis) -> Section | None:
    records = study_records(analysis, BOTH_NEW)
    if not records:
        return None
    frame = record_frame(records)
    frame = frame[frame["protocol"] == frame["protocol"].iloc[0]]
    body = paragraphs(
        "Leave two tasks out: neither task of a pair occurs in the training set, as for two models that were"
        " never merged before. The predictions of all folds are pooled. The training mean is lower when a"
        " good pair is left out. Therefore the pooled r of a constant prediction is close to −1, and the"
        " pooled r of nearly constant predictions is too low. The column `r beyond mean` corrects this: it"
        " shows the correlation between predictions and outcomes after each fold's training mean is"
        " subtracted from both. Its interval is a jackknife over tasks. A dash means that the predictor always"
        " predicts the training mean.",
        note=True,
    )
    first = str(frame["target"].iloc[0])
    worth = evidence_costs(records, analysis.prediction.tables if analysis.prediction else {}, first)
    if len(worth) > 1:
        body += paragraphs(
            f"Scores of predictors by kind of evidence, {TARGET_NAMES.get(first, first)}, averaged over"
            " methods. In the column `cost`, `no merge` means that only the two models are used, and `a probe`"
            " means that the pair is merged and the merged model classifies unlabelled images.",
            note=True,
        )
        body += table(
            worth, _COST_COLUMNS, "predictor", ["cost", "rests_on"], ["mean"], caption="Kinds of evidence"
        )
    for target, rows in frame.groupby("target", sort=False):
        own = rows.sort_values(["method", "predictor"], key=in_order(rows), kind="stable").set_index(
            "predictor"
        )
        name = TARGET_NAMES.get(str(target), str(target))
        body += folded(
            f"{name[0].upper()}{name[1:]}",
            table(
                own,
                _NEW_COLUMNS,
                "predictor",
                ["method"],
                BASELINES,
                caption=f"Predictors of {name}, leave two tasks out",
            ),
            opened=target == first,
        )
    return Section("both-new", "How well is a pair of two new tasks predicted (leave two tasks out)?", body)


def in_order(rows: pd.DataFrame) -> Any:
    """Return a sort key that keeps the order of names, but puts baselines before other predictors."""

    def rank(column: pd.Series) -> pd.Series:
        names = list(dict.fromkeys(rows[str(column.name)]))
        names.sort(key=lambda name: name not in BASELINES)
        return column.map({name: i for i, name in enumerate(names)})

    return rank


def _beyond(analysis: Analysis) -> Section | None:
    variance, tested = study_table(analysis, "variance"), study_table(analysis, "relabelling")
    if variance.empty:
        return None
    body = paragraphs(
        "The figure divides the variance of outcomes over pairs into three shares: the share explained by task"
        " effects (which tasks are in the pair), the additional share explained by metrics (adjusted for the"
        " number of metrics), and the unexplained rest. The table below tests whether metrics without their task"
        " effects reduce the error on pairs of a left-out task, and whether they reduce it more than metrics"
        " with permuted task names.",
        note=True,
    )
    plots = {
        str(target): [figures.variance_bars(rows)] for target, rows in variance.groupby("target", sort=False)
    }
    body += figure_block(
        "beyond", plots, [target_choice(analysis)], described="Shares of the variance of outcomes over pairs"
    )
    if len(tested):
        for target in dict.fromkeys(tested["target"]):
            body += paragraphs(f"{TARGET_NAMES.get(target, target)}:", note=True)
            body += bullet_list(beyond_task_effects(tested, target))
        columns = {
            "target": "target",
            "r": "r of ridge",
            "p": "p, permutation test",
            "gain": "error saved beyond task effects",
            "p_beyond": "p, permutation test",
        }
        body += folded(
            "The tests as a table",
            table(tested.set_index("method"), columns, "method", ["target"], caption="Permutation tests"),
        )
    return Section("beyond", "Do metrics improve predictions beyond task effects?", body)


def _predictions(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.predictions.empty:
        return None
    found = prediction.of(first_protocol(analysis, KNOWN_PARTNER))
    if found.predictions.empty:
        return None
    keys = ["target", "method", "predictor"]
    folds = dict(list(found.folds.groupby(keys, sort=False)))
    plots = {
        "|".join(map(str, key)): [
            figures.predicted_against_measured(rows, TARGET_NAMES.get(str(key[0]), str(key[0]))),
            figures.fold_correlations(folds[key]),
        ]
        for key, rows in found.predictions.groupby(keys, sort=False)
    }
    body = paragraphs(
        "Each point is a pair, predicted by a fit without the pairs of one of its tasks; colours show the"
        " left-out task. Each pair appears twice, once for each of its tasks. On the dotted line, the"
        " prediction equals the measured outcome.",
        note=True,
    )
    body += figure_block(
        "predictions",
        plots,
        fit_choices(analysis, found.predictions),
        described="Predicted outcomes against measured outcomes",
    )
    return Section("predictions", "How close are predictions to measured outcomes?", body)
