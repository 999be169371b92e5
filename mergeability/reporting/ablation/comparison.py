"""Compare analyses of several fine-tuning settings and seeds, to measure how the setting affects merges."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.prediction.pair_table import TARGETS, outcome_methods
from mergeability.prediction.validation.intervals import student_interval
from mergeability.reporting.ablation.runs import Run, described_difference, differences, read_runs

PLAIN = "none-0"
"""The setting of plain fine-tuning, whatever the penalty whose strength is 0."""

ALL_METHODS = "all methods"
"""The mean over merge methods, beside each method."""

# More unfinished settings than these are counted, not listed.
_NAMED = 5
_SETTING = ["setting", "penalty", "strength"]
_PAIR = ["task_a", "task_b"]


@dataclass(frozen=True)
class Ablation:
    """Hold the results of an ablation.

    Attributes:
        merges: one row per setting, method (and the mean over methods) and target: `value`, `plain`, `change` and its
            intervals, and `seeds`, their number.
        models: one row per setting: the same for the models' own accuracy.
        metrics: one row per setting and metric: `value` and `plain`, means over pairs and seeds; `change` with its
            interval in standard deviations of plain's pairs; `stable`, its sign if all methods agree on one, or 0.
        choices: one row per penalty: the strength with the best trade-off, chosen without the seed it is evaluated on.
        missing: sentences on runs and methods left out.
        facts: properties shared by all runs.
        stable_by: the predictor of normalised accuracy that determines the signs in `metrics`.
    """

    merges: pd.DataFrame
    models: pd.DataFrame
    metrics: pd.DataFrame
    choices: pd.DataFrame
    missing: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    stable_by: str | None = None


def compare(run_folders: Sequence[Path | str], beside: Sequence[Path | str] = ()) -> Ablation:
    """Compare every setting of fine-tuning with plain fine-tuning.

    Means are over pairs (over tasks for the models' own accuracy) and seeds. A change is setting − plain with the same
    seed, so that effects of the seed on both cancel. Its 95 % intervals are Student's t: `low`, `high` over the seeds'
    changes, `task_low`, `task_high` over the tasks' changes (each the mean over partners and seeds of the task's own
    accuracy in its merges). They are NaN for fewer than two values and not corrected for the number of settings.

    Args:
        run_folders: folders of analyses; of two with one setting and seed the later one counts.
        beside: folders of earlier analyses to include; analyses with another suite, model, α, … are left out and named.

    Returns:
        The comparison.

    Raises:
        UserError: the runs differ in more than penalty, strength and seed, or no run has merged anything.
    """
    own = read_runs(run_folders)
    if not own:
        raise UserError("None of these runs contains a merge, so there is nothing to compare.")
    for run in own:
        _refuse_difference(run, own[-1])
    earlier = read_runs(beside)
    fitting = [run for run in earlier if not differences(run, own[-1])]
    found = {(run.setting, run.seed): run for run in (*fitting, *own)}
    runs = sorted(found.values(), key=lambda run: (run.setting != PLAIN, run.penalty, run.strength, run.seed))
    everywhere = [
        method
        for method in outcome_methods(runs[0].pairs)
        if all(method in outcome_methods(run.pairs) for run in runs)
    ]
    merges = pd.concat([_outcomes(run, everywhere) for run in runs], ignore_index=True)
    models = pd.concat([_own(run) for run in runs], ignore_index=True)
    conditions = own[-1].conditions
    variant = f", variant {conditions['variant']}" if conditions["variant"] else ""
    return Ablation(
        merges=_changes(merges, ["method", "target"]),
        models=_changes(models, []),
        metrics=_metric_changes(runs),
        choices=_choices(merges, models),
        missing=(*_missing(runs, everywhere), *_left_out(earlier, own[-1])),
        facts=(
            f"suite {conditions['suite']}, model {conditions['model']}{variant}, {len(runs[0].models)} tasks, "
            f"{len(runs[0].pairs)} pairs",
            f"{len({run.setting for run in runs})} settings, seeds "
            f"{', '.join(map(str, sorted({run.seed for run in runs})))}: {len(runs)} analyses",
        ),
        stable_by=next((run.stable_by for run in runs if run.setting == PLAIN), None),
    )


def _refuse_difference(run: Run, other: Run) -> None:
    if differences(run, other):
        raise UserError(
            f"Compared runs may differ only in penalty, strength and seed, but {run.setting}"
            f" with seed {run.seed} and {other.setting} with seed {other.seed} differ in"
            f" {described_difference(run, other, ' and ')}."
        )


def _left_out(earlier: Sequence[Run], reference: Run) -> list[str]:
    """Say which earlier runs are not compared, and why."""
    reasons = Counter(
        described_difference(run, reference, ", here ") for run in earlier if differences(run, reference)
    )
    return [
        f"{count} earlier {'analysis is' if count == 1 else 'analyses are'} left out: another {reason}."
        for reason, count in reasons.items()
    ]


def _outcomes(run: Run, everywhere: Sequence[str]) -> pd.DataFrame:
    """List each task's own accuracy in each of its merges: one row a pair, side, method and target.

    The mean over methods is of those that merged every run's models: another set of methods is another mean.
    """
    parts = []
    for method in outcome_methods(run.pairs):
        for target in TARGETS:
            for task, side in (("task_a", "a"), ("task_b", "b")):
                column = f"{target}_{method}_{side}"
                if column in run.pairs.columns:
                    part = run.pairs[[*_PAIR, task, column]].set_axis([*_PAIR, "task", "value"], axis=1)
                    parts.append(part.assign(method=method, target=target))
    whole = pd.concat(parts, ignore_index=True)
    shared = whole[whole["method"].isin(everywhere)]
    together = shared.groupby([*_PAIR, "task", "target"], sort=False)["value"].mean().reset_index()
    whole = pd.concat([whole, together.assign(method=ALL_METHODS)], ignore_index=True)
    return whole.assign(**run.facts)


def _own(run: Run) -> pd.DataFrame:
    return run.models[["task", "finetuned_accuracy"]].set_axis(["task", "value"], axis=1).assign(**run.facts)


def _changes(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Compare the mean value of every setting with plain's, for each value of the keys."""
    order = table[[*_SETTING, *keys]].drop_duplicates()
    by_seed, by_task = (
        table.pivot_table(index=[*_SETTING, *keys], columns=columns, values="value", sort=False).reindex(
            pd.MultiIndex.from_frame(order)
        )
        for columns in (["seed"], ["seed", "task"])
    )
    changes, plain = _against_plain(by_seed)
    tasks, _ = _against_plain(by_task)
    tasks = tasks.T.groupby(level="task").mean().T
    known = changes.notna().any(axis=1).to_numpy() & (order["setting"] != PLAIN).to_numpy()
    over_seeds = np.array([student_interval(row[~np.isnan(row)]) for row in changes.to_numpy()])
    over_tasks = np.array([student_interval(row[~np.isnan(row)]) for row in tasks.to_numpy()])
    found = {
        "plain": plain.where(changes.notna()).mean(axis=1).to_numpy(),
        "change": changes.mean(axis=1).to_numpy(),
        "low": over_seeds[:, 0],
        "high": over_seeds[:, 1],
        "task_low": over_tasks[:, 0],
        "task_high": over_tasks[:, 1],
    }
    return order.reset_index(drop=True).assign(
        seeds=by_seed.notna().sum(axis=1).to_numpy(),
        value=by_seed.mean(axis=1).to_numpy(),
        **{name: np.where(known, values, np.nan) for name, values in found.items()},
    )


def _against_plain(wide: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Subtract plain's row with the same keys from every row; return the differences, and plain's row for each."""
    own = wide[wide.index.get_level_values("setting") == PLAIN]
    plain = own.set_axis(_keys(own)).reindex(_keys(wide)).set_axis(wide.index)
    return wide - plain, plain


def _keys(wide: pd.DataFrame) -> list[Any]:
    """Label each row by its keys alone, without the setting."""
    return [tuple(label[len(_SETTING) :]) for label in wide.index]


def _metric_changes(runs: Sequence[Run]) -> pd.DataFrame:
    """Say how far each metric moved, in standard deviations of plain's pairs, the mean over seeds."""
    plain = {run.seed: run for run in runs if run.setting == PLAIN}
    signs = _common_signs(list(plain.values()))
    rows = []
    for setting in dict.fromkeys(run.setting for run in runs if run.setting != PLAIN):
        own = [run for run in runs if run.setting == setting and run.seed in plain]
        both_sides = [one for run in own for one in (run, plain[run.seed])]
        for metric in own[0].metrics if own else ():
            if not all(metric in one.metrics for one in both_sides):
                continue
            both = [(run.pairs[metric], plain[run.seed].pairs[metric]) for run in own]
            moved = np.array([_standardised(now, then) for now, then in both])
            low, high = student_interval(moved)
            rows.append(
                {
                    "setting": setting,
                    "penalty": own[0].penalty,
                    "strength": own[0].strength,
                    "metric": metric,
                    "plain": float(np.mean([then.mean() for _, then in both])),
                    "value": float(np.mean([now.mean() for now, _ in both])),
                    "change": float(moved.mean()),
                    "low": low,
                    "high": high,
                    "stable": signs.get(metric, 0),
                }
            )
    columns = [*_SETTING, "metric", "plain", "value", "change", "low", "high", "stable"]
    return pd.DataFrame(rows, columns=columns)


def _standardised(now: pd.Series, then: pd.Series) -> float:
    spread = then.std()
    return float((now.mean() - then.mean()) / spread) if spread > 0 else float("nan")


def _common_signs(runs: Sequence[Run]) -> dict[str, int]:
    """Keep the metrics that are stable, with one sign, for every seed."""
    if not runs:
        return {}
    return {
        metric: sign
        for metric, sign in runs[0].stable.items()
        if all(run.stable.get(metric) == sign for run in runs)
    }


def _choices(merges: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Choose a strength for each penalty by its trade-off on all seeds but one, and judge it on that one.

    The trade-off is merged accuracy (mean over methods and pairs) plus the models' own accuracy: a point of one is
    worth a point of the other. Plain fine-tuning is among the choices. With one seed there is no other to choose on.
    """
    merged = merges[merges["method"] == ALL_METHODS].pivot_table(
        index=[*_SETTING, "seed"], columns="target", values="value", sort=False
    )
    merged["finetuned_accuracy"] = models.groupby([*_SETTING, "seed"], sort=False)["value"].mean()
    table = merged.reset_index()
    plain = table[table["setting"] == PLAIN].set_index("seed")
    columns = [
        "penalty", "strengths", "seeds", "acc", "acc_low", "acc_high", "norm_acc", "norm_acc_low", "norm_acc_high",
        "finetuned_accuracy", "finetuned_accuracy_low", "finetuned_accuracy_high",
    ]  # fmt: skip
    rows = []
    for penalty in dict.fromkeys(table.loc[table["setting"] != PLAIN, "penalty"]):
        own = table[(table["penalty"] == penalty) | (table["setting"] == PLAIN)]
        # Only strengths that every seed has, or the choice would depend on which jobs are finished.
        whole = own.groupby("setting")["seed"].transform("nunique") == own["seed"].nunique()
        own, seeds = own[whole], sorted(set(own["seed"]))
        if len(seeds) < 2 or set(seeds) != set(plain.index) or set(own["setting"]) == {PLAIN}:
            continue
        picked = [_pick(own, seed) for seed in seeds]
        row: dict[str, Any] = {
            "penalty": penalty,
            "strengths": ", ".join(f"{one['strength']:g}" for one in picked),
            "seeds": len(seeds),
        }
        for name in ("acc", "norm_acc", "finetuned_accuracy"):
            changes = np.array(
                [one[name] - plain.loc[seed, name] for one, seed in zip(picked, seeds, strict=True)]
            )
            row[name] = float(changes.mean())
            row[f"{name}_low"], row[f"{name}_high"] = student_interval(changes)
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def _pick(table: pd.DataFrame, left_out: int) -> pd.Series:
    """Choose on the other seeds, and return the chosen setting's row of this one."""
    others, own = table[table["seed"] != left_out], table[table["seed"] == left_out]
    score = (others["acc"] + others["finetuned_accuracy"]).groupby(others["setting"], sort=False).mean()
    return own[own["setting"] == score.idxmax()].iloc[0]


def _missing(runs: Sequence[Run], everywhere: Sequence[str]) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    have = {run.setting: sorted(one.seed for one in runs if one.setting == run.setting) for run in runs}
    sentences = []
    if PLAIN not in have:
        sentences.append(
            "Plain fine-tuning (reg.lambda=0) is not among the runs, but all settings are compared with it."
            " Run it with the same seeds."
        )
    partly = [
        f"{setting} (seeds {', '.join(map(str, own))})" for setting, own in have.items() if own != seeds
    ]
    if len(partly) > _NAMED:
        sentences.append(
            f"{len(partly)} of {len(have)} settings were not run with all of the seeds"
            f" {', '.join(map(str, seeds))}. Settings with a single seed have no interval."
        )
    elif partly:
        sentences.append(f"Not measured for every seed: {'; '.join(partly)}.")
    partial = sorted({method for run in runs for method in outcome_methods(run.pairs)} - set(everywhere))
    if partial:
        sentences.append(
            f"The mean over methods excludes {', '.join(partial)}, which only some of the runs used."
        )
    if len(seeds) < 2:
        sentences.append(
            "With one seed, neither an interval over seeds nor an unbiased choice of a penalty's strength is"
            " possible."
        )
    return sentences


def winners(merges: pd.DataFrame) -> pd.DataFrame:
    """Find the settings that beat plain fine-tuning in both outcomes by more than the 95 % interval over seeds.

    Args:
        merges: of `Ablation`.

    Returns:
        One row per setting and method: `acc` and `norm_acc`, the changes, largest `acc` first.
    """
    columns = [*_SETTING, "method", "acc", "norm_acc"]
    better = merges[merges["low"] > 0].pivot_table(
        index=[*_SETTING, "method"], columns="target", values="change", sort=False
    )
    found = better.reindex(columns=list(TARGETS)).dropna().reset_index()
    return found.sort_values("acc", ascending=False, kind="stable", ignore_index=True)[columns]
