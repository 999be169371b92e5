"""Do the opponents, the golden values and ours say the same? Checked before anything is timed."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmarks import merges
from benchmarks.merge_opponents import MERGES, flattened
from benchmarks.models import Suite
from benchmarks.opponents import OPPONENTS

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
RELATIVE = 1e-4
# Where a value is small, its last digits are rounding of larger numbers.
ABSOLUTE, SMALL = 1e-5, 0.1
# Merges by their authors' code are known by a norm and one projection a tensor.
_GOLDEN_RELATIVE = 1e-3
_GOLDEN_NAMES = {"ta": "task_arithmetic", "tsv": "tsv_m"}
# How many standard deviations what is random may be off.
_DEVIATIONS = 5


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
    from mergeability.task_vectors.vectors import TaskVectors

    table = measure(Profiles(TaskVectors.load(suite.models, base=suite.base)))
    found = []
    for (a, b), row in zip(table.index.tolist(), table.to_dict("records"), strict=True):
        ours = {str(name): value for name, value in row.items()}
        theirs = OPPONENTS[opponent](suite.base, suite.models[a], suite.models[b])
        found += disagreements(ours, theirs, f"ours against {opponent} on {a}, {b}")
    return found


def golden_merge_disagreements(opponent: str) -> list[str]:
    """Compare a plain merge of two and of four models with golden values, where there are some."""
    expected = json.loads((GOLDEN / "expected.json").read_text())["merges"]
    ways = {_GOLDEN_NAMES.get(opponent, opponent): MERGES[opponent]}
    if opponent == "ties":
        ways["ties_sum"] = partial(MERGES["ties"], agg="sum")
    found = []
    for models, methods in expected.items():
        paths = [GOLDEN / f"{task}.safetensors" for task in models.split("+")]
        for name in ways.keys() & methods.keys():
            merged = ways[name](GOLDEN / "base.safetensors", paths)
            found += _golden_differences(merged, methods[name], f"plain {name} on golden {models}")
    return found


def _golden_differences(
    merged: Mapping[str, Tensor], expected: Mapping[str, tuple[float, float]], who: str
) -> list[str]:
    found = [f"{who}: only one side has {name}" for name in sorted(merged.keys() ^ expected.keys())]
    for name in sorted(merged.keys() & expected.keys()):
        norm, probe = expected[name]
        values = merged[name].double().numpy()
        own = float((values * np.random.default_rng(7).normal(size=values.shape)).sum())
        if max(abs(np.linalg.norm(values) - norm), abs(own - probe)) > _GOLDEN_RELATIVE * norm + 1e-12:
            found.append(f"{who}: {name} differs")
    return found


def our_merge_disagreements(suite: Suite, method: str) -> list[str]:
    """Compare our merge of all models of a suite, or of as many as the method takes, with the plain one."""
    from mergeability.task_vectors.vectors import TaskVectors

    chosen = merges.made(method)
    models = suite.first(chosen.models or len(suite.models))
    paths, who = list(models.values()), f"{method} of {len(models)} models"
    ours = chosen(TaskVectors.load(models, base=suite.base))
    theirs = MERGES[method](suite.base, paths)
    if method != "dare":
        return merge_differences(ours, theirs, f"ours against plain {who}")
    base = safetensors.torch.load_file(suite.base)
    deltas = []
    for path in paths:
        tuned = safetensors.torch.load_file(path)
        deltas.append(flattened({name: tuned[name] - tensor for name, tensor in base.items()}))
    sides = {"our": ours, "plain": theirs}
    return [
        sentence
        for side, merged in sides.items()
        for sentence in thinning_differences(flattened(merged), deltas, chosen.p, f"{side} {who}")
    ]


def merge_differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], who: str) -> list[str]:
    """Name the tensors in which two merges differ: ‖ours − theirs‖ above 1e-4 of ‖theirs‖."""
    found = [f"{who}: only one side has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        length, apart = float(theirs[name].norm()), float((ours[name] - theirs[name]).norm())
        # Not the other way round: NaN is a difference.
        if not apart <= RELATIVE * length:
            found.append(f"{who}: {name} is {apart:.2g} apart, its length is {length:.2g}")
    return found


def thinning_differences(merged: Tensor, deltas: Sequence[Tensor], p: float, who: str) -> list[str]:
    """Compare an average of randomly thinned deltas with what it is on average.

    That is: the share of entries that some model kept, 1 − p^T; and its projection on the plain mean, which it
    is without bias. Each may be off by five standard deviations.
    """
    stack = torch.stack(list(deltas)).double()
    mean = stack.mean(0)
    kept, square = 1 - p ** len(stack), float(mean @ mean)
    noise = float((mean.square() * stack.square().sum(0)).sum() * p / (1 - p)) ** 0.5 / len(stack)
    checks = {
        "share of entries kept": (
            float((merged != 0).double().mean()),
            kept,
            (kept * (1 - kept) / len(mean)) ** 0.5,
        ),
        "projection on the mean": (float(merged.double() @ mean) / square, 1.0, noise / square),
    }
    return [
        f"{who}: the {what} is {value:.4g}, expected {expected:.4g} ± {deviation:.2g}"
        for what, (value, expected, deviation) in checks.items()
        if not abs(value - expected) <= _DEVIATIONS * deviation
    ]
