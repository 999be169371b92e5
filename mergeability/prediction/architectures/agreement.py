"""Measure the agreement between methods and between architectures; the agreement between seeds is the noise floor."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mergeability.prediction.architectures.analyses import architectures_of, seeds_of, tasks_of
from mergeability.prediction.architectures.cells import PREDICTORS, Cell, Cells
from mergeability.prediction.architectures.resampling import Estimate, estimate

METHODS, ARCHITECTURES, SEEDS = "methods", "architectures", "seeds"
ACROSS_METHODS, ACROSS_ARCHITECTURES = "methods, another seed", "architectures, another seed"
KINDS = {
    METHODS: "two methods, one architecture, the same models",
    ARCHITECTURES: "two architectures, one method, the same seed",
    SEEDS: "two seeds, one architecture, one method: the floor",
    ACROSS_METHODS: "two methods and two seeds, one architecture: comparable with the floor",
    ACROSS_ARCHITECTURES: "two architectures and two seeds, one method: comparable with the floor",
}
"""Which two cells are compared, in words."""

ALL = "all"
COLUMNS = [
    "kind", "group", "predictor",
    "top5_overlap", "top5_overlap_low", "top5_overlap_high",
    "sign_agreement", "sign_agreement_low", "sign_agreement_high",
    "rho", "rho_low", "rho_high", "n",
]  # fmt: skip


def agreement_table(cells: Cells) -> pd.DataFrame:
    """Compare coefficients and outcomes between methods, between architectures and between seeds.

    Two methods of the same models share the noise of these models, two seeds do not. Agreement of methods or of
    architectures is therefore also computed between different seeds, where it can be compared with the floor.

    Args:
        cells: the methods of every architecture and seed.

    Returns:
        One row per kind (`KINDS`), group and predictor: `top5_overlap` and `sign_agreement`, means over pairs of cells
        of the shares of `fingerprints`; `rho`, the mean Spearman correlation of outcomes over pairs of models, NaN if
        the tasks differ; each with its interval over tasks and seeds; `n`, the number of pairs of cells. The group is
        an architecture, two of them, or `all`. A kind to which no two cells belong has no row.
    """
    rows = []
    for kind in KINDS:
        for group, chosen in _groups(cells, kind).items():
            ranks = _estimate(cells, chosen, "rho")
            for predictor in PREDICTORS:
                row: dict[str, object] = {"kind": kind, "group": group, "predictor": predictor}
                for measure in ("top5_overlap", "sign_agreement"):
                    row |= _estimate(cells, chosen, measure, predictor).columns(measure)
                rows.append(row | ranks.columns("rho") | {"n": int(chosen.sum()) // 2})
    return pd.DataFrame(rows, columns=COLUMNS)


def mean_agreement(
    cells: Cells, kind: str, measure: str, predictor: str = "", same_tasks: bool | None = None
) -> Estimate:
    """Return the mean agreement in one kind of comparison, with an interval from the jackknife over tasks and seeds.

    Args:
        cells: the methods of every architecture and seed.
        kind: of `KINDS`.
        measure: of `Cells.agreement`.
        predictor: whose coefficients are compared.
        same_tasks: True: only architectures with the same tasks; False: only those with different tasks; None: all.
    """
    chosen = _chosen(cells, kind, same_tasks)
    return _estimate(cells, chosen, measure, predictor) if chosen.any() else Estimate(float("nan"))


def below_floor(
    cells: Cells, kind: str, measure: str, predictor: str = "", same_tasks: bool | None = None
) -> Estimate:
    """Return the mean agreement between two seeds minus the mean agreement in one kind of comparison.

    Args:
        cells: the methods of every architecture and seed.
        kind: of `KINDS`.
        measure: of `Cells.agreement`.
        predictor: whose coefficients are compared.
        same_tasks: True: only architectures with the same tasks; False: only those with different tasks; None: all.
            The seeds are those of the architectures that are compared.
    """
    other = _chosen(cells, kind, same_tasks)
    used = {architecture for architecture, _, _ in _used(cells, other)}
    inside = np.array([architecture in used for architecture, _, _ in cells.names], dtype=bool)
    floor = _chosen(cells, SEEDS, None) & inside[:, None] & inside[None, :]
    if not floor.any() or not other.any():
        return Estimate(float("nan"))
    upper, lower = (_mean(cells, one, measure, predictor) for one in (floor, other))
    return estimate(
        lambda task, seed: upper(task, seed) - lower(task, seed),
        _tasks(cells, floor),
        seeds_of(list(cells.tables.values())),
        (-2.0, 2.0) if measure == "rho" else (-1.0, 1.0),
    )


def _chosen(cells: Cells, kind: str, same_tasks: bool | None) -> Bool[np.ndarray, "cells cells"]:
    names = cells.names
    whole = np.array([[_is(kind, a, b) for b in names] for a in names], dtype=bool).reshape(len(names), -1)
    if same_tasks is None:
        return whole
    tasks = [cells.tables[architecture, seed].tasks for architecture, seed, _ in names]
    return whole & np.array([[(a == b) == same_tasks for b in tasks] for a in tasks], dtype=bool)


def _estimate(
    cells: Cells, chosen: Bool[np.ndarray, "cells cells"], measure: str, predictor: str = ""
) -> Estimate:
    seeds = seeds_of(list(cells.tables.values()))
    bounds = (-1.0, 1.0) if measure == "rho" else (0.0, 1.0)
    return estimate(_mean(cells, chosen, measure, predictor), _tasks(cells, chosen), seeds, bounds)


def _mean(
    cells: Cells, chosen: Bool[np.ndarray, "cells cells"], measure: str, predictor: str
) -> Callable[[str | None, int | None], float]:
    """Average an agreement over chosen pairs of cells, without the cells of one seed."""
    of_seed = np.array([seed for _, seed, _ in cells.names])

    def statistic(task: str | None, seed: int | None) -> float:
        kept = chosen if seed is None else chosen & (of_seed != seed)[:, None] & (of_seed != seed)[None, :]
        values: Float[np.ndarray, " n"] = cells.agreement(measure, predictor, task)[kept]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    return statistic


def _groups(cells: Cells, kind: str) -> dict[str, Bool[np.ndarray, "cells cells"]]:
    """Return symmetric masks that select pairs of cells, one mask per group of architectures and one for `all`."""
    names, whole = cells.names, _chosen(cells, kind, None)
    if not whole.any():
        return {}
    found = {}
    labels = np.array([[_group(a, b) for b in names] for a in names], dtype=object)
    order = architectures_of(list(cells.tables.values()))
    for place, first in enumerate(order):
        for second in order[place:]:
            chosen = whole & (labels == _group((first, 0, ""), (second, 0, "")))
            if chosen.any():
                found[first if first == second else f"{first} and {second}"] = chosen
    return {ALL: whole, **found} if len(found) > 1 else {ALL: whole}


def _is(kind: str, first: Cell, second: Cell) -> bool:
    same = tuple(a == b for a, b in zip(first, second, strict=True))
    return {
        METHODS: (True, True, False),
        ARCHITECTURES: (False, True, True),
        SEEDS: (True, False, True),
        ACROSS_METHODS: (True, False, False),
        ACROSS_ARCHITECTURES: (False, False, True),
    }[kind] == same


def _group(first: Cell, second: Cell) -> str:
    return "\n".join(sorted({first[0], second[0]}))


def _tasks(cells: Cells, chosen: Bool[np.ndarray, "cells cells"]) -> list[str]:
    return tasks_of([cells.tables[architecture, seed] for architecture, seed, _ in _used(cells, chosen)])


def _used(cells: Cells, chosen: Bool[np.ndarray, "cells cells"]) -> Sequence[Cell]:
    """List the cells that any chosen pair of cells contains."""
    return [cells.names[place] for place in np.flatnonzero(chosen.sum(axis=1))]
