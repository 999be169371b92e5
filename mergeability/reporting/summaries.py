"""Plain tables that summarise an analysis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mergeability.errors import printable
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.validation.protocols import KNOWN_PARTNER

if TYPE_CHECKING:
    from rich.table import Table

from mergeability.pipeline.result import Analysis

BASELINES = ("mean", "additive", "finetuned")
"""Predictors that look at no metric: every other one is read beside them."""


WITH_TASK_EFFECTS = ("dyadic",)
# Look at columns of their own, some of which need the merge: none of them is a predictor from metrics.
OWN_EVIDENCE = ("known", "functional", "probe", "additive_probe")
"""Predictors that use metrics beside task effects: neither a baseline nor what metrics reach on their own."""


# Of a method's names, where outcomes at several scales stand side by side: its own, tuned with labels and without.
SCALE_SUFFIXES = ("", "_tuned", "_unlabelled")
"""Behind a method's name: its outcome at the scale that was tuned beside its own."""


TARGET_NAMES = {"norm_acc": "normalised accuracy", "acc": "accuracy"}


def pair_name(row: Any) -> str:
    """Name a pair by its two tasks."""
    return f"{row['task_a']} + {row['task_b']}"


def method_table(pairs: pd.DataFrame, methods: Sequence[str], alphas: Mapping[str, Any]) -> pd.DataFrame:
    """Summarise the pairs of each method, and sort the methods by mean normalised accuracy, best first.

    The kept gain of a pair is (merged − base) / (fine-tuned − base). It is summarised by its median, because single
    values are extreme where fine-tuning gained little.

    Args:
        pairs: the pair table.
        methods: merge methods.
        alphas: method → its scaling coefficient.

    Returns:
        One row per method, indexed by it: `alpha`, `n_pairs`, `mean_norm_acc`, `worst_norm_acc`, `worst_pair`,
        `mean_acc`, `worst_acc`, `median_kept_gain`, `median_margin`; NaN or empty if unknown.
    """
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method, "alpha": alphas.get(method), "n_pairs": 0, "worst_pair": ""}
        for target in TARGETS:
            outcome = pairs.get(f"{target}_{method}", pd.Series(dtype=float)).dropna()
            row[f"mean_{target}"] = float(outcome.mean()) if len(outcome) else float("nan")
            row[f"worst_{target}"] = float(outcome.min()) if len(outcome) else float("nan")
            row["n_pairs"] = max(row["n_pairs"], len(outcome))
            if len(outcome) and not row["worst_pair"]:
                row["worst_pair"] = pair_name(pairs.loc[[outcome.idxmin()]].iloc[0])
        row["median_kept_gain"] = pairs.get(f"kept_gain_{method}", pd.Series(dtype=float)).median()
        if f"low_norm_acc_{method}" in pairs.columns:
            width = pairs[f"high_norm_acc_{method}"] - pairs[f"low_norm_acc_{method}"]
            row["median_margin"] = width.median() / 2
        rows.append(row)
    columns = [
        "method",
        "alpha",
        "n_pairs",
        "mean_norm_acc",
        "worst_norm_acc",
        "worst_pair",
        "mean_acc",
        "worst_acc",
        "median_kept_gain",
        "median_margin",
    ]
    table = pd.DataFrame(rows, columns=columns).set_index("method")
    return table.sort_values(["mean_norm_acc", "mean_acc"], ascending=False, kind="stable")


def scale_table(analysis: Analysis) -> pd.DataFrame:
    """Compare the outcomes at each method's default scale with those at the method's tuned scales.

    Methods are sorted by `tuned_mean`, best first, or by `unlabelled_mean` if no scale was tuned with labels.

    Args:
        analysis: the results.

    Returns:
        One row per method with outcomes at more than one scale: `alpha`, `mean`, `worst` at the default scale,
        `tuned_alpha`, `tuned_mean`, `tuned_worst`, and `unlabelled_alpha`, … if the scale was chosen without labels;
        mean and worst normalised accuracy over pairs.
    """
    summary = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    rows: dict[str, dict[str, Any]] = {}
    for method in analysis.methods:
        for suffix in SCALE_SUFFIXES:
            if f"{method}{suffix}" in summary.index:
                found, kind = summary.loc[f"{method}{suffix}"], suffix.removeprefix("_")
                names = [f"{kind}_{name}".removeprefix("_") for name in ("alpha", "mean", "worst")]
                values = [found[name] for name in ("alpha", "mean_norm_acc", "worst_norm_acc")]
                rows.setdefault(method, {}).update(zip(names, values, strict=True))
    rows = {method: row for method, row in rows.items() if len(row) > 3}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    best = next((name for name in ("tuned_mean", "unlabelled_mean") if name in table), None)
    return table if best is None else table.sort_values(best, ascending=False, kind="stable")


def curve_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Average the curves of accuracy against scale over all merges.

    Args:
        curves: one row per merge, tried scale and task. If scales were tried without labels, the overlap replaces the
            normalised accuracy, which it estimates.

    Returns:
        One row per method and scale: `method`, `alpha`, `norm_accuracy`, and `chosen`, the share of merges that chose
        the scale.
    """
    if "overlap" in curves:
        known = (
            curves["norm_accuracy"] if "norm_accuracy" in curves else pd.Series(float("nan"), curves.index)
        )
        curves = curves.assign(norm_accuracy=known.fillna(curves["overlap"]))
    of_merges = curves.groupby(["method", "tasks", "alpha"], sort=False)[["norm_accuracy", "chosen"]].mean()
    return of_merges.groupby(["method", "alpha"], sort=False).mean().reset_index()


def sets_table(analysis: Analysis) -> pd.DataFrame:
    """Summarise the merges of more than two models: one row for each number of models and each method."""
    rows = []
    for arity, group in analysis.sets.groupby("arity", sort=True) if len(analysis.sets) else ():
        for method in analysis.methods:
            outcome = group.get(f"norm_acc_{method}", pd.Series(dtype=float)).dropna()
            if len(outcome):
                rows.append(
                    {
                        "arity": int(str(arity)),
                        "method": method,
                        "sets": len(outcome),
                        "mean": outcome.mean(),
                        "worst": outcome.min(),
                        "worst_set": _worst_set(group, f"norm_acc_{method}"),
                        "worst_task": group[f"worst_norm_acc_{method}"].min(),
                    }
                )
    table = pd.DataFrame(rows)
    return table.sort_values(["arity", "mean"], ascending=[True, False], kind="stable") if rows else table


def _worst_set(sets: pd.DataFrame, column: str) -> str:
    ordered = sets.dropna(subset=[column]).sort_values(column, kind="stable")
    return str(ordered["tasks"].iloc[0]).replace("+", " + ")


def record_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Convert records of `prediction.json` into a data frame in which `None` becomes NaN."""
    frame = pd.DataFrame(list(records))
    texts = {"method", "predictor", "protocol", "situation", "target"}
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in frame.columns if name not in texts})


def known_partner(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep the records of leave-one-task-out folds, each of which has its own correlation."""
    return [record for record in records if record["situation"] == KNOWN_PARTNER]


def predictor_table(records: Sequence[Mapping[str, Any]], target: str) -> pd.DataFrame:
    """Average each predictor's scores over methods; sort baselines first, then other predictors by r.

    Args:
        records: of `prediction.json`.
        target: the outcome.

    Returns:
        One row per predictor; a predictor without any r keeps NaN.
    """
    frame = record_frame(known_partner(records))
    if frame.empty or target not in set(frame["target"]):
        return pd.DataFrame()
    frame = frame[frame["target"] == target]
    scores = ["r_mean", "r_std", "rho_mean", "pooled_r", "mae", "r2_over_training_mean", "train_r_mean"]
    means = frame.groupby("predictor", sort=False)[scores].mean()
    means["n_undefined"] = frame.groupby("predictor", sort=False)["n_undefined"].sum()
    means["n_folds"] = frame.groupby("predictor", sort=False)["n_folds"].sum()
    ordered = means.sort_values("r_mean", ascending=False, kind="stable").index
    return means.loc[
        [*(b for b in BASELINES if b in means.index), *(p for p in ordered if p not in BASELINES)]
    ]


def best_predictor(
    records: Sequence[Mapping[str, Any]], target: str, method: str | None = None
) -> str | None:
    """Return the name of the predictor with the largest mean r among those that use only metrics.

    A predictor with an r in every fold precedes one that lacks some, since a mean over selected folds is not
    comparable.

    Args:
        records: of `prediction.json`.
        target: the outcome.
        method: the merge method; all when None.

    Returns:
        The name; None if no predictor has an r.
    """
    apart = (*BASELINES, *WITH_TASK_EFFECTS, *OWN_EVIDENCE)
    kept = [r for r in records if r["predictor"] not in apart and (method is None or r["method"] == method)]
    table = predictor_table(kept, target)
    if table.empty or table["r_mean"].isna().all():
        return None
    whole = table[table["n_undefined"] == 0]
    return str((whole if len(whole) else table)["r_mean"].idxmax())


def pair_extremes(
    pairs: pd.DataFrame, methods: Sequence[str], target: str
) -> tuple[str, float, str, float] | None:
    """Find the pairs that merge best and worst on average over the methods.

    Only pairs with an outcome for every method are compared: a missing method would bias the average of its pair.

    Args:
        pairs: the pair table.
        methods: merge methods.
        target: the outcome.

    Returns:
        The best pair, its mean outcome, the worst pair, its mean outcome; None if no pair has all outcomes.
    """
    columns = [f"{target}_{m}" for m in methods if f"{target}_{m}" in pairs.columns]
    whole = pairs.dropna(subset=columns)
    if not columns or whole.empty:
        return None
    means = whole[columns].mean(axis=1)
    best, worst = int(means.argmax()), int(means.argmin())
    return pair_name(whole.iloc[best]), float(means.max()), pair_name(whole.iloc[worst]), float(means.min())


def summary_table(analysis: Analysis) -> "Table":
    """Make a terminal table with one row per method.

    The columns are the mean and the worst outcome, the best predictor with its r, and r of the predictor `additive`.

    Args:
        analysis: the results.

    Returns:
        A table for `rich.console.Console.print`.

    Examples:
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting import summary_table
        >>> analysis = Analysis("Six tasks", example_pairs(), ["cosine"], ["task_arithmetic", "ties"])
        >>> table = summary_table(analysis)
        >>> [column.header for column in table.columns]
        ['method', 'mean norm_acc', 'worst norm_acc', 'best predictor', 'its r', 'additive r']
        >>> [list(column.cells) for column in table.columns[:2]]
        [['task_arithmetic', 'ties'], ['0.885', '0.884']]
    """
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(printable(analysis.title)), title_justify="left")
    shown.add_column("method", no_wrap=True)
    target = analysis.targets[0] if analysis.targets else TARGETS[0]
    numbers = (f"mean {target}", f"worst {target}", "best predictor", "its r", "additive r")
    for name in numbers:
        shown.add_column(name, justify="left" if name == "best predictor" else "right")
    records = analysis.prediction.records if analysis.prediction is not None else []
    for method, row in method_table(analysis.pairs, analysis.methods, analysis.alphas).iterrows():
        best = best_predictor(records, target, str(method))
        shown.add_row(
            escape(printable(str(method))),
            number(row[f"mean_{target}"]),
            number(row[f"worst_{target}"]),
            escape(printable(best or "–")),
            number(record_r(records, str(method), target, best)),
            number(record_r(records, str(method), target, "additive")),
        )
    return shown


def number(value: Any, digits: int = 3) -> str:
    """Format a number for a reader; return a dash if the number is undefined or unknown."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if isinstance(value, bool | int | np.integer | str):
        return str(value)
    return f"{value:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def record_r(
    records: Sequence[Mapping[str, Any]], method: str, target: str, predictor: str | None
) -> float | None:
    """Return the correlation that a predictor reaches for a method, or None if no record contains this correlation."""
    wanted = (method, target, predictor)
    return next(
        (r["r_mean"] for r in known_partner(records) if (r["method"], r["target"], r["predictor"]) == wanted),
        None,
    )
