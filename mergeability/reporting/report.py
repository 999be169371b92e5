"""The report: one HTML file that opens offline and says first what was found."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from mergeability.prediction.fingerprints import fingerprints
from mergeability.reporting import figures
from mergeability.reporting.page import (
    Choice,
    Section,
    bullet_list,
    figure_block,
    folded,
    page,
    paragraphs,
    table,
)
from mergeability.reporting.tables import (
    BASELINES,
    TARGET_NAMES,
    Analysis,
    best_predictor,
    curve_table,
    headline,
    method_table,
    predictor_table,
    record_frame,
    scale_table,
    sets_table,
)
from mergeability.store import atomic_file

_LONG_LIST = 6
_MANY_TASKS = 12

_METHOD_COLUMNS = {
    "alpha": "α",
    "n_pairs": "pairs",
    "mean_norm_acc": "mean normalised",
    "worst_norm_acc": "worst",
    "worst_pair": "worst pair",
    "mean_acc": "mean accuracy",
    "worst_acc": "worst accuracy",
    "median_kept_gain": "gain kept",
    "median_margin": "± 95 %",
}
_SCALE_COLUMNS = {
    "alpha": "own α",
    "mean": "mean",
    "worst": "worst pair",
    "tuned_alpha": "tuned α",
    "tuned_mean": "tuned mean",
    "tuned_worst": "tuned worst pair",
}
_SET_COLUMNS = {
    "arity": "models",
    "sets": "sets",
    "mean": "mean normalised",
    "worst": "worst",
    "worst_set": "worst set",
    "worst_task": "worst task",
}
_MODEL_COLUMNS = {
    "chance": "chance",
    "pixel_accuracy": "pixels",
    "base_accuracy": "base",
    "finetuned_accuracy": "fine-tuned",
}
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


def write_report(analysis: Analysis, path: Path | str) -> None:
    """Write an analysis as one self-contained HTML file; parts it lacks are left out.

    Raises UserError where the file cannot be written.
    """
    sections = [
        section
        for section in (
            _models(analysis),
            _merges(analysis),
            _scales(analysis),
            _sets(analysis),
            _metrics(analysis),
            _predictors(analysis),
            _predictions(analysis),
            _coefficients(analysis),
            _fingerprints(analysis),
            _missing(analysis),
            _run(analysis),
        )
        if section is not None
    ]
    document = page(analysis.title, bullet_list(headline(analysis), lead=True), sections)
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(document, encoding="utf-8")


def _models(analysis: Analysis) -> Section | None:
    known = [name for name in _MODEL_COLUMNS if name in analysis.models.columns]
    if analysis.models.empty or not known:
        return None
    body = paragraphs("Test accuracy of each task before any merge.", note=True)
    body += figure_block("models", {"": [figures.accuracy_bars(analysis.models)]})
    accuracies = table(analysis.models, _MODEL_COLUMNS, "task")
    body += folded("Accuracies as a table", accuracies) if len(analysis.models) > _MANY_TASKS else accuracies
    return Section("models", "The models on their own", body)


def _merges(analysis: Analysis) -> Section | None:
    if not analysis.targets:
        return None
    plots = {}
    for target in analysis.targets:
        columns = [f"{target}_{m}" for m in analysis.methods if f"{target}_{m}" in analysis.pairs.columns]
        shared = figures.shared_bounds(analysis.pairs[columns])
        for column in columns:
            matrix = figures.pair_matrix(analysis.pairs, column, analysis.tasks)
            for colours, bounds in (("shared", shared), ("own", None)):
                plots[f"{target}|{column.removeprefix(f'{target}_')}|{colours}"] = [
                    figures.matrix_heat_map(matrix, analysis.tasks, bounds, TARGET_NAMES[target])
                ]
    summary = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    body = paragraphs(
        "Mean over a pair's two tasks. Normalised accuracy is the merged model's accuracy over that of the task's own"
        " fine-tuned model: 1 means that merging cost nothing. Gain kept is the median over pairs of how much of what"
        " fine-tuning gained over the base model survives: 1 all of it, 0 none.",
        note=True,
    )
    if summary["median_margin"].notna().any():
        body += paragraphs(
            "Measured on a random part of the test images: ± 95 % is half the width of a pair's confidence interval"
            " of the normalised accuracy, the median over pairs.",
            note=True,
        )
    else:
        summary = summary.drop(columns="median_margin")
    body += table(summary, _METHOD_COLUMNS, "method", texts=["worst_pair"])
    body += paragraphs("Every pair. Grey cells were not measured.", note=True)
    choices = [
        _targets(analysis),
        ("method", [(str(m), str(m)) for m in summary.index]),
        ("colours", [("shared", "same for all methods"), ("own", "this method's own range")]),
    ]
    body += figure_block("merges", plots, choices, square=True)
    return Section("merges", "How well the pairs merge", body)


def _scales(analysis: Analysis) -> Section | None:
    if analysis.curves.empty:
        return None
    curves = curve_table(analysis.curves)
    body = paragraphs(
        "The merged weights are θ₀ + α·M. Tuning computes M once per merge, tries a grid of α on the tasks' validation"
        " images and keeps the one with the best mean normalised accuracy; what stands in the tables is measured on"
        " the test images. Methods compared at an α that suits only one of them are not compared at all.",
        note=True,
    )
    both = scale_table(analysis)
    if len(both):
        body += paragraphs(
            "Normalised accuracy over pairs, each method at its own and at the tuned α:", note=True
        )
        body += table(both, _SCALE_COLUMNS, "method")
    body += figure_block("scales", {"": [figures.scale_curves(curves), figures.chosen_scales(curves)]})
    return Section("scales", "How far to go: the scale α", body)


def _sets(analysis: Analysis) -> Section | None:
    summary = sets_table(analysis)
    if summary.empty:
        return None
    body = paragraphs(
        "More than two models merged into one. Mean and worst over the sets, of the mean normalised accuracy over a"
        " set's tasks; worst task is the lowest of all single tasks.",
        note=True,
    )
    columns = [f"norm_acc_{method}" for method in analysis.methods]
    body += figure_block("sets", {"": [figures.set_outcomes(analysis.sets, columns)]})
    body += table(summary.set_index("method"), _SET_COLUMNS, "method", texts=["worst_set"])
    return Section("sets", "Many models in one", body)


def _metrics(analysis: Analysis) -> Section | None:
    known = [m for m in analysis.metrics if m in analysis.pairs.columns and analysis.pairs[m].notna().any()]
    if not known:
        return None
    plots = {
        metric: [
            figures.matrix_heat_map(
                figures.pair_matrix(analysis.pairs, metric, analysis.tasks), analysis.tasks, None, ""
            )
        ]
        for metric in known
    }
    body = paragraphs(
        "How every two models relate. Each metric has its own colour scale; grey cells are undefined.",
        note=True,
    )
    body += figure_block("metrics", plots, [("metric", [(m, figures.label(m)) for m in known])], square=True)
    return Section("metrics", "How the models relate", body)


def _predictors(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or not prediction.records:
        return None
    frame = record_frame(prediction.records)
    targets = list(dict.fromkeys(frame["target"]))
    body = paragraphs(
        "Pearson correlation between predicted and measured outcome on the pairs of a task that was left out of the"
        " fit, averaged over the tasks. The tinted rows are baselines that look at no metric: mean always says the"
        " training mean and so has no correlation, additive knows how the partner merges with others. Pooled r mixes"
        " folds that differ in level, hence it can even be negative for mean; error is the mean absolute one.",
        note=True,
    )
    plots, tables = {}, ""
    for target in targets:
        summary = predictor_table(prediction.records, target)
        plots[target] = [figures.predictor_comparison(frame[frame["target"] == target], list(summary.index))]
        tables += paragraphs(f"Mean over methods, {TARGET_NAMES.get(target, target)}:", note=True)
        tables += table(summary, _PREDICTOR_COLUMNS, "predictor", marked=BASELINES)
    body += figure_block("predictors", plots, [_targets(analysis)])
    by_method = frame.set_index("predictor")
    columns = {"method": "method", "target": "target", **_PREDICTOR_COLUMNS, "n_pairs": "pairs"}
    body += tables + folded(
        "Every method on its own", table(by_method, columns, "predictor", ["method", "target"], BASELINES)
    )
    return Section("predictors", "How well merging can be foreseen", body)


def _predictions(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.predictions.empty:
        return None
    keys = ["target", "method", "predictor"]
    folds = dict(list(prediction.folds.groupby(keys, sort=False)))
    plots = {
        "|".join(map(str, key)): [
            figures.predicted_against_measured(rows, TARGET_NAMES.get(str(key[0]), str(key[0]))),
            figures.fold_correlations(folds[key]),
        ]
        for key, rows in prediction.predictions.groupby(keys, sort=False)
    }
    body = paragraphs(
        "Each point is a pair, predicted by a fit that never saw one of its tasks (one colour a left-out task); each"
        " pair appears once for either task. On the dotted line a prediction is exact.",
        note=True,
    )
    body += figure_block("predictions", plots, _fit_choices(analysis, prediction.predictions))
    return Section("predictions", "Predicted against measured", body)


def _coefficients(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.coefficients.empty:
        return None
    groups = prediction.coefficients.groupby(["target", "method", "predictor"], sort=False)
    plots = {"|".join(map(str, key)): [figures.coefficient_bars(rows)] for key, rows in groups}
    body = paragraphs(
        "Coefficients averaged over the fits, one for each left-out task; whiskers show their standard deviation."
        " Metrics are scaled to [-1, 1], so lengths can be compared; correlated metrics share or trade their"
        " weight, so a sign alone proves little. For additive the rows are task effects.",
        note=True,
    )
    body += figure_block("coefficients", plots, _fit_choices(analysis, prediction.coefficients))
    return Section("coefficients", "What the predictors listen to", body)


def _fingerprints(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.coefficients.empty:
        return None
    metric_rows = prediction.coefficients[prediction.coefficients["metric"].isin(analysis.metrics)]
    if metric_rows["method"].nunique() < 2:
        return None
    plots = {}
    for (target, predictor), rows in metric_rows.groupby(["target", "predictor"], sort=False):
        compared = fingerprints(rows).rename(columns={"method_a": "task_a", "method_b": "task_b"})
        methods = list(dict.fromkeys(rows["method"]))
        plots[f"{target}|{predictor}"] = [
            figures.matrix_heat_map(
                figures.pair_matrix(compared, column, methods), methods, (0.0, 1.0), "share"
            )
            for column in ("top5_overlap", "sign_agreement")
        ]
    body = paragraphs(
        "Do methods succeed for the same reasons? Left: share of the five largest metrics that two methods have in"
        " common. Right: share of metrics with the same sign.",
        note=True,
    )
    choices = [_targets(analysis), _predictor_choice(analysis, metric_rows)]
    body += figure_block("fingerprints", plots, choices, square=True)
    return Section("fingerprints", "Fingerprints of the methods", body)


def _missing(analysis: Analysis) -> Section:
    sentences = [*analysis.missing, *(analysis.prediction.notes if analysis.prediction is not None else [])]
    if not sentences:
        return Section(
            "missing", "What is missing", paragraphs("Nothing: every part of this run is complete.")
        )
    body = bullet_list(sentences[:_LONG_LIST])
    if len(sentences) > _LONG_LIST:
        rest = sentences[_LONG_LIST:]
        body += folded(f"{len(rest)} more", bullet_list(rest))
    return Section("missing", "What is missing", body)


def _run(analysis: Analysis) -> Section:
    text = json.dumps(dict(analysis.run), indent=2, default=str, ensure_ascii=False)
    facts = folded("Configuration, versions and hashes", f"<pre>{escape(text)}</pre>")
    return Section(
        "run", "How this was made", facts if analysis.run else paragraphs("No facts were recorded.")
    )


def _targets(analysis: Analysis) -> Choice:
    return ("outcome", [(target, TARGET_NAMES[target]) for target in analysis.targets])


def _predictor_choice(analysis: Analysis, rows: pd.DataFrame) -> Choice:
    """Offer the best predictor first: what is seen without choosing should be the main result."""
    assert analysis.prediction is not None
    names: Sequence[str] = list(dict.fromkeys(rows["predictor"].astype(str)))
    best = best_predictor(analysis.prediction.records, str(rows["target"].iloc[0]))
    ordered = sorted(names, key=lambda name: name != best)
    return ("predictor", [(name, name) for name in ordered])


def _fit_choices(analysis: Analysis, rows: pd.DataFrame) -> list[Choice]:
    methods = method_table(analysis.pairs, list(dict.fromkeys(rows["method"])), analysis.alphas).index
    return [
        _targets(analysis),
        ("method", [(str(m), str(m)) for m in methods]),
        _predictor_choice(analysis, rows),
    ]
