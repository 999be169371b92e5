"""Build the JSON, of limited size, that the dashboard's filters and figures read."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from mergeability.errors import printable
from mergeability.prediction.pair_table import TARGETS
from mergeability.progress import Progress, no_progress
from mergeability.reporting.dashboard.gather import TRAININGS, Gathered
from mergeability.reporting.dashboard.runs import Run

NUMBERS = 2_000_000
"""The most numbers that a page holds: about seven bytes each."""

MOST_TRAININGS = 20_000
"""The largest number of training runs that a page lists; the newest are listed."""

MANY_PAIRS = 5000
"""Of a run with more pairs than these, those without an outcome are left out."""

# Decimals of accuracies and correlations; significant digits of metrics and coefficients.
_DECIMALS, _DIGITS = 4, 4

# Key, title, whether it belongs to pairs, and what makes it of a run and counts its numbers.
Part = tuple[str, str, bool, Callable[[Run], tuple[Any, int]]]


@dataclass
class Budget:
    """Limit how many numbers are embedded in a page."""

    left: int
    used: int = 0

    def take(self, count: int) -> bool:
        """Reserve space for `count` numbers on the page and return True; return False if there is not enough space."""
        if count > self.left:
            return False
        self.left, self.used = self.left - count, self.used + count
        return True


@dataclass
class _Numbering:
    """Names that occur often, such as tasks, replaced by their place in a list."""

    names: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, name: Any) -> int:
        text = str(name)
        if text not in self.places:
            self.places[text] = len(self.names)
            self.names.append(printable(text))
        return self.places[text]


def content(
    gathered: Gathered, page: Path, numbers: int = NUMBERS, progress: Progress = no_progress
) -> dict[str, Any]:
    """Convert the collected data to the structure that the page's scripts read.

    Parts are embedded in the order of their importance, of the newest runs first: pairs, outcomes, correlations,
    coefficients, metrics, predictions. A part that does not fit is left out, counted and named; the run stays in the
    list of runs.

    Args:
        gathered: analyses and training runs.
        page: where the page will lie; links to reports start from there.
        numbers: the most numbers to embed.
        progress: shows how far it is.

    Returns:
        `tasks` and `names`, which other values refer to by place; `runs`, `trainings`, and `left_out`, sentences.
    """
    tasks, names = _Numbering(), _Numbering()
    base = page.resolve().parent
    headers = [_header(run, gathered, base, tasks, names) for run in gathered.runs]
    runs = [_with_outcomes(run) for run in gathered.runs]
    sentences = [
        f"{len(run.pairs) - len(kept.pairs):,} of {len(run.pairs):,} pairs of {header['folder']} have no outcome and "
        "are not on this page."
        for run, kept, header in zip(gathered.runs, runs, headers, strict=True)
        if len(kept.pairs) < len(run.pairs)
    ]
    budget = Budget(numbers)
    for key, title, of_pairs, make in _parts(tasks, names):
        without = []
        both = list(zip(runs, headers, strict=True))
        for run, header in progress(both, f"arranging {title.lower()}", len(both)):
            # A run whose pairs do not fit has nothing that belongs to pairs.
            part, count = make(run) if not of_pairs or header["ends"] else (None, 0)
            header[key] = part if count and budget.take(count) else None
            if count and header[key] is None:
                without.append(header["folder"])
        if without:
            sentences.append(_too_much(title, without, len(runs), numbers))
    trainings = gathered.trainings.sort_values("finished_at", ascending=False, kind="stable")
    if len(trainings) > MOST_TRAININGS:
        sentences.append(
            f"There are {len(trainings):,} training runs; this page contains the newest {MOST_TRAININGS:,}."
        )
        trainings = trainings.iloc[:MOST_TRAININGS]
    rows = trainings[TRAININGS[1:]].itertuples(index=False, name=None)
    return {
        "tasks": tasks.names,
        "names": names.names,
        "runs": headers,
        "trainings": [_plain_row(row) for row in rows],
        "training_columns": TRAININGS[1:],
        "targets": list(TARGETS),
        "left_out": [*sentences, *map(printable, gathered.left_out)],
    }


def _parts(tasks: _Numbering, names: _Numbering) -> tuple[Part, ...]:
    """List the parts of a run: key, title, whether it belongs to pairs, and what makes it and counts its numbers."""
    return (
        ("ends", "Pairs", False, lambda run: _ends(run, tasks)),
        ("outcomes", "Outcomes", True, lambda run: _outcomes(run, names)),
        ("scores", "Correlations of predictors", False, lambda run: _scores(run, names)),
        ("coefficients", "Coefficients", False, lambda run: _coefficients(run, names)),
        ("metrics", "Metrics", True, lambda run: _metrics(run, names)),
        ("predictions", "Predictions", True, lambda run: _predictions(run, names)),
    )


def _with_outcomes(run: Run) -> Run:
    """Of a run with very many pairs, keep those with an outcome; of another one, or one without outcomes, all."""
    outcomes = [f"{t}_{m}" for t in TARGETS for m in run.methods if f"{t}_{m}" in run.pairs.columns]
    if len(run.pairs) <= MANY_PAIRS or not outcomes:
        return run
    return replace(run, pairs=run.pairs[run.pairs[outcomes].notna().any(axis=1)])


def _ends(run: Run, tasks: _Numbering) -> tuple[tuple[list[int], list[int]], int]:
    first, second = ([tasks.place(task) for task in run.pairs[name]] for name in ("task_a", "task_b"))
    return (first, second), 2 * len(first)


def _too_much(title: str, without: Sequence[str], runs: int, numbers: int) -> str:
    shown = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
    return (
        f"{title} of {len(without)} of {runs} runs ({shown}) are not on this page, which holds at most {numbers:,} "
        "numbers; --numbers allows more."
    )


def _header(run: Run, gathered: Gathered, base: Path, tasks: _Numbering, names: _Numbering) -> dict[str, Any]:
    facts = {name: printable(value) if isinstance(value, str) else value for name, value in run.facts.items()}
    return {
        **facts,
        "folder": printable(_relative(run.folder, base)),
        "report": quote(os.fsencode(_relative(run.folder / "report.html", base))) if run.report else None,
        "other": printable(gathered.other[run.folder]),
        "repeated": gathered.is_repeated(run),
        "repeated_methods": [names.place(name) for name in gathered.repeated[run.folder] if name],
        "finished_at": printable(run.finished_at),
        "seconds": _rounded(run.seconds, 1),
        "methods": [names.place(method) for method in run.methods],
        "tasks": [tasks.place(task) for task in run.tasks],
        "own": [_rounded(run.own.get(task, math.nan)) for task in run.tasks],
        "pairs": len(run.pairs),
        "target": run.target,
    }


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), base)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_uri()


def _outcomes(run: Run, names: _Numbering) -> tuple[list[tuple[str, int, list[float | None]]], int]:
    found = [
        (target, names.place(method), _column(run.pairs[f"{target}_{method}"]))
        for target in TARGETS
        for method in run.methods
        if f"{target}_{method}" in run.pairs.columns
    ]
    return found, len(found) * len(run.pairs)


def _metrics(run: Run, names: _Numbering) -> tuple[list[tuple[int, list[float | None]]], int]:
    known = [name for name in run.metrics if run.pairs[name].notna().any()]
    return [(names.place(name), _significant(run.pairs[name])) for name in known], len(known) * len(run.pairs)


def _scores(run: Run, names: _Numbering) -> tuple[list[tuple[Any, ...]], int]:
    known = run.scores[run.scores["r"].notna()]
    rows = [
        (protocol, target, names.place(method), names.place(predictor), _rounded(r))
        for protocol, target, method, predictor, r in known.itertuples(index=False, name=None)
    ]
    return rows, len(rows)


def _coefficients(run: Run, names: _Numbering) -> tuple[list[tuple[Any, ...]], int]:
    """Group by protocol, predictor and method: the metrics, and the coefficient of each."""
    found, count = [], 0
    for keys, rows in run.coefficients.groupby(["protocol", "predictor", "method"], sort=False):
        protocol, predictor, method = map(str, keys if isinstance(keys, tuple) else (keys,))
        metrics = [names.place(metric) for metric in rows["metric"]]
        found.append(
            (
                protocol,
                names.place(predictor),
                names.place(method),
                metrics,
                _significant(rows["coefficient"]),
            )
        )
        count += len(rows)
    return found, count


def _predictions(run: Run, names: _Numbering) -> tuple[list[tuple[Any, ...]], int]:
    """Group by protocol, predictor and method: one value per pair, in the order of the pairs."""
    rows = {ends: row for row, ends in enumerate(zip(run.pairs["task_a"], run.pairs["task_b"], strict=True))}
    found, count = [], 0
    for keys, own in run.predictions.groupby(["protocol", "predictor", "method"], sort=False):
        protocol, predictor, method = map(str, keys if isinstance(keys, tuple) else (keys,))
        values: list[float | None] = [None] * len(run.pairs)
        for a, b, predicted in zip(own["task_a"], own["task_b"], own["predicted"], strict=True):
            if (a, b) in rows:
                values[rows[a, b]] = _rounded(predicted)
        found.append((protocol, names.place(predictor), names.place(method), values))
        count += len(values)
    return found, count


def _column(values: pd.Series) -> list[float | None]:
    return [_rounded(value) for value in values.to_numpy(dtype=float)]


def _rounded(value: float | None, decimals: int = _DECIMALS) -> float | None:
    """Round for the page; None for what is undefined."""
    return None if value is None or not math.isfinite(value) else round(float(value), decimals)


def _significant(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None for value in values]


def _plain_row(row: Sequence[Any]) -> list[Any]:
    return [
        printable(value)
        if isinstance(value, str)
        else None
        if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value))
        else value
        for value in row
    ]
