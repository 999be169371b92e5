"""What an analysis found, as plain tables and sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.study import SIGNIFICANT
from mergeability.prediction.validation.protocols import BOTH_NEW, KNOWN_PARTNER

if TYPE_CHECKING:
    from rich.table import Table

    from mergeability.prediction.scorer import Scorer
    from mergeability.prediction.validation.evaluate import PredictionResult

BASELINES = ("mean", "additive", "finetuned")
"""Predictors that look at no metric: every other one is read beside them."""

WITH_TASK_EFFECTS = ("dyadic",)
"""Predictors that use metrics beside task effects: neither a baseline nor what metrics reach on their own."""

TUNED_SUFFIX = "_tuned"
"""Behind a method's name: its outcome at the scale that was tuned beside its own."""

OBJECTIVES = (*TARGETS, "finetuned_accuracy")
"""What a search over settings can be told."""

TARGET_NAMES = {"norm_acc": "normalised accuracy", "acc": "accuracy"}


@dataclass(frozen=True)
class Analysis:
    """Everything one report shows; any part may be empty.

    `sets` has one row a set of more than two models, `accuracies` one row a merge and task, `curves` one row a
    merge, tried scale and task. `models` is indexed by task with the accuracies `chance`, `pixel_accuracy`,
    `base_accuracy` and `finetuned_accuracy` (whichever are known), in [0, 1]. `pairs` has one row a pair:
    `task_a`, `task_b`, metrics and outcomes. `alphas` gives each method's scaling coefficient. `fitted` is the
    predictor that this run fitted for later ones, `scorer` that of an earlier run, `scores` what it gives each pair
    and `transfer` how that compares with outcomes. `missing` are sentences, `run` the facts of `run.json`.
    """

    title: str
    pairs: pd.DataFrame
    metrics: list[str]
    methods: list[str] = field(default_factory=list)
    models: pd.DataFrame = field(default_factory=pd.DataFrame)
    alphas: Mapping[str, Any] = field(default_factory=dict)
    prediction: "PredictionResult | None" = None
    missing: list[str] = field(default_factory=list)
    run: Mapping[str, Any] = field(default_factory=dict)
    sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    accuracies: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    fitted: "Scorer | None" = None
    scorer: "Scorer | None" = None
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfer: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tasks(self) -> list[str]:
        """List the tasks in the order of the models, then of the pairs."""
        ends = (
            pd.concat([self.pairs["task_a"], self.pairs["task_b"]])
            if len(self.pairs)
            else pd.Series(dtype=object)
        )
        return list(dict.fromkeys([*map(str, self.models.index), *ends.astype(str)]))

    @property
    def targets(self) -> list[str]:
        """List the targets that at least one method has outcomes of, the default first."""
        columns = set(self.pairs.columns)
        return [t for t in TARGETS if any(f"{t}_{m}" in columns for m in self.methods)]


def objective(analysis: Analysis, name: str) -> float:
    """Return one number an analysis is judged by: `norm_acc` or `acc`, of the merges, means over pairs and methods;
    or `finetuned_accuracy`, of the models on their own, the mean over tasks.

    Raises:
        UserError: another name, or what this analysis has not measured.
    """  # noqa: D205
    if name not in OBJECTIVES:
        raise UserError(f"Expected objectives among {', '.join(OBJECTIVES)}, got {name!r}.")
    columns = [f"{name}_{method}" for method in analysis.methods]
    frame = analysis.models.get([name]) if name == "finetuned_accuracy" else analysis.pairs.get(columns)
    if frame is None or frame.empty:
        raise UserError(f"This analysis has not measured {name}: it needs a suite of tasks, and merges.")
    return float(frame.to_numpy(dtype=float).mean())


def pair_name(row: Any) -> str:
    """Name a pair by its two tasks."""
    return f"{row['task_a']} + {row['task_b']}"


def method_table(pairs: pd.DataFrame, methods: Sequence[str], alphas: Mapping[str, Any]) -> pd.DataFrame:
    """Summarise each method over its pairs, best mean normalised accuracy first.

    Indexed by method: `alpha`, `n_pairs`, `mean_norm_acc`, `worst_norm_acc`, `worst_pair`, `mean_acc`,
    `worst_acc`, `median_kept_gain`, `median_margin`; NaN or empty where unknown. The kept gain of a pair,
    (merged − base) / (fine-tuned − base), is summarised by its median: where fine-tuning gained little, single
    values explode.
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
    """Put each method's own scale beside the tuned one: one row a method that has both, best tuned mean first.

    Columns: `alpha`, `mean`, `worst` at the method's own scale, and `tuned_alpha`, `tuned_mean`, `tuned_worst`;
    mean and worst over pairs, of normalised accuracy.
    """
    summary = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    rows = {}
    for method in analysis.methods:
        tuned = f"{method}{TUNED_SUFFIX}"
        if tuned in summary.index:
            own, best = summary.loc[method], summary.loc[tuned]
            rows[method] = {
                "alpha": own["alpha"],
                "mean": own["mean_norm_acc"],
                "worst": own["worst_norm_acc"],
                "tuned_alpha": best["alpha"],
                "tuned_mean": best["mean_norm_acc"],
                "tuned_worst": best["worst_norm_acc"],
            }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    return table.sort_values("tuned_mean", ascending=False, kind="stable") if len(table) else table


def curve_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Average the validation curves over merges: `method`, `alpha`, `norm_accuracy`, and the share of merges
    that `chosen` each scale.
    """  # noqa: D205
    of_merges = curves.groupby(["method", "tasks", "alpha"], sort=False)[["norm_accuracy", "chosen"]].mean()
    return of_merges.groupby(["method", "alpha"], sort=False).mean().reset_index()


def sets_table(analysis: Analysis) -> pd.DataFrame:
    """Summarise the merges of more than two models: one row an arity and method."""
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
    """Turn records of `prediction.json` into a frame, `None` into NaN."""
    frame = pd.DataFrame(list(records))
    texts = {"method", "predictor", "protocol", "situation", "target"}
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in frame.columns if name not in texts})


def known_partner(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep the records of folds that leave one task out, which have a correlation of their own."""
    return [record for record in records if record["situation"] == KNOWN_PARTNER]


def predictor_table(records: Sequence[Mapping[str, Any]], target: str) -> pd.DataFrame:
    """Average each predictor's scores over methods, baselines first, then by r.

    A predictor without any r keeps NaN: nothing stands in for it.
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
    """Name the predictor with the largest mean r among those that use metrics alone; None where none has an r.

    One that has an r in every fold goes before any that lacks some: a mean over chosen folds is no rival.
    """
    apart = (*BASELINES, *WITH_TASK_EFFECTS)
    kept = [r for r in records if r["predictor"] not in apart and (method is None or r["method"] == method)]
    table = predictor_table(kept, target)
    if table.empty or table["r_mean"].isna().all():
        return None
    whole = table[table["n_undefined"] == 0]
    return str((whole if len(whole) else table)["r_mean"].idxmax())


def pair_extremes(
    pairs: pd.DataFrame, methods: Sequence[str], target: str
) -> tuple[str, float, str, float] | None:
    """Find the pairs that merge best and worst on average over the methods: (best, score, worst, score).

    Only pairs with an outcome for every method are compared, lest a missing method flatter its pair. None
    where no pair is complete.
    """
    columns = [f"{target}_{m}" for m in methods if f"{target}_{m}" in pairs.columns]
    whole = pairs.dropna(subset=columns)
    if not columns or whole.empty:
        return None
    means = whole[columns].mean(axis=1)
    best, worst = int(means.argmax()), int(means.argmin())
    return pair_name(whole.iloc[best]), float(means.max()), pair_name(whole.iloc[worst]), float(means.min())


def headline(analysis: Analysis) -> list[str]:
    """Say in plain sentences what was found, and how far it can be trusted."""
    sentences = [_what_was_compared(analysis)]
    if analysis.targets:
        sentences += _merging_sentences(analysis)
    sentences += _set_sentences(analysis)
    if analysis.prediction is not None and analysis.prediction.records:
        sentences += _prediction_sentences(analysis)
    elif analysis.targets or len(analysis.sets):
        sentences.append("Prediction was not part of this run.")
    else:
        sentences.append(
            "No merge was evaluated, so this report says how the models relate, not how they merge."
        )
    return sentences


def _what_was_compared(analysis: Analysis) -> str:
    parts = [
        _counted(len(analysis.tasks), "task"),
        _counted(len(analysis.pairs), "pair"),
        _counted(len(analysis.metrics), "metric"),
    ]
    if analysis.methods:
        own = {method.removesuffix(TUNED_SUFFIX) for method in analysis.methods}
        parts.append(_counted(len(own), "merge method"))
    return f"This run compares {', '.join(parts[:-1])} and {parts[-1]}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _merging_sentences(analysis: Analysis) -> list[str]:
    target = analysis.targets[0]
    name = TARGET_NAMES[target]
    table = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    table = table[table[f"mean_{target}"].notna()].sort_values(
        f"mean_{target}", ascending=False, kind="stable"
    )
    if table.empty:
        return ["No merge has a measured outcome."]
    best = table.iloc[0]
    first = (
        f"{best.name} merges best on average: mean {name} {best[f'mean_{target}']:.1%}"
        f" over {best['n_pairs']} pairs, and {best[f'worst_{target}']:.1%} on its worst, {best['worst_pair']}."
    )
    sentences = [first]
    if len(table) > 1:
        last = table.iloc[-1]
        sentences.append(
            f"{last.name} merges worst: mean {last[f'mean_{target}']:.1%}, worst pair"
            f" {last[f'worst_{target}']:.1%} ({last['worst_pair']})."
        )
    sentences += _scale_sentences(analysis)
    extremes = pair_extremes(analysis.pairs, list(table.index), target)
    if extremes is not None and len(table) > 1:
        good, high, bad, low = extremes
        sentences.append(
            f"Averaged over methods, {good} merges best ({high:.1%}) and {bad} worst ({low:.1%})."
        )
    return sentences


def _set_sentences(analysis: Analysis) -> list[str]:
    table = sets_table(analysis)
    sentences = []
    for arity, group in table.groupby("arity") if len(table) else ():
        best = group.iloc[0]
        sentences.append(
            f"Of {arity} models together, {best['method']} merges best: mean normalised accuracy {best['mean']:.1%}"
            f" over {_counted(int(best['sets']), 'set')}."
        )
    return sentences


def _scale_sentences(analysis: Analysis) -> list[str]:
    table = scale_table(analysis)
    if table.empty:
        return []
    gain = table["tuned_mean"] - table["mean"]
    most = table.index[int(gain.argmax())]
    own, tuned = table.iloc[int(table["mean"].argmax())], table.iloc[0]
    return [
        f"Tuning α on validation images changes the mean by {100 * gain.min():+.1f} to {100 * gain.max():+.1f} points"
        f" (most for {most}): the best method is {own.name} at its own α ({own['mean']:.1%}) and {tuned.name} at the"
        f" tuned one ({tuned['tuned_mean']:.1%})."
    ]


def _prediction_sentences(analysis: Analysis) -> list[str]:
    prediction = analysis.prediction
    if prediction is None:
        return []
    target = prediction.records[0]["target"]
    sentences = _known_partner_sentences(prediction.records, target)
    sentences += _both_new_sentences(prediction.records, target)
    sentences += _beyond_sentences(prediction.tables.get("relabelling", pd.DataFrame()), target)
    tasks = len(analysis.tasks)
    if tasks < 15:
        sentences.append(
            f"With {tasks} tasks each of these correlations rests on at most {tasks - 1} pairs at a time: read them"
            " as rough."
        )
    if best_predictor(prediction.records, target) is not None:
        sentences.append(
            "Which predictor is best was read off these same folds, so its figure flatters it a little."
        )
    return sentences


def _known_partner_sentences(records: Sequence[Mapping[str, Any]], target: str) -> list[str]:
    table = predictor_table(records, target)
    best = best_predictor(records, target)
    if best is None:
        return (
            ["No predictor that uses metrics has a defined correlation with the outcome."]
            if len(table)
            else []
        )
    row = table.loc[best]
    sentences = [
        f"For a task left out of the fit, the best predictor from metrics, {best}, reaches a mean correlation of"
        f" r = {row['r_mean']:.2f} with {TARGET_NAMES[target]} (± {row['r_std']:.2f} between left-out tasks,"
        f" mean over methods); its typical error is {row['mae']:.3f}{_beside_mean(table)}."
    ]
    additive = table["r_mean"].get("additive", float("nan"))
    if not np.isnan(additive):
        beats = row["r_mean"] > additive
        sentences.append(
            f"The additive baseline, which sees no metric and only knows how the partner merges with others, reaches"
            f" r = {additive:.2f}: here the metrics foresee {'more' if beats else 'no more'} than is known once the"
            f" partner has been merged before.{_together(table)}"
        )
    return sentences


def _together(table: pd.DataFrame) -> str:
    known = [name for name in WITH_TASK_EFFECTS if not np.isnan(table["r_mean"].get(name, float("nan")))]
    return "".join(f" Both together ({name}) reach r = {table['r_mean'][name]:.2f}." for name in known)


def _both_new_sentences(records: Sequence[Mapping[str, Any]], target: str) -> list[str]:
    """Say how much of pairs of two unseen tasks ridge foresees: one predictor, lest the best be picked."""
    own = [
        r
        for r in records
        if r["situation"] == BOTH_NEW and r["target"] == target and r["predictor"] == "ridge"
    ]
    if not own:
        return []
    seen = [r for r in own if r["r_beyond_mean_low"] is not None and r["r_beyond_mean_low"] > 0]
    blind = [str(r["method"]) for r in own if r not in seen]
    if not seen:
        return [
            "For two tasks that are both new, ridge on the metrics foresees nothing for any method that the training"
            " mean does not: every 95 % interval of its correlation reaches below 0."
        ]
    found = ", ".join(
        f"{r['method']} (r = {r['r_beyond_mean']:.2f} beyond the training mean, 95 % from"
        f" {r['r_beyond_mean_low']:.2f} to"
        f" {r['r_beyond_mean_high']:.2f})"
        for r in seen
    )
    rest = f"; for {', '.join(blind)} the interval reaches below 0" if blind else ""
    return [f"For two tasks that are both new, ridge on the metrics foresees something for {found}{rest}."]


def _beyond_sentences(tested: pd.DataFrame, target: str) -> list[str]:
    if tested.empty:
        return []
    own = tested[(tested["target"] == target) & tested["gain"].notna() & tested["p_beyond"].notna()]
    adds = (own["gain"] > 0) & (own["p_beyond"] <= SIGNIFICANT)
    sentences = []
    if (~adds).any():
        sentences.append(
            f"For {', '.join(own.loc[~adds, 'method'])} the metrics add nothing beyond task effects (relabelling"
            " tasks)."
        )
    if adds.any():
        gains = ", ".join(
            f"{method} ({gain:.1%} of the squared error)"
            for method, gain in zip(own.loc[adds, "method"], own.loc[adds, "gain"], strict=True)
        )
        sentences.append(f"The metrics add to task effects for {gains}.")
    return sentences


def _beside_mean(table: pd.DataFrame) -> str:
    error = table["mae"].get("mean", float("nan"))
    return "" if np.isnan(error) else f", against {error:.3f} for always saying the training mean"


def summary_table(analysis: Analysis) -> "Table":
    """Lay out one row a method for the terminal: mean and worst outcome, best predictor's and additive r."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(analysis.title), title_justify="left")
    shown.add_column("method", no_wrap=True)
    target = analysis.targets[0] if analysis.targets else TARGETS[0]
    numbers = (f"mean {target}", f"worst {target}", "best predictor", "its r", "additive r")
    for name in numbers:
        shown.add_column(name, justify="left" if name == "best predictor" else "right")
    records = analysis.prediction.records if analysis.prediction is not None else []
    for method, row in method_table(analysis.pairs, analysis.methods, analysis.alphas).iterrows():
        best = best_predictor(records, target, str(method))
        shown.add_row(
            escape(str(method)),
            number(row[f"mean_{target}"]),
            number(row[f"worst_{target}"]),
            best or "–",
            number(_record_r(records, str(method), target, best)),
            number(_record_r(records, str(method), target, "additive")),
        )
    return shown


def number(value: Any, digits: int = 3) -> str:
    """Write a number for a reader; a dash where it is undefined or unknown."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if isinstance(value, bool | int | np.integer | str):
        return str(value)
    return f"{value:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def _record_r(
    records: Sequence[Mapping[str, Any]], method: str, target: str, predictor: str | None
) -> float | None:
    wanted = (method, target, predictor)
    return next(
        (r["r_mean"] for r in known_partner(records) if (r["method"], r["target"], r["predictor"]) == wanted),
        None,
    )
