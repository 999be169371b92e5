"""Compare the architectures of a sweep, and write the tables and the page into the folder of the sweep."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.files import write_text
from mergeability.metrics.catalogue import CATEGORIES
from mergeability.prediction.architectures.analyses import TARGET, Analysis
from mergeability.prediction.architectures.cells import Cells, coefficient_table
from mergeability.prediction.architectures.claims import claim_table
from mergeability.prediction.architectures.findings import Computed, Findings, findings
from mergeability.prediction.architectures.outcomes import outcome_table
from mergeability.prediction.architectures.signs import stable_by_chance
from mergeability.prediction.architectures.transfer import transferred
from mergeability.prediction.architectures.variance import variance_shares
from mergeability.prediction.csv_files import csv_text
from mergeability.prediction.study_cache import from_columns, libraries, table_hash, to_columns
from mergeability.reporting.architectures.jobs import Jobs, read_jobs
from mergeability.reporting.architectures.page import architectures_page
from mergeability.store import Store

# Raise it when a stored table changes meaning.
_VERSION = 1
FAMILIES = {metric: category for category, metrics in CATEGORIES.items() for metric in metrics}


def write_summary(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> Path:
    """Compare the architectures of a sweep's finished jobs, write the tables and a page, and return the page's path."""
    jobs = read_jobs(Path(folder), run_folders, beside)
    return save(compare(jobs), jobs, Path(folder))


def compare(jobs: Jobs) -> Findings:
    """Compute all tables; slow results that were computed before are read from the store of the jobs.

    Args:
        jobs: the analyses.

    Returns:
        The tables.
    """
    store = Store(jobs.store)

    def stored(kind: str, key: dict[str, Any], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        key = {"kind": kind, **key, "version": _VERSION, "libraries": libraries()}
        return from_columns(
            store.record("architectures", key, lambda: {"table": to_columns(compute())})["table"]
        )

    def coefficients(one: Analysis, metrics: Sequence[str]) -> pd.DataFrame:
        key = {"table": _hash(one, metrics), "metrics": list(metrics)}
        return stored("coefficients", key, lambda: coefficient_table(one, metrics))

    def variance(one: Analysis) -> pd.DataFrame:
        found = stored("variance", {"table": _hash(one, one.metrics)}, lambda: variance_shares(one))
        return found.assign(architecture=one.architecture, seed=one.seed)

    def predictions(fitted: Analysis, new: Analysis) -> pd.DataFrame:
        key = {
            name: [table_hash(one.pairs), list(one.metrics)]
            for name, one in (("fitted", fitted), ("new", new))
        }
        return stored("transfer", key, lambda: transferred(fitted, new))

    def stable(cells: Cells) -> tuple[int, float, float]:
        key = {
            "tables": [_hash(one, cells.metrics) for one in cells.tables.values()],
            "cells": [list(map(str, name)) for name in cells.names],
        }
        columns = ["observed", "by_chance", "p"]
        found = stored("stable", key, lambda: pd.DataFrame([stable_by_chance(cells)], columns=columns))
        return int(found["observed"][0]), float(found["by_chance"][0]), float(found["p"][0])

    computed = Computed(coefficients, variance, predictions, stable)
    return findings(jobs.plain, jobs.metrics, computed, FAMILIES, jobs.penalised, jobs.sets)


def _hash(analysis: Analysis, metrics: Sequence[str]) -> str:
    """Hash what the tables of one analysis depend on: its metrics and outcomes."""
    outcomes = [f"{TARGET}_{method}" for method in analysis.methods]
    return table_hash(analysis.pairs[["task_a", "task_b", *metrics, *outcomes]])


def save(found: Findings, jobs: Jobs, folder: Path) -> Path:
    """Write `architectures.html` and one `architectures_<table>.csv` per table; return the page's path."""
    claims = claim_table(found)
    tables = {
        "claims": claims,
        "outcomes": outcome_table(found.analyses),
        "fingerprints": found.agreement,
        "signs": found.signs,
        "metrics": found.of_methods,
        "prerequisites": found.prerequisites,
        "variance": found.variance,
        "repeated": found.repeated,
        "transfer": found.transfers.table(),
        "penalties": found.penalties,
        "sets": found.sets,
    }
    for name, table in tables.items():
        write_text(folder / f"architectures_{name}.csv", csv_text(table))
    path = folder / "architectures.html"
    write_text(path, architectures_page(found, tables, jobs.facts, jobs.missing))
    return path
