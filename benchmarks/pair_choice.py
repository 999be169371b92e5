"""What the choice of the pairs to evaluate is worth: errors of predicting the others, against random choices.

    python -m benchmarks.pair_choice PAIRS…                                 minutes; PAIRS are pairs.csv of analyses
    python -m benchmarks.pair_choice PAIRS… --results benchmarks/results    and keep the numbers as JSON

Each table has metrics and the normalised accuracies of all pairs. Again and again 15 of its tasks are drawn; of their
pairs, one, two or four per task are chosen by `choose_pairs`, at random with every task about equally often, or at
random. The other pairs are predicted as `evaluate=` does, and compared with what was measured. Rules are compared on
the same tasks; the standard error is that over draws.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.machine import load, machine, versions
from mergeability.files import write_text
from mergeability.metrics.catalogue import CATALOGUE
from mergeability.prediction.pair_choice import choose_pairs
from mergeability.prediction.pair_table import outcome_methods
from mergeability.prediction.unevaluated import predict_unevaluated
from mergeability.provenance import git_commit

TASKS = 15
PER_TASK = (1, 2, 4)
Rule = Callable[[pd.DataFrame, list[str], int, int], np.ndarray]


def at_random(pairs: pd.DataFrame, _metrics: list[str], count: int, seed: int) -> np.ndarray:
    """Choose any pairs."""
    return np.random.default_rng(seed).choice(len(pairs), count, replace=False)


def balanced(pairs: pd.DataFrame, _metrics: list[str], count: int, seed: int) -> np.ndarray:
    """Choose pairs at random, of the two tasks in the fewest chosen pairs: the choice without any metric."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    ends = pairs[["task_a", "task_b"]].to_numpy()
    degree = dict.fromkeys(ends.ravel().tolist(), 0)
    chosen: list[int] = []
    for _ in range(count):
        left = [row for row in order if row not in chosen]
        row = min(left, key=lambda one: sorted(degree[task] for task in ends[one]))
        chosen.append(int(row))
        for task in ends[row]:
            degree[task] += 1
    return np.array(chosen)


RULES: dict[str, Rule] = {"random": at_random, "balanced": balanced, "chosen": choose_pairs}


def errors(pairs: pd.DataFrame, metrics: list[str], methods: list[str], rows: np.ndarray) -> dict[str, float]:
    """Predict the pairs that are not among these rows: mean absolute error, r, and the share inside the interval."""
    outcomes = [f"norm_acc_{method}" for method in methods]
    known = np.isin(np.arange(len(pairs)), rows)
    hidden = pairs.assign(**{name: pairs[name].where(known) for name in outcomes})
    found = predict_unevaluated(
        hidden[["task_a", "task_b", *metrics, *outcomes]], metrics, methods
    ).predictions
    truth = pairs.loc[~known, outcomes].reset_index(drop=True)
    predicted = [found[f"predicted_{name}"] for name in outcomes]
    inside = [
        truth[name].between(found[f"predicted_low_{name}"], found[f"predicted_high_{name}"]).mean()
        for name in outcomes
    ]
    return {
        "mae": float(
            np.mean([(one - truth[name]).abs().mean() for one, name in zip(predicted, outcomes, strict=True)])
        ),
        "r": float(np.mean([one.corr(truth[name]) for one, name in zip(predicted, outcomes, strict=True)])),
        "inside": float(np.mean(inside)),
    }


def compared(path: Path, draws: int) -> pd.DataFrame:
    """Compare the rules on one table, over draws of tasks."""
    table = pd.read_csv(path, dtype={"task_a": str, "task_b": str})
    metrics = [name for name in CATALOGUE if name in table.columns]
    methods = outcome_methods(table, ["norm_acc"])
    whole = table.dropna(subset=[*metrics, *(f"norm_acc_{method}" for method in methods)])
    tasks = sorted({*whole["task_a"], *whole["task_b"]})
    rows = []
    for draw in range(draws):
        kept = np.random.default_rng(draw).choice(tasks, min(TASKS, len(tasks)), replace=False)
        pairs = whole[whole[["task_a", "task_b"]].isin(kept).all(axis=1)].reset_index(drop=True)
        for per_task in PER_TASK:
            for name, rule in RULES.items():
                chosen = rule(pairs, metrics, per_task * len(kept), draw)
                found = errors(pairs, metrics, methods, chosen)
                rows.append({"table": str(path), "draw": draw, "per_task": per_task, "rule": name, **found})
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Average over tables and draws; the difference from `balanced` in percent of its error, with standard error."""
    rows = []
    for per_task, group in found.groupby("per_task"):
        wide = group.pivot_table(index=["draw", "table"], columns="rule", values="mae")
        for rule in RULES:
            change = (100 * (wide[rule] - wide["balanced"]) / wide["balanced"].mean()).groupby("draw").mean()
            own = group[group["rule"] == rule]
            means = {name: round(float(own[name].mean()), 4) for name in ("mae", "r", "inside")}
            spread = float(change.std() / np.sqrt(len(change)))
            rows.append(
                {"per_task": per_task, "rule": rule, **means,
                 "change": round(float(change.mean()), 1), "standard_error": round(spread, 1)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, show and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pair_choice", description=__doc__)
    parser.add_argument("pairs", nargs="+", type=Path, help="tables of pairs, averaged over")
    parser.add_argument("--draws", type=int, default=24, help="of tasks")
    parser.add_argument("--name", default="pairs", help="of these tables in the results")
    parser.add_argument("--results", type=Path, help="folder for pair_choice.json; nowhere unless given")
    options = parser.parse_args(arguments)
    found = summary(pd.concat([compared(path, options.draws) for path in options.pairs], ignore_index=True))
    print(found.to_string(index=False))
    if options.results is not None:
        path = options.results / "pair_choice.json"
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        where = {"commit": git_commit(), "load": load(), "machine": machine(), "versions": versions()}
        kept[options.name] = {"draws": options.draws, "rules": found.to_dict("records"), **where}
        write_text(path, json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
