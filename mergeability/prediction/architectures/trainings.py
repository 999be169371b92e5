"""Compare penalised fine-tuning with plain fine-tuning, and merges of model sets with merges of pairs in these sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.analyses import TARGET, Analysis, seeds_of, tasks_of
from mergeability.prediction.architectures.resampling import Estimate, estimate
from mergeability.prediction.validation.scores import spearman_rho

ALL = "all"
GRADIENT = "encoder_gradient_l2_distance"
"""The metric that measures whether gradients came together."""

PENALTY_COLUMNS = [
    "architecture", "penalty", "strength", "acc", "acc_low", "acc_high", "norm_acc", "norm_acc_low", "norm_acc_high",
    "gradient", "gradient_low", "gradient_high", "seeds",
]  # fmt: skip
SET_COLUMNS = ["architecture", "method", "arity", "rho", "rho_low", "rho_high", "n_sets", "left_out", "seeds"]


@dataclass(frozen=True)
class Penalised:
    """One analysis of models that were fine-tuned with a penalty.

    Attributes:
        penalty: its name.
        strength: λ.
        analysis: the pairs.
    """

    penalty: str
    strength: float
    analysis: Analysis


def penalty_table(plain: Sequence[Analysis], penalised: Sequence[Penalised]) -> pd.DataFrame:
    """Compare, for each seed, merges of models fine-tuned with a penalty and merges of models fine-tuned without one.

    Args:
        plain: the pair tables of plain fine-tuning.
        penalised: those with a penalty; without a plain one of the same architecture and seed they are ignored.

    Returns:
        One row per architecture, penalty and strength: the changes of `acc` and `norm_acc`, means over methods, pairs
        and seeds; `gradient`, the change of the distance of two models' gradients, relative to that of plain
        fine-tuning: below 0, gradients came together; with intervals over tasks and seeds; `seeds`, their number.
    """
    tables = {(one.architecture, one.seed): one.sorted() for one in plain}
    groups: dict[tuple[str, str, float], list[tuple[Analysis, Analysis]]] = {}
    for one in penalised:
        base = tables.get((one.analysis.architecture, one.analysis.seed))
        if base is not None:
            key = (one.analysis.architecture, one.penalty, one.strength)
            groups.setdefault(key, []).append((base, one.analysis.sorted()))
    rows = []
    for (architecture, penalty, strength), couples in groups.items():
        row: dict[str, object] = {"architecture": architecture, "penalty": penalty, "strength": strength}
        for target in ("acc", TARGET):
            row |= _change(couples, target).columns(target)
        rows.append(row | _change(couples, GRADIENT).columns("gradient") | {"seeds": len(couples)})
    return pd.DataFrame(rows, columns=PENALTY_COLUMNS)


def _change(couples: Sequence[tuple[Analysis, Analysis]], column: str) -> Estimate:
    """Average the effect of a penalty over methods, pairs and seeds; changes of a metric are relative changes."""

    def statistic(task: str | None, seed: int | None) -> float:
        found = [_paired(a, b, column, task) for a, b in couples if seed is None or a.seed != seed]
        return float(np.mean(found)) if found else float("nan")

    tables = [a for a, _ in couples]
    return estimate(statistic, tasks_of(tables), seeds_of(tables), bounds=None)


def _paired(plain: Analysis, penalised: Analysis, column: str, without: str | None) -> float:
    keys = ["task_a", "task_b"]
    metric = column == GRADIENT
    names = [column] if metric else [f"{column}_{method}" for method in plain.methods]
    names = [name for name in names if name in plain.pairs and name in penalised.pairs]
    if not names:
        return float("nan")
    both = plain.pairs[[*keys, *names]].merge(
        penalised.pairs[[*keys, *names]], on=keys, suffixes=("_plain", "_penalised")
    )
    both = both[(both["task_a"] != without) & (both["task_b"] != without)]
    before = both[[f"{name}_plain" for name in names]].to_numpy(float)
    after = both[[f"{name}_penalised" for name in names]].to_numpy(float)
    change = float(np.nanmean(after - before))
    return change / float(np.nanmean(before)) if metric else change


def set_table(analyses: Sequence[Analysis], sets: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Correlate the outcome of merging more than two models with the mean outcome of the pairs among them.

    Args:
        analyses: the pair tables.
        sets: (architecture, seed) → one row per set: `tasks`, joined by +, `arity`, and outcomes.

    Returns:
        One row per architecture, method (and `all`) and number of models: `rho`, Spearman's correlation over sets, a
        mean over seeds with its interval over tasks and seeds; `n_sets` of one seed, on average; `left_out`, the number
        of sets of one seed, on average, without the outcomes of the set and of all its pairs; `seeds`.
    """
    rows = []
    tables = {(one.architecture, one.seed): one.sorted() for one in analyses}
    groups: dict[tuple[str, str, int], list[tuple[Analysis, pd.DataFrame]]] = {}
    left_out: dict[tuple[str, str, int], list[int]] = {}
    for key, frame in sets.items():
        for arity, own in frame.groupby("arity", sort=True) if len(frame) else ():
            for method in tables[key].methods if key in tables else ():
                if f"{TARGET}_{method}" not in own:
                    continue
                scored = _scored_sets(tables[key], own, method)
                count = int(str(arity))
                for name in (method, ALL):
                    groups.setdefault((key[0], name, count), []).append((tables[key], scored))
                    left_out.setdefault((key[0], name, count), []).append(len(own) - len(scored))
    for (architecture, method, arity), found in groups.items():
        count = float(np.mean([len(scored) for _, scored in found]))
        labels = {"architecture": architecture, "method": method, "arity": arity}
        rho = set_correlation(found)
        seeds = len({table.seed for table, _ in found})
        missing = round(float(np.mean(left_out[architecture, method, arity])))
        counts = {"n_sets": round(count), "left_out": missing, "seeds": seeds}
        rows.append({**labels, **rho.columns("rho"), **counts})
    return pd.DataFrame(rows, columns=SET_COLUMNS)


def set_correlation(found: Sequence[tuple[Analysis, pd.DataFrame]]) -> Estimate:
    """Average Spearman's ρ between `measured` and `of_pairs` over tables of model sets, and compute an interval."""

    def statistic(task: str | None, seed: int | None) -> float:
        values = []
        for table, scored in found:
            if seed is not None and table.seed == seed:
                continue
            kept = scored if task is None else scored[[task not in tasks for tasks in scored["tasks"]]]
            values.append(spearman_rho(kept["of_pairs"].to_numpy(float), kept["measured"].to_numpy(float)))
        known = np.array(values)[~np.isnan(values)] if values else np.empty(0)
        return float(known.mean()) if len(known) else float("nan")

    tables = [table for table, _ in found]
    return estimate(statistic, tasks_of(tables), seeds_of(tables))


def _scored_sets(analysis: Analysis, sets: pd.DataFrame, method: str) -> pd.DataFrame:
    column = f"{TARGET}_{method}"
    ends = analysis.pairs[["task_a", "task_b"]].itertuples(index=False, name=None)
    outcome = dict(zip(map(frozenset, ends), analysis.pairs[column], strict=True))
    rows = []
    for tasks, measured in zip(sets["tasks"], sets[column], strict=True):
        names = frozenset(str(tasks).split("+"))
        pairs = [outcome.get(frozenset(pair), float("nan")) for pair in combinations(sorted(names), 2)]
        rows.append({"tasks": names, "measured": float(measured), "of_pairs": float(np.mean(pairs))})
    frame = pd.DataFrame(rows, columns=["tasks", "measured", "of_pairs"])
    return frame.dropna(subset=["measured", "of_pairs"])
