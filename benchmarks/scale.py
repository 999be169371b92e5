"""How an analysis grows with the number of models: time, peak memory and store, with a budget of evaluations.

    python -m benchmarks.scale                                50 to 1,000 tiny models: about 15 minutes
    python -m benchmarks.scale --models 12 24                 the same code in seconds, as a smoke test
    python -m benchmarks.scale --results benchmarks/results   and keep the numbers as JSON and the table as Markdown

The models are made on the spot: eight matrices of 16 × 16, each the base's plus a change of rank 2, of which a part is
shared by a group of models, and noise. All pairs get the 18 metrics of weight space. Five pairs per model are chosen as
`evaluate=` chooses them, merged by `ta` and `ties`, and given an outcome that is computed from the merged weights: how
near they are to each of the two models. The others are predicted, and the tables and the report are written. Each size
runs in a process of its own, on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from benchmarks.child import Stopwatch, peak_memory
from benchmarks.machine import load, machine, versions
from mergeability.context import Run
from mergeability.files import write_text
from mergeability.merging.task_arithmetic import TaskArithmetic
from mergeability.merging.ties import Ties
from mergeability.metrics.catalogue import WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.pipeline.result import Analysis
from mergeability.prediction.pair_choice import choose_pairs
from mergeability.prediction.unevaluated import predict_unevaluated
from mergeability.profiles.profiles import Profiles
from mergeability.provenance import git_commit
from mergeability.reporting.result_files import save
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

LAYERS, SIZE, RANK = 8, 16, 2
PER_MODEL = 5
"""Evaluated pairs per model."""
CHECKED = 300
"""Pairs that are evaluated afterwards, to see how far off their predictions are."""
_GROUPS = 10
_METHODS = {"ta": TaskArithmetic(), "ties": Ties()}
_ALPHA = 0.5
_ROOT = Path(__file__).parents[1]


def write_models(folder: Path, count: int) -> dict[str, Path]:
    """Write the base and the models; return name → file of the models."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layer{layer}.weight" for layer in range(LAYERS)]

    def low_rank() -> torch.Tensor:
        factors = torch.randn(2, SIZE, RANK, generator=generator)
        return 0.05 * factors[0] @ factors[1].T

    base = {name: torch.randn(SIZE, SIZE, generator=generator) for name in names}
    groups = [{name: low_rank() for name in names} for _ in range(_GROUPS)]
    save_file(base, folder / "base.safetensors")
    paths = {}
    for number in range(count):
        shared, share = groups[number % _GROUPS], float(torch.rand((), generator=generator))
        length = 0.5 + float(torch.rand((), generator=generator))
        model = {
            name: weight
            + length * (share * shared[name] + (1 - share) * low_rank())
            + 0.005 * torch.randn(SIZE, SIZE, generator=generator)
            for name, weight in base.items()
        }
        paths[f"model_{number:04}"] = folder / f"model_{number:04}.safetensors"
        save_file(model, paths[f"model_{number:04}"])
    return paths


def outcomes(vectors: TaskVectors, pair: tuple[str, str]) -> dict[str, float]:
    """Merge two models by every method, and say how near the merge is to each: exp(-‖αM - τ‖² / ‖τ‖²), the mean."""
    own = vectors.select(pair)
    deltas = {
        task: np.concatenate([own.read(task, name, 0, own.parameters[name].size) for name in own.names])
        for task in pair
    }
    found = {}
    for method, merge in _METHODS.items():
        merged = merge(own)
        point = 2 * _ALPHA * np.concatenate([merged[name].numpy().ravel() for name in own.names])
        if method == "ta":
            # The sum of both, where the others have a mean.
            point = point / 2
        near = [np.exp(-np.square(point - delta).sum() / np.square(delta).sum()) for delta in deltas.values()]
        found[f"norm_acc_{method}"] = float(0.5 + 0.5 * np.mean(near))
    return found


def analysis(count: int, folder: Path) -> dict[str, Any]:
    """Analyse so many models from an empty store, stage by stage."""
    paths = write_models(folder, count)
    watch, store = Stopwatch(), Store(folder / "store")
    run = Run(store)
    vectors = TaskVectors.load(paths, base=folder / "base.safetensors", store=store)
    table = measure(Profiles(vectors, None, run), WEIGHT_SPACE)
    metrics = list(table.columns)
    watch.mark("metrics", store.computed)
    pairs = table.reset_index()
    rows = choose_pairs(pairs, metrics, min(PER_MODEL * count, len(pairs)))
    watch.mark("choice")
    ends = [(str(a), str(b)) for a, b in pairs[["task_a", "task_b"]].to_numpy()]
    measured = run.map(lambda row: outcomes(vectors, ends[row]), sorted(rows.tolist()), description="merging")
    for name in measured[0]:
        values = np.full(len(pairs), np.nan)
        values[np.sort(rows)] = [one[name] for one in measured]
        pairs[name] = values
    watch.mark("merges")
    found = predict_unevaluated(pairs, metrics, list(_METHODS))
    watch.mark("prediction")
    result = Analysis(
        title=f"{count} tiny models",
        pairs=pairs,
        metrics=metrics,
        methods=list(_METHODS),
        evaluated=len(rows),
        predicted_pairs=found.predictions,
        predicted_accuracy=found.accuracy,
    )
    report = save(result, folder / "run")
    watch.mark("tables and report")
    peak = peak_memory()
    files = [one for one in (folder / "store").rglob("*") if one.is_file()]
    return {
        "pairs": len(pairs),
        "evaluated": len(rows),
        "stages": {name: round(one["seconds"], 2) for name, one in watch.stages.items()},
        "filed": watch.stages["metrics"]["filed"],
        "peak_bytes": peak,
        "store_bytes": sum(one.stat().st_size for one in files),
        "store_bytes_by_kind": _by_kind(folder / "store"),
        "report_bytes": report.stat().st_size,
        "tables_bytes": sum(one.stat().st_size for one in (folder / "run").glob("*.csv")),
        **_off(vectors, pairs, found.predictions),
    }


def _by_kind(root: Path) -> dict[str, int]:
    kinds = [one for one in root.iterdir() if one.is_dir()]
    return {
        one.name: sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
        for one in sorted(kinds)
    }


def _off(vectors: TaskVectors, pairs: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, float]:
    """Evaluate some of the predicted pairs, and compare."""
    if predictions.empty:
        return {}
    some = predictions.sample(min(CHECKED, len(predictions)), random_state=0)
    ends = [(str(a), str(b)) for a, b in some[["task_a", "task_b"]].to_numpy()]
    truth = pd.DataFrame([outcomes(vectors, pair) for pair in ends], index=some.index)
    error = np.mean([(some[f"predicted_{name}"] - truth[name]).abs().mean() for name in truth])
    of_mean = np.mean([(truth[name] - pairs[name].mean()).abs().mean() for name in truth])
    inside = np.mean(
        [
            truth[name].between(some[f"predicted_low_{name}"], some[f"predicted_high_{name}"]).mean()
            for name in truth
        ]
    )
    return {
        "error": round(float(error), 5),
        "error_of_mean": round(float(of_mean), 5),
        "inside": round(float(inside), 3),
    }


def measured(count: int) -> dict[str, Any]:
    """Analyse so many models in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--alone", str(count)]
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def table(found: Mapping[str, Any]) -> str:
    """Show one line per number of models, as Markdown."""
    head = (
        "models", "pairs", "evaluated", "entries per model", "metrics, s", "choice, s", "merges, s", "prediction, s",
        "tables and report, s", "peak, GiB", "store, MB", "of it T × T, MB", "report, MB", "pairs.csv etc., MB",
        "error", "of the mean", "in the interval",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for count, one in found.items():
        stages = one["stages"]
        kinds = one["store_bytes_by_kind"]
        cells = [
            count,
            one["pairs"],
            one["evaluated"],
            f"{per_model(one['filed'], int(count)):g}",
            *(
                f"{stages[name]:.1f}"
                for name in ("metrics", "choice", "merges", "prediction", "tables and report")
            ),
            "unknown" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**30:.2f}",
            f"{one['store_bytes'] / 1e6:.1f}",
            f"{sum(kinds.get(name, 0) for name in ('gram', 'overlap')) / 1e6:.1f}",
            f"{one['report_bytes'] / 1e6:.1f}",
            f"{one['tables_bytes'] / 1e6:.1f}",
            *(f"{one[name]:.3g}" if name in one else "–" for name in ("error", "error_of_mean", "inside")),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def per_model(filed: Mapping[str, int], count: int) -> float:
    """Return how many entries of the store were computed for each model; those of all models together not counted."""
    return sum(filed.get(kind, 0) for kind in ("singular", "relative_norm")) / count


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show and keep."""
    options = _options(arguments)
    if options.alone is not None:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            print(json.dumps(analysis(options.alone, Path(folder))))
        return 0
    found = {}
    for count in options.models:
        found[str(count)] = measured(count)
        print(f"{count} models: done", file=sys.stderr, flush=True)
        if options.results is not None:
            _write(found, options.models, options.results)
    print(table(found))
    return 0


def _write(found: Mapping[str, Any], models: Sequence[int], folder: Path) -> None:
    """Keep what was measured until now."""
    where = {"commit": git_commit(), "load": load(), "machine": machine(), "versions": versions()}
    command = f"python -m benchmarks.scale --models {' '.join(map(str, models))} --results benchmarks/results"
    record = {"command": command, "models": found, **where}
    write_text(folder / "scale.json", json.dumps(record, indent=1) + "\n")
    text = f"{_TITLE}\n\n```console\n$ {command}\n```\n\n{table(found)}\n\n{_LEGEND}\n"
    write_text(folder / "scale.md", text)


_TITLE = (
    "# An analysis of many tiny models\n\nOne process on one core for each line; other work on the machine slows all of"
    " them."
)
_LEGEND = (
    "Eight matrices of 16 × 16 per model, 18 metrics of every pair, 5 evaluated pairs per model, merged by `ta` and"
    " `ties`. Entries per model: singular vectors of each matrix, and the length of its task vector. T × T: Gram"
    " matrices and overlaps of all pairs, 8 bytes × (1 + 4) × matrices × T². Error: mean absolute error of 300"
    " predictions whose pairs were evaluated afterwards, next to that of always predicting the mean; in the interval:"
    " share of them inside their 90 % interval."
)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", type=int, default=[50, 100, 200, 500, 1000], help="in the table"
    )
    parser.add_argument(
        "--results", type=Path, help="folder for scale.json and scale.md; nowhere unless given"
    )
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.models) < 4 or comb(min(options.models), 2) < 5:
        parser.error("--models are at least 4")
    return options


if __name__ == "__main__":
    sys.exit(main())
