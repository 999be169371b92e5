"""Do the opponents, the golden values and ours say the same? Checked before anything is timed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from benchmarks.models import Suite
from benchmarks.opponents import OPPONENTS

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
RELATIVE = 1e-4
# Where a value is small, its last digits are rounding of larger numbers.
ABSOLUTE, SMALL = 1e-5, 0.1


def relative_difference(value: float, expected: float) -> float:
    """Compute |value − expected| / |expected|; 0 for two equal numbers, two NaN among them."""
    if value == expected or (math.isnan(value) and math.isnan(expected)):
        return 0.0
    return abs(value - expected) / abs(expected) if expected else math.inf


def agrees(value: float, expected: float) -> bool:
    """Say whether two values are one: 1e-4 relative, or 1e-5 absolute where the expected one is below 0.1."""
    small = abs(expected) < SMALL and abs(value - expected) <= ABSOLUTE
    return small or relative_difference(value, expected) <= RELATIVE


def disagreements(values: Mapping[str, float], expected: Mapping[str, float], who: str) -> list[str]:
    """Name the metrics that differ, one sentence each; a metric that only one side has differs as well."""
    sentences = [f"{who}: only one side has {name}" for name in sorted(values.keys() ^ expected.keys())]
    return sentences + [
        f"{who}: {name} is {values[name]!r}, expected {expected[name]!r}"
        for name in sorted(values.keys() & expected.keys())
        if not agrees(values[name], expected[name])
    ]


def golden_disagreements(opponent: str) -> list[str]:
    """Compare an opponent with the golden values of six pairs, computed with the authors' code."""
    expected = json.loads((GOLDEN / "expected.json").read_text())["pairs"]
    found = []
    for pair, values in expected.items():
        a, b = (GOLDEN / f"{task}.safetensors" for task in pair.split("__"))
        own = OPPONENTS[opponent](GOLDEN / "base.safetensors", a, b)
        found += disagreements(own, values, f"{opponent} on golden {pair}")
    return found


def our_disagreements(suite: Suite, opponent: str) -> list[str]:
    """Compare ours with an opponent on all pairs of a suite of generated models."""
    from mergeability.metrics.measure import measure
    from mergeability.profiles.profiles import Profiles
    from mergeability.task_vectors import TaskVectors

    table = measure(Profiles(TaskVectors.load(suite.models, base=suite.base)))
    found = []
    for (a, b), row in zip(table.index.tolist(), table.to_dict("records"), strict=True):
        ours = {str(name): value for name, value in row.items()}
        theirs = OPPONENTS[opponent](suite.base, suite.models[a], suite.models[b])
        found += disagreements(ours, theirs, f"ours against {opponent} on {a}, {b}")
    return found
