"""Compute all tables of a comparison of architectures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mergeability.prediction.architectures.agreement import agreement_table
from mergeability.prediction.architectures.analyses import Analysis
from mergeability.prediction.architectures.cells import Cells
from mergeability.prediction.architectures.prerequisites import prerequisite_table
from mergeability.prediction.architectures.signs import method_signs, sign_table
from mergeability.prediction.architectures.trainings import (
    Penalised,
    penalty_table,
    set_table,
)
from mergeability.prediction.architectures.transfer import Transfers
from mergeability.prediction.architectures.variance import repeated_shares


@dataclass(frozen=True)
class Findings:
    """Hold the tables of a comparison of architectures, from which the verdicts on the claims follow.

    Attributes:
        analyses: the pair tables of plain fine-tuning.
        cells: the methods of every analysis.
        transfers: predictions within and between analyses.
        variance: `variance_shares` of every analysis.
        repeated: `repeated_shares`.
        agreement: `agreement_table`.
        signs: `sign_table`.
        of_methods: `method_signs`.
        prerequisites: `prerequisite_table`.
        penalties: `penalty_table`; empty if no training has a penalty.
        sets: `set_table`; empty if no merge has more than two models.
        stable: number of metrics with one sign in all analyses, its mean for permuted task names, and p.
    """

    analyses: Sequence[Analysis]
    cells: Cells
    transfers: Transfers
    variance: pd.DataFrame
    repeated: pd.DataFrame
    agreement: pd.DataFrame
    signs: pd.DataFrame
    of_methods: pd.DataFrame
    prerequisites: pd.DataFrame
    penalties: pd.DataFrame
    sets: pd.DataFrame
    stable: tuple[int, float, float] = (0, float("nan"), float("nan"))
    families: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """Hold the slow computations as functions of analyses, so that their results can come from a store.

    Attributes:
        coefficients: returns `coefficient_table` of an analysis for some metrics.
        variance: returns `variance_shares` of an analysis.
        transferred: returns `transferred` of two analyses.
        stable: returns `stable_by_chance` of all cells.
    """

    coefficients: Callable[[Analysis, Sequence[str]], pd.DataFrame]
    variance: Callable[[Analysis], pd.DataFrame]
    transferred: Callable[[Analysis, Analysis], pd.DataFrame]
    stable: Callable[[Cells], tuple[int, float, float]]


def findings(
    analyses: Sequence[Analysis],
    metrics: Sequence[str],
    computed: Computed,
    families: Mapping[str, str],
    penalised: Sequence[Penalised] = (),
    sets: Mapping[tuple[str, int], pd.DataFrame] | None = None,
) -> Findings:
    """Compute all tables of a comparison.

    Args:
        analyses: the pair tables of plain fine-tuning.
        metrics: the metrics that all of them have.
        computed: the functions for slow computations.
        families: metric → its category.
        penalised: pair tables of trainings with a penalty.
        sets: (architecture, seed) → merges of more than two models.

    Returns:
        The tables.
    """
    cells = Cells.of(
        analyses,
        metrics,
        {(one.architecture, one.seed): computed.coefficients(one, metrics) for one in analyses},
    )
    of_methods = method_signs(cells, families)
    return Findings(
        analyses=analyses,
        cells=cells,
        transfers=Transfers.of(analyses, computed.transferred),
        variance=pd.concat([computed.variance(one) for one in analyses], ignore_index=True),
        repeated=repeated_shares(analyses),
        agreement=agreement_table(cells),
        signs=sign_table(cells, families),
        of_methods=of_methods,
        prerequisites=prerequisite_table(of_methods),
        penalties=penalty_table(analyses, penalised),
        sets=set_table(analyses, sets or {}),
        stable=computed.stable(cells),
        families=dict(families),
    )
