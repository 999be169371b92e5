"""Build the report's sections on metrics: single metrics, categories, coefficients and the similarity of methods."""

from typing import Any

import numpy as np
import pandas as pd

from mergeability.prediction.validation.protocols import BOTH_NEW, KNOWN_PARTNER
from mergeability.reporting import figures
from mergeability.reporting.page import (
    Choice,
    Section,
    figure_block,
    folded,
    paragraphs,
    table,
)
from mergeability.reporting.prediction_parts import (
    fit_choices,
    predictor_choice,
    study_records,
    study_table,
    target_choice,
)
from mergeability.reporting.summaries import (
    Analysis,
    best_predictor,
)

_CONSISTENCY = ("rho", "rho_low", "rho_high", "rho_beyond", "n_pairs")


_SHOWN_METRICS = 15


def single_metrics(analysis: Analysis) -> Section | None:
    """Show how well each single metric predicts the outcome; return None if nothing was predicted."""
    single = study_table(analysis, "single_metrics")
    if single.empty:
        return None
    plots = {}
    for target, rows in single.groupby("target", sort=False):
        metrics, methods = list(dict.fromkeys(rows["metric"])), list(dict.fromkeys(rows["method"]))
        grids = {
            name: rows.pivot_table(index="metric", columns="method", values=name, dropna=False)
            .reindex(index=metrics, columns=methods)
            .to_numpy(dtype=float)
            for name in ("r", "p", "p_usual")
        }
        plots[str(target)] = [
            figures.labelled_heat_map(
                grids["r"],
                [figures.label(metric) for metric in metrics],
                methods,
                {"p, permutation test": grids["p"], "usual p": grids["p_usual"]},
                "r",
            )
        ]
    body = paragraphs(
        "Correlation of each single metric with the outcome, over all pairs for which the metric and the"
        " outcome are known. The usual p-value assumes independent pairs, but pairs that share a task are"
        " dependent. The second p-value therefore comes from a test that permutes the tasks.",
        note=True,
    )
    body += figure_block(
        "single", plots, [target_choice(analysis)], described="Correlation of single metrics with the outcome"
    )
    columns = {
        "method": "method", "target": "target", "r": "r", "p_usual": "usual p", "p": "p, permutation test",
        "n_pairs": "pairs",
    }  # fmt: skip
    body += folded(
        "As a table",
        table(
            single.set_index("metric"),
            columns,
            "metric",
            ["method", "target"],
            caption="Correlations of single metrics",
        ),
    )
    return Section("single", "How well does each metric predict alone?", body)


def category_ablation(analysis: Analysis) -> Section | None:
    """Show how much worse the predictions become if one category of metrics at a time is left out."""
    ablation = study_table(analysis, "ablation")
    if ablation.empty:
        return None
    names = {"loto": KNOWN_PARTNER, "l2to": BOTH_NEW}
    plots = {}
    for (protocol, target), rows in ablation.groupby(["protocol", "target"], sort=False):
        categories, methods = list(dict.fromkeys(rows["category"])), list(dict.fromkeys(rows["method"]))
        grids = [
            rows.pivot_table(index="category", columns="method", values=name, dropna=False)
            .reindex(index=categories, columns=methods)
            .to_numpy(dtype=float)
            for name in ("delta", "alone")
        ]
        plots[f"{protocol}|{target}"] = [
            figures.labelled_heat_map(grid, categories, methods, {}, title)
            for grid, title in zip(grids, ("change of r without it", "r with nothing else"), strict=True)
        ]
    body = paragraphs(
        "Left: change of r if ridge is fitted without a category of metrics; a negative change means that"
        " the category is needed. Right: r if ridge is fitted with this category alone. For pairs of two new"
        " tasks, r is the correlation between predictions and outcomes after each fold's training mean is"
        " subtracted from both.",
        note=True,
    )
    situations: Choice = (
        "situation",
        [(str(one), names.get(str(one), str(one))) for one in dict.fromkeys(ablation["protocol"])],
    )
    body += figure_block(
        "ablation",
        plots,
        [situations, target_choice(analysis)],
        described="Change of r when one category of metrics is left out",
    )
    return Section("ablation", "Which categories of metrics are needed?", body)


def coefficients(analysis: Analysis) -> Section | None:
    """Show the coefficients of linear predictors."""
    prediction = analysis.prediction
    if prediction is None or prediction.coefficients.empty:
        return None
    rows = prediction.coefficients
    rows = rows[rows["protocol"] == rows["protocol"].iloc[0]]
    groups = rows.groupby(["target", "method", "predictor"], sort=False)
    plots = {"|".join(map(str, key)): [figures.coefficient_bars(one)] for key, one in groups}
    body = paragraphs(
        "The predictor is fitted once per left-out task. Each bar shows the mean of a coefficient over these"
        " fits, and the whiskers show the standard deviation. Metrics are scaled to [-1, 1], so the lengths of"
        " the bars can be compared. If metrics are correlated, a fit distributes the weight among them"
        " arbitrarily, so the sign of a single coefficient proves little. For the predictor `additive`, each"
        " bar shows the effect of a task.",
        note=True,
    )
    body += figure_block(
        "coefficients", plots, fit_choices(analysis, rows), described="Coefficients of a linear predictor"
    )
    return Section("coefficients", "Which metrics do the predictors use?", body)


def fingerprints(analysis: Analysis) -> Section | None:
    """Show how similar the coefficients of metrics are between merge methods."""
    compared = study_table(analysis, "fingerprints")
    if compared.empty:
        return None
    plots = {}
    for (target, predictor), rows in compared.groupby(["target", "predictor"], sort=False):
        methods = list(dict.fromkeys([*rows["method_a"], *rows["method_b"]]))
        pairs = rows.rename(columns={"method_a": "task_a", "method_b": "task_b"})
        plots[f"{target}|{predictor}"] = [
            figures.matrix_heat_map(figures.pair_matrix(pairs, column, methods), methods, (0.0, 1.0), "share")
            for column in ("top5_overlap", "sign_agreement")
        ]
    means = compared.groupby(["target", "predictor"], sort=False)[["top5_overlap", "sign_agreement"]].mean()
    body = paragraphs(
        "Left: for each method, the five metrics with the largest absolute coefficients are selected; a cell"
        " shows the share of these that two methods have in common. Right: share of metrics whose coefficients"
        " have the same sign for both methods.",
        note=True,
    )
    body += figure_block(
        "fingerprints",
        plots,
        [target_choice(analysis), predictor_choice(analysis, compared)],
        square=True,
        described="Similarity of the metrics' coefficients between merge methods",
    )
    columns = {"predictor": "predictor", "top5_overlap": "top-5 overlap", "sign_agreement": "sign agreement"}
    body += folded(
        "Means over all pairs of methods",
        table(
            means.reset_index().set_index("target"),
            columns,
            "target",
            ["predictor"],
            caption="Mean similarity of methods",
        ),
    )
    return Section("fingerprints", "Do methods succeed for the same reasons?", body)


def consistency(analysis: Analysis) -> Section | None:
    """Show whether the same pairs merge well under different merge methods."""
    compared = study_table(analysis, "consistency")
    if compared.empty:
        return None
    plots = {str(target): _consistency_maps(rows) for target, rows in compared.groupby("target", sort=False)}
    body = paragraphs(
        "Does the outcome depend on the pair alone, or also on the method? Left: Spearman's rank correlation"
        " between the outcomes of two methods, over the pairs merged by both; 1 means that both methods rank"
        " the pairs in the same order. Right: the same correlation after task effects are removed, because"
        " two methods may agree only because some models merge badly with all others. Grey cells are"
        " undefined.",
        note=True,
    )
    body += figure_block(
        "consistency",
        plots,
        [target_choice(analysis)],
        described="Rank correlation between the outcomes of two methods",
    )
    columns = {
        "method_b": "and", "target": "target", "rho": "ρ", "rho_low": "95 % from", "rho_high": "to",
        "rho_beyond": "ρ beyond task effects", "n_pairs": "pairs",
    }  # fmt: skip
    body += folded(
        "As a table, with intervals",
        table(
            compared.set_index("method_a"),
            columns,
            "method",
            ["method_b", "target"],
            caption="Agreement of methods",
        ),
    )
    return Section("consistency", "Do methods agree on which pairs merge well?", body)


def _consistency_maps(compared: pd.DataFrame) -> list[Any]:
    """Draw ρ and ρ beyond task effects, method by method."""
    methods = list(dict.fromkeys([*compared["method_a"], *compared["method_b"]]))
    pairs = compared.rename(columns={"method_a": "task_a", "method_b": "task_b"})
    grids = {name: figures.pair_matrix(pairs, name, methods) for name in _CONSISTENCY}
    for name in ("rho", "rho_beyond"):
        # The 1 of a method with itself gives both maps the same colours.
        known = ~np.isnan(grids[name]).all(axis=1)
        grids[name][known, known] = 1.0
    beside = {"95 % from": grids["rho_low"], "to": grids["rho_high"], "pairs": grids["n_pairs"]}
    return [
        figures.labelled_heat_map(grids["rho"], methods, methods, beside, "ρ"),
        figures.labelled_heat_map(
            grids["rho_beyond"], methods, methods, {"pairs": grids["n_pairs"]}, "ρ beyond task effects"
        ),
    ]


def stable_metrics(analysis: Analysis) -> Section | None:
    """Show the stable metrics: those whose coefficient has the same sign under every method."""
    stable = study_table(analysis, "stable_metrics")
    if stable.empty or analysis.prediction is None:
        return None
    body = paragraphs(
        "A metric is stable if its mean coefficient has the same sign under every method. A metric is selected"
        " in a fold if its coefficient is not 0. A stable metric is a core metric if, for every method, it is"
        " selected in at least 80 % of the folds. For each method, the absolute value of a metric's mean"
        " coefficient is divided by the sum of these absolute values over all metrics; the contribution of the"
        " metric is the mean of this ratio over methods.",
        note=True,
    )
    columns = {
        "sign": "sign", "core": "core", "least_selected": "selected in, at least", "contribution": "contribution",
    }  # fmt: skip
    target = analysis.targets[0] if analysis.targets else str(stable["target"].iloc[0])
    best = best_predictor(study_records(analysis, KNOWN_PARTNER), target)
    for predictor, rows in stable[stable["target"] == target].groupby("predictor", sort=False):
        kept = rows[rows["stable"]].head(_SHOWN_METRICS)
        stable_ones, core = int(rows["stable"].sum()), int(rows["core"].sum())
        of = f"{predictor}: {stable_ones} of {len(rows)} metrics are stable, {core} core"
        listing = table(kept.set_index("metric"), columns, "metric", caption=f"Stable metrics of {predictor}")
        body += folded(of, listing, opened=predictor == best)
    return Section("stable", "Which metrics are stable?", body)
