"""What the study of predictors costs: leaving two tasks out, and the permutation test, against plain code.

    python -m benchmarks.study_cost                                20, 40 and 80 tasks, 28 metrics: about 20 minutes
    python -m benchmarks.study_cost --tasks 8                      the same code in seconds, as a smoke test
    python -m benchmarks.study_cost --results benchmarks/results   and keep the numbers as JSON

Ridge with nested strength is evaluated on random metrics and one merge method, in a process of its own that reports
its CPU time and peak memory. Plain code fits each inner fold by the sums over its rows and their eigenvalues; it is
timed on one outer fold, since all of them would take hours. The ratios are those of CPU time per outer fold, and per
permutation of the permutation test. CPU time depends little on what else runs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.child import peak_memory
from benchmarks.machine import load, machine, versions
from mergeability.files import write_text
from mergeability.prediction import LeaveTwoTasksOut, Ridge, evaluate_predictors
from mergeability.prediction.pair_table import incidence
from mergeability.prediction.predictors.moments import Moments, TaskSums
from mergeability.prediction.predictors.pair_folds import PairFolds
from mergeability.prediction.predictors.pair_ridge import predicted_pairs
from mergeability.prediction.predictors.ridge import most_correlated, ridge_weights, training_masks, validated
from mergeability.provenance import git_commit

METRICS = 28
STRENGTHS = np.array(Ridge().strengths, dtype=float)
# What 80 tasks may cost: shown beside the measurement, never a reason to fail.
TARGETS = {"minutes": 12, "gib": 2}
_ROOT = Path(__file__).parents[1]


def pairs(tasks: int) -> pd.DataFrame:
    """Make a table of all pairs, whose metrics and outcome have task effects and noise."""
    generator = np.random.default_rng(0)
    names = [f"task_{i:03}" for i in range(tasks)]
    frame = pd.DataFrame(list(combinations(names, 2)), columns=["task_a", "task_b"])
    ends = np.array(list(combinations(range(tasks), 2)))
    effects = generator.normal(size=(tasks, METRICS))
    values = effects[ends].sum(axis=1) + generator.normal(size=(len(ends), METRICS))
    outcome = values @ generator.normal(size=METRICS) + 5 * generator.normal(size=len(ends))
    columns = {f"metric_{i}": values[:, i] for i in range(METRICS)}
    return frame.assign(**columns, norm_acc_merged=0.7 + 0.01 * outcome)


def study(tasks: int) -> dict[str, Any]:
    """Evaluate ridge on all folds: CPU seconds and peak memory of this process."""
    frame = pairs(tasks)
    metrics = [name for name in frame.columns if name.startswith("metric_")]
    before, began = peak_memory(), time.process_time()
    result = evaluate_predictors(frame, metrics, {"ridge": Ridge()}, protocols=[LeaveTwoTasksOut()])
    seconds = time.process_time() - began
    record = result.records[0]
    return {
        "cpu_seconds": round(seconds, 2),
        "folds": record["n_folds"],
        "peak_bytes": peak_memory(),
        "peak_bytes_before": before,
        "r_beyond_mean": record["r_beyond_mean"],
    }


def against_plain(tasks: int, repeats: int) -> dict[str, Any]:
    """Time one outer fold and one permutation, ours and plain, the fastest of several."""
    frame = pairs(tasks)
    # The training rows of the fold that leaves out the last two tasks.
    left = frame.iloc[[i for i, (_, b) in enumerate(combinations(range(tasks), 2)) if b < tasks - 2]]
    X, Y, ends = _arrays(left, tasks - 2)
    names = list(dict.fromkeys(frame[["task_a", "task_b"]].to_numpy().T.ravel()))
    Z, outcomes, all_ends = _arrays(frame, tasks)
    Z = np.hstack([Z, incidence(frame[["task_a", "task_b"]].to_numpy(), names)])
    timed = {
        "fold": (lambda: _our_fold(X, Y, ends), lambda: _plain_fold(X, Y, ends)),
        "permutation": (
            lambda: TaskSums(Z, outcomes, all_ends, tasks).without_one(np.arange(tasks)).gram,
            lambda: _plain_sums(Z, outcomes, all_ends, tasks),
        ),
    }
    found = {}
    for name, (ours, plain) in timed.items():
        own, own_result = _fastest(ours, repeats)
        theirs, result = _fastest(plain, max(1, repeats // 3))
        found[name] = {
            "cpu_seconds": round(own, 5),
            "plain_cpu_seconds": round(theirs, 5),
            "ratio": round(theirs / own, 2),
            "difference": float(np.abs(own_result - result).max() / np.abs(result).max()),
        }
    return found


def _arrays(frame: pd.DataFrame, tasks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X = frame.filter(like="metric_").to_numpy()
    X = 2 * (X - X.min(axis=0)) / np.ptp(X, axis=0) - 1
    return X, frame[["norm_acc_merged"]].to_numpy(), np.array(list(combinations(range(tasks), 2)))


def _our_fold(X: np.ndarray, Y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    predicted, measured = predicted_pairs(X, Y, PairFolds(ends), STRENGTHS)
    most_correlated(predicted, measured)
    return predicted


def _plain_fold(X: np.ndarray, Y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    folds = list(PairFolds(ends))
    kept = list(validated(X, Y, folds, lambda one: ridge_weights(one.gram, one.cross, STRENGTHS)))
    predicted = np.concatenate([one for one, _ in kept], axis=1)
    most_correlated(predicted, np.concatenate([one for _, one in kept]))
    return predicted


def _plain_sums(Z: np.ndarray, Y: np.ndarray, ends: np.ndarray, tasks: int) -> np.ndarray:
    folds = [
        (np.flatnonzero((ends != task).all(axis=1)), np.flatnonzero((ends == task).any(axis=1)))
        for task in range(tasks)
    ]
    return Moments(Z, Y, training_masks(folds, len(Z))).gram


def _fastest(run: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    times, result = [], np.empty(0)
    for _ in range(repeats):
        began = time.process_time()
        result = run()
        times.append(time.process_time() - began)
    return min(times), result


def measured(tasks: int, repeats: int) -> dict[str, Any]:
    """Measure one number of tasks."""
    command = [sys.executable, "-m", "benchmarks.study_cost", "--alone", str(tasks)]
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    own = json.loads(ended.stdout.splitlines()[-1])
    with threadpool_limits(1, "blas"):
        compared = against_plain(tasks, repeats)
    # For every outer fold the row numbers of its inner folds, and a copy of its training rows.
    outer, inner, rows = comb(tasks, 2), comb(tasks - 2, 2), comb(tasks - 4, 2)
    kept = outer * inner * (rows + METRICS) * 8
    return {"study": own, **compared, "bytes_of_all_folds_at_once": kept}


def table(found: Mapping[str, Any]) -> str:
    """Show one line per number of tasks."""
    lines = [
        f"{'tasks':>6}{'CPU, s':>9}{'plain, s':>10}{'ratio':>7}{'peak, GiB':>11}{'all folds, GiB':>16}"
        f"{'permutation, s':>16}{'plain, s':>10}{'ratio':>7}"
    ]
    for tasks, one in found.items():
        own, fold, permutation = one["study"], one["fold"], one["permutation"]
        plain = fold["plain_cpu_seconds"] * own["folds"]
        peak = "unknown" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 2**30:.2f}"
        lines.append(
            f"{tasks:>6}{own['cpu_seconds']:>9.1f}{plain:>10.1f}{fold['ratio']:>7.1f}{peak:>11}"
            f"{one['bytes_of_all_folds_at_once'] / 2**30:>16.3f}"
            f"{permutation['cpu_seconds']:>16.4f}{permutation['plain_cpu_seconds']:>10.4f}{permutation['ratio']:>7.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and keep."""
    options = _options(arguments)
    if options.alone is not None:
        print(json.dumps(study(options.alone)))
        return 0
    found = {}
    for tasks in options.tasks:
        found[str(tasks)] = measured(tasks, options.repeats)
        print(f"{tasks} tasks: done", file=sys.stderr, flush=True)
    print(table(found))
    print(f"Wanted for 80 tasks: at most {TARGETS['minutes']} minutes of CPU time and {TARGETS['gib']} GiB.")
    if options.results is not None:
        where = {"commit": git_commit(), "load": load(), "machine": machine(), "versions": versions()}
        content = {"metrics": METRICS, "targets": TARGETS, "tasks": found, **where}
        write_text(options.results / "study_cost.json", json.dumps(content, indent=1) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_cost", description=__doc__)
    parser.add_argument("--tasks", nargs="+", type=int, default=[20, 40, 80], help="in the table")
    parser.add_argument("--repeats", type=int, default=3, help="of what is compared with plain code")
    parser.add_argument("--results", type=Path, help="folder for study_cost.json; nowhere unless given")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.tasks) < 7 or options.repeats < 1:
        parser.error("--tasks are at least 7 and --repeats at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
