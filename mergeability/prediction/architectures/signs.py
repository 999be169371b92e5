"""Find metrics whose correlation with the outcome has the same sign for all methods, seeds and architectures.

The number of these metrics is compared with the number expected by chance.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mergeability.prediction.architectures.analyses import architectures_of, seeds_of, tasks_of
from mergeability.prediction.architectures.cells import Cells, correlations
from mergeability.prediction.architectures.resampling import Estimate, estimate

ALL = "all"
COLUMNS = [
    "architecture", "metric", "family", "r", "r_low", "r_high", "positive_r", "positive_weight", "sign_r",
    "sign_weight", "n",
]  # fmt: skip


def sign_table(cells: Cells, families: Mapping[str, str]) -> pd.DataFrame:
    """Find the metrics whose correlation, or whose coefficient, has the same sign for all methods and seeds.

    Args:
        cells: the methods of every architecture and seed.
        families: metric → its category.

    Returns:
        One row per architecture (and `all`) and metric: `r`, the mean over methods and seeds of its correlation with
        the outcome, with its interval over tasks and seeds; `positive_r` and `positive_weight`, the shares of methods
        and seeds with a positive correlation and a positive coefficient of ridge; `sign_r` and `sign_weight`, +1 or -1
        if all of them agree, else 0; `n`, their number.
    """
    weights = cells.weights("ridge")
    rows = []
    for architecture in [ALL, *architectures_of(list(cells.tables.values()))]:
        own = _rows_of(cells, architecture)
        if architecture == ALL and own.all() and len({name for name, _, _ in cells.names}) == 1:
            continue
        for place, metric in enumerate(cells.metrics):
            r, w = cells.correlations()[own, place], weights[own, place]
            rows.append(
                {
                    "architecture": architecture,
                    "metric": metric,
                    "family": families.get(metric, ""),
                    **mean_correlation(cells, own, place).columns("r"),
                    "positive_r": float((r > 0).mean()),
                    "positive_weight": float((w > 0).mean()),
                    "sign_r": common_sign(r),
                    "sign_weight": common_sign(w),
                    "n": int(own.sum()),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def method_signs(cells: Cells, families: Mapping[str, str]) -> pd.DataFrame:
    """Return the correlation of each metric with the outcomes of each method, averaged over seeds.

    Returns:
        One row per architecture, method and metric: `architecture`, `method`, `metric`, `family`, `r`, `r_low`,
        `r_high`; the interval is over tasks and seeds.
    """
    rows = []
    for architecture in architectures_of(list(cells.tables.values())):
        methods = dict.fromkeys(method for name, _, method in cells.names if name == architecture)
        for method in methods:
            own = np.array([name == architecture and one == method for name, _, one in cells.names])
            for place, metric in enumerate(cells.metrics):
                labels = {"architecture": architecture, "method": method, "metric": metric}
                found = mean_correlation(cells, own, place).columns("r")
                rows.append({**labels, "family": families.get(metric, ""), **found})
    columns = ["architecture", "method", "metric", "family", "r", "r_low", "r_high"]
    return pd.DataFrame(rows, columns=columns)


def common_sign(values: Float[np.ndarray, " n"]) -> int:
    """Return +1 or -1 if all values have this sign, else 0; undefined values have no sign."""
    return int((values > 0).all()) - int((values < 0).all()) if len(values) else 0


def mean_correlation(cells: Cells, own: Bool[np.ndarray, " cells"], place: int) -> Estimate:
    """Average one metric's correlations over selected cells, and compute a jackknife interval over tasks and seeds."""
    of_seed = np.array([seed for _, seed, _ in cells.names])

    def statistic(task: str | None, seed: int | None) -> float:
        kept = own & (of_seed != seed) if seed is not None else own
        values = cells.correlations(task)[kept, place]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    tables = [cells.tables[name[:2]] for name, used in zip(cells.names, own, strict=True) if used]
    return estimate(statistic, tasks_of(tables), seeds_of(tables))


def stable_by_chance(
    cells: Cells, permutations: int = 199, seed: int = 0, least: int = 1
) -> tuple[int, float, float]:
    """Count the metrics whose correlation has the same sign in all cells, with actual and with permuted task names.

    A permutation renames the tasks of the outcomes and keeps the metrics: of all analyses of the same tasks alike, so
    that seeds, methods and architectures stay as similar to each other as they are.

    Args:
        cells: the methods of every architecture and seed.
        permutations: number of random renamings.
        seed: of the renamings.
        least: the smallest number of architectures for which the question makes sense.

    Returns:
        The count, its mean over permutations, and p, the share of permutations (with the observed one) that reach it.
    """
    if len({name for name, _, _ in cells.names}) < least or not len(cells.metrics):
        return 0, float("nan"), float("nan")
    observed = _stable(cells.correlations())
    generator = np.random.default_rng(seed)
    suites = sorted({table.tasks for table in cells.tables.values()})
    counts = []
    for _ in range(permutations):
        renamed = {tasks: dict(zip(tasks, generator.permutation(tasks), strict=True)) for tasks in suites}
        counts.append(_stable(_permuted(cells, renamed)))
    reached = 1 + sum(count >= observed for count in counts)
    return observed, float(np.mean(counts)), reached / (1 + permutations)


def _permuted(
    cells: Cells, renamed: Mapping[tuple[str, ...], Mapping[str, str]]
) -> Float[np.ndarray, "cells m"]:
    rows: list[np.ndarray] = []
    for (architecture, seed), table in cells.tables.items():
        names = renamed[table.tasks]
        pairs = cells.arrays(architecture, seed)
        ends = pairs.ends.tolist()
        places = {tuple(sorted(pair)): row for row, pair in enumerate(ends)}
        moved = [places.get(tuple(sorted((str(names[a]), str(names[b]))))) for a, b in ends]
        kept = np.array([row is not None for row in moved])
        order = np.array([row for row in moved if row is not None], dtype=int)
        features = pairs.features[kept]
        own = [method for *table, method in cells.names if tuple(table) == (architecture, seed)]
        rows += [correlations(features, pairs.outcomes[method][order]) for method in own]
    return np.array(rows)


def _stable(r: Float[np.ndarray, "cells m"]) -> int:
    return int(((r > 0).all(axis=0) | (r < 0).all(axis=0)).sum())


def _rows_of(cells: Cells, architecture: str) -> Bool[np.ndarray, " cells"]:
    return np.array([architecture in (ALL, name) for name, _, _ in cells.names], dtype=bool)


def stable_metrics_of(table: pd.DataFrame, architectures: Sequence[str], column: str) -> list[str]:
    """List the metrics whose sign in `column` is the same, and not 0, for all of the given architectures."""
    own = table[table["architecture"].isin(list(architectures))]
    signs = own.pivot_table(index="metric", columns="architecture", values=column, sort=False)
    same = (signs == 1).all(axis=1) | (signs == -1).all(axis=1)
    return [str(name) for name in signs.index[same]]
