"""The claims of arXiv 2601.22285 and its open questions, one row each: confirmed, refuted or undecided."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.agreement import (
    ACROSS_ARCHITECTURES,
    ACROSS_METHODS,
    ALL,
    METHODS,
    SEEDS,
    below_floor,
    mean_agreement,
)
from mergeability.prediction.architectures.analyses import architectures_of, methods_of
from mergeability.prediction.architectures.findings import Findings
from mergeability.prediction.architectures.prerequisites import family_correlation
from mergeability.prediction.architectures.resampling import Estimate
from mergeability.prediction.architectures.transfer import OTHER_ARCHITECTURE, WITHIN
from mergeability.prediction.architectures.variance import Memory, repeated_share

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"

MARGIN = 0.1
"""The smallest share of variance, or difference of agreements, that matters."""

MARGIN_R = 0.2
"""The smallest correlation of predictions that matters."""

PUBLISHED, QUESTION = "claim", "open question"
NOT_MEASURED = "not measured in these runs"
COLUMNS = ["claim", "source", "verdict", "figure", "value", "low", "high", "rule", "command"]
_TWO_SEEDS = "one seed: needs another to compare with"


@dataclass(frozen=True)
class Decided:
    """What was found about a claim.

    Attributes:
        verdict: confirmed, refuted or undecided.
        figure: the figures in words.
        estimate: the figure that decides, with its interval.
    """

    verdict: str
    figure: str
    estimate: Estimate = field(default_factory=lambda: Estimate(float("nan")))


@dataclass(frozen=True)
class Claim:
    """A claim, the rule for its verdict, and the function that applies the rule.

    Attributes:
        text: the claim.
        source: whether the paper claims it or asks.
        rule: of the verdict, fixed before any figure was seen.
        decide: returns the verdict, with the figure behind it, from the findings.
        command: measures what the claim needs, if these runs may lack it.
    """

    text: str
    source: str
    rule: str
    decide: Callable[[Findings], Decided]
    command: str = ""


def claim_table(found: Findings) -> pd.DataFrame:
    """Decide for each claim whether it is confirmed, refuted or undecided.

    The rules were written before any figure was seen. For a quantity q with a 95 % interval over tasks and seeds, and
    the smallest value m that matters, "q is at least m" is *confirmed* if the interval lies above 0 and q ≥ m,
    *refuted* if the interval lies below m, and otherwise *undecided*. m is 0.1 for shares of variance and differences
    of agreements, and 0.2 for correlations. Without an interval a claim is undecided. "The two are alike" has the
    opposite verdict of "the difference is at least 0.1". A prerequisite is confirmed if one metric of its family has an
    r with the expected sign and an interval that excludes 0 under every method of every architecture, and refuted if
    each metric of the family has, under some method of some architecture, an interval on the opposite side of 0.

    Args:
        found: the tables.

    Returns:
        One row per claim: `claim`, its `source`, `verdict`, `figure` in words, `value` with the ends `low` and `high`
        of its interval, the `rule`, and the `command` that measures what these runs lack.
    """
    rows = []
    for claim in CLAIMS:
        decided = claim.decide(found)
        rows.append(
            {
                "claim": claim.text,
                "source": claim.source,
                "verdict": decided.verdict,
                "figure": decided.figure,
                "value": decided.estimate.value,
                "low": decided.estimate.low,
                "high": decided.estimate.high,
                "rule": claim.rule,
                "command": claim.command if NOT_MEASURED in decided.figure else "",
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def verdict(found: Estimate, least: float) -> str:
    """Decide whether the quantity that `found` estimates is at least `least`, by the rule of `claim_table`.

    Examples:
        >>> from mergeability.prediction.architectures.claims import verdict
        >>> from mergeability.prediction.architectures.resampling import Estimate
        >>> verdict(Estimate(0.3, 0.1, 0.5), 0.1), verdict(Estimate(0.0, -0.05, 0.05), 0.1)
        ('confirmed', 'refuted')
        >>> verdict(Estimate(0.2, -1.0, 1.0), 0.1)
        'undecided'
    """
    if not found.known:
        return UNDECIDED
    if found.low > 0 and found.value >= least:
        return CONFIRMED
    return REFUTED if found.high < least else UNDECIDED


def opposite(one: str) -> str:
    """Turn the verdict on a claim into the verdict on the opposite claim."""
    return {CONFIRMED: REFUTED, REFUTED: CONFIRMED}.get(one, one)


def shown(found: Estimate) -> str:
    """Format a value with its interval: `0.21 (0.10 to 0.32)`."""
    if np.isnan(found.value):
        return "unknown"
    ends = f" ({found.low:.2f} to {found.high:.2f})" if found.known else ""
    return f"{found.value:.2f}{ends}"


def _method(found: Findings) -> Decided:
    cells = found.cells
    if len(methods_of(found.analyses)) < 2:
        return Decided(UNDECIDED, "one method: needs another to compare with")
    same_models = mean_agreement(cells, METHODS, "rho")
    gap = below_floor(cells, ACROSS_METHODS, "rho")
    if np.isnan(gap.value):
        return Decided(UNDECIDED, f"ρ between methods {shown(same_models)}; {_TWO_SEEDS}")
    floor, across = mean_agreement(cells, SEEDS, "rho"), mean_agreement(cells, ACROSS_METHODS, "rho")
    figure = (
        f"ρ of outcomes between seeds {shown(floor)}, between both {shown(across)}, lower by {shown(gap)}"
    )
    return Decided(verdict(gap, MARGIN), figure, gap)


def _partner(found: Findings) -> Decided:
    methods = methods_of(found.analyses)
    own = found.variance["task_effects"]
    shares: Memory = {}
    partner = repeated_share(found.analyses, methods, "partner", shares)
    if np.isnan(partner.value):
        return Decided(UNDECIDED, f"task effects explain {own.mean():.2f} of the variance; {_TWO_SEEDS}")
    task = repeated_share(found.analyses, methods, "task", shares)
    by_name = found.repeated[found.repeated["method"] == "all"].set_index("architecture")["partner"]
    each = ", ".join(f"{name} {value:.2f}" for name, value in by_name.items())
    figure = (
        f"of the variance, {shown(partner)} is of the combination of two tasks and repeats over seeds ({each}), "
        f"{shown(task)} of the single tasks"
    )
    return Decided(verdict(partner, MARGIN), figure, partner)


def _drivers(found: Findings) -> Decided:
    cells = found.cells
    if len(methods_of(found.analyses)) < 2:
        return Decided(UNDECIDED, "one method: needs another to compare with")
    signs = mean_agreement(cells, METHODS, "sign_agreement", "ridge")
    tops = mean_agreement(cells, METHODS, "top5_overlap", "ridge")
    figure = f"between methods: sign agreement {shown(signs)}, top-5 overlap {shown(tops)}"
    gap = below_floor(cells, ACROSS_METHODS, "sign_agreement", "ridge")
    if np.isnan(gap.value):
        return Decided(UNDECIDED, f"{figure}; {_TWO_SEEDS}")
    floor = mean_agreement(cells, SEEDS, "sign_agreement", "ridge")
    figure += (
        f"; sign agreement between seeds {shown(floor)}, between seeds and methods lower by {shown(gap)}"
    )
    return Decided(verdict(gap, MARGIN), figure, gap)


def _prerequisite(family: str) -> Callable[[Findings], Decided]:
    def decide(found: Findings) -> Decided:
        table = found.prerequisites[found.prerequisites["family"] == family]
        if table.empty:
            return Decided(UNDECIDED, f"{NOT_MEASURED}: none of its metrics is in every table")
        counts = table.groupby("metric", sort=False)[["methods", "as_expected", "clear", "against"]].sum()
        mean = family_correlation(found.cells, family)
        best = counts.sort_values(["clear", "as_expected"], ascending=False, kind="stable").iloc[0]
        places = table[table["foundational"]]
        anywhere = ", ".join(f"{row['metric']} in {row['architecture']}" for _, row in places.iterrows())
        figure = (
            f"mean r in the expected direction {shown(mean)}; the best metric, {best.name}, has the expected sign in "
            f"{best['as_expected']} of {best['methods']} methods and architectures, clearly in {best['clear']}; "
            f"foundational: {anywhere or 'none anywhere'}"
        )
        if (counts["clear"] == counts["methods"]).any():
            return Decided(CONFIRMED, figure, mean)
        return Decided(REFUTED if (counts["against"] > 0).all() else UNDECIDED, figure, mean)

    return decide


def _nearer_gradients(found: Findings) -> Decided:
    table = found.penalties[found.penalties["penalty"] != "mergeability"]
    nearer = table[table["gradient"] < 0]
    if nearer.empty:
        said = "no training brought gradients together" if len(table) else NOT_MEASURED
        return Decided(UNDECIDED, said if said == NOT_MEASURED else f"{said}: {NOT_MEASURED}")
    return _penalties(nearer)


def _several_signals(found: Findings) -> Decided:
    table = found.penalties[found.penalties["penalty"] == "mergeability"]
    return Decided(UNDECIDED, NOT_MEASURED) if table.empty else _penalties(table)


def _penalties(table: pd.DataFrame) -> Decided:
    ordered = table.sort_values("acc", ascending=False, kind="stable")
    each = [
        f"{row['architecture']}, {row['penalty']} at {row['strength']:g}: "
        f"{shown(Estimate(row['acc'], row['acc_low'], row['acc_high']))}"
        for _, row in ordered.iterrows()
    ]
    first = ordered.iloc[0]
    best = Estimate(first["acc"], first["acc_low"], first["acc_high"])
    known = ordered.dropna(subset=["acc_low", "acc_high"])
    # A gain in normalised accuracy alone may come from weaker models.
    better = known[(known["acc_low"] > 0) & (known["norm_acc_low"] > 0)]
    worse = len(known) == len(ordered) and bool((known["acc_high"] < 0).all())
    figure = "change of merged accuracy: " + "; ".join(each)
    return Decided(CONFIRMED if len(better) else REFUTED if worse else UNDECIDED, figure, best)


def _carries_over(same_tasks: bool) -> Callable[[Findings], Decided]:
    def decide(found: Findings) -> Decided:
        what = ("sign_agreement", "ridge", same_tasks)
        between = mean_agreement(found.cells, ACROSS_ARCHITECTURES, *what)
        gap = below_floor(found.cells, ACROSS_ARCHITECTURES, *what)
        if np.isnan(gap.value):
            others = len(architectures_of(found.analyses)) > 1
            lacking = _TWO_SEEDS if others and np.isnan(between.value) else "no such two architectures"
            return Decided(UNDECIDED, f"{NOT_MEASURED}: {lacking}")
        figure = f"sign agreement {shown(between)}, between seeds of one architecture higher by {shown(gap)}"
        return Decided(opposite(verdict(gap, MARGIN)), figure, gap)

    return decide


def _predicts(predictor: str, kind: str, same_tasks: bool | None = None) -> Callable[[Findings], Decided]:
    def decide(found: Findings) -> Decided:
        r = found.transfers.mean(kind, predictor, same_tasks)
        if np.isnan(r.value):
            return Decided(UNDECIDED, NOT_MEASURED)
        return Decided(verdict(r, MARGIN_R), f"r beyond the mean {shown(r)}", r)

    return decide


def _sets(found: Findings) -> Decided:
    table = found.sets[(found.sets["method"] == ALL) & found.sets["rho"].notna()]
    if table.empty:
        return Decided(UNDECIDED, NOT_MEASURED)
    rows = [
        (
            f"{row['architecture']}, {row['arity']} models",
            Estimate(row["rho"], row["rho_low"], row["rho_high"]),
        )
        for _, row in table.iterrows()
    ]
    lowest = min((one for _, one in rows), key=lambda one: one.value)
    each = ", ".join(f"{name} {shown(one)}" for name, one in rows)
    return Decided(verdict(lowest, MARGIN_R), f"ρ with the mean of the pairs, over methods: {each}", lowest)


_WHOLE = "python analyze.py experiment=architectures"
_GAP = "the gap is at least 0.1: confirmed if its interval is above 0 and it is 0.1 or more, refuted if below 0.1"
_R = "r is at least 0.2: confirmed if its interval is above 0 and it is 0.2 or more, refuted if below 0.2"
_ALIKE = "the gap is below 0.1: confirmed if its interval is below 0.1, refuted if above 0 and the gap is 0.1 or more"
_PREREQUISITE = (
    "confirmed if one metric has the expected sign, with an interval that excludes 0, under every method of every "
    "architecture; refuted if each metric has an interval on the opposite side under some method"
)
_PENALTY = (
    "confirmed if a setting raises accuracy and normalised accuracy of merges with intervals above 0; refuted if the "
    "interval of accuracy is below 0 for every setting"
)
CLAIMS = (
    Claim("Mergeability depends on the merge method.", PUBLISHED, _GAP, _method, _WHOLE),
    Claim(
        "Mergeability depends on the partner, not on the model alone.",
        PUBLISHED,
        "the share of the combination is at least 0.1: confirmed if its interval is above 0 and it is 0.1 or more, "
        "refuted if below 0.1",
        _partner,
        _WHOLE,
    ),
    Claim("Each method has success drivers of its own.", PUBLISHED, _GAP, _drivers, _WHOLE),
    Claim(
        "Gradient alignment is a prerequisite under every method.",
        PUBLISHED,
        _PREREQUISITE,
        _prerequisite("gradient alignment"),
        f"{_WHOLE} metric=[paper,functional]",
    ),
    Claim(
        "Subspace overlap is a prerequisite under every method.",
        PUBLISHED,
        _PREREQUISITE,
        _prerequisite("subspace overlap"),
        f"{_WHOLE} metric=[paper,functional]",
    ),
    Claim(
        "The published metrics predict merges of two new tasks.",
        PUBLISHED,
        _R,
        _predicts("ridge", WITHIN),
        _WHOLE,
    ),
    Claim(
        "Fine-tuning that brings gradients together makes better merges.",
        PUBLISHED,
        f"of settings that shorten the distance of gradients: {_PENALTY}",
        _nearer_gradients,
        f"{_WHOLE} reg=grad_magnitude reg.lambda=0,0.01 train.missing=true",
    ),
    Claim(
        "An objective that aims at several signals makes better merges.",
        QUESTION,
        _PENALTY,
        _several_signals,
        f"{_WHOLE} reg=mergeability reg.lambda=0,0.01 train.missing=true",
    ),
    Claim(
        "Success drivers are the same in other architectures, on the same tasks.",
        QUESTION,
        _ALIKE,
        _carries_over(True),
        _WHOLE,
    ),
    Claim(
        "Success drivers are the same for other tasks and another modality.",
        QUESTION,
        _ALIKE,
        _carries_over(False),
        _WHOLE,
    ),
    *(
        Claim(
            f"{what}, fitted on one architecture, predict merges of another {where}.",
            QUESTION,
            _R,
            _predicts(predictor, OTHER_ARCHITECTURE, same),
            _WHOLE,
        )
        for predictor, what in (("ridge", "The published metrics"), ("functional", "Functional metrics"))
        for same, where in ((True, "on the same suite"), (False, "on another suite"))
    ),
    Claim(
        "Pairs predict merges of more than two models.",
        QUESTION,
        f"for every architecture and number of models: {_R}",
        _sets,
        f"{_WHOLE} 'arity=[2,3,5]' sets=100",
    ),
)
"""In the order of the table."""
