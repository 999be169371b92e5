"""Two plain ways to compute the 18 metrics of one pair of checkpoints, written without this library.

`reference_like` does the work that the authors' released code does for a pair, `careful` what a good engineer
would do for a pair. Both are oracles as well: `agreement` compares their values with golden ones and with ours.
The definitions are those of the paper; a matrix that either model did not change is skipped.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

Delta = Mapping[str, Tensor]

_VECTORS = 10
_VALUES = 100
_SMALLEST_NORM = 1e-8
_SMALLEST_LAYER_NORM = 1e-10
_SUBSPACE_METRICS = (
    "singular_value_overlap",
    "subspace_overlap",
    "right_subspace_overlap_top_k",
    "right_subspace_overlap_bottom_k",
    "interaction_matrix_overlap_top_k",
    "interaction_matrix_overlap_bottom_k",
)


def reference_like(base: Path, a: Path, b: Path) -> dict[str, float]:
    """Compute the 18 metrics of a pair, each on its own, as the authors' released code does.

    Both models and the base are loaded whole. Every metric of whole task vectors flattens them anew; every
    metric of their rank decomposes the 2×D matrix of both by an SVD (singular values only, which is a little
    less than the released code asks for); each of the six subspace metrics computes its own thin SVDs of both
    models' deltas of every matrix. All in float32: norms and singular values of 86 million elements then lose
    digits (off by 1 to 12 % at ViT-B/16 size), which `careful` does not.
    """
    start, first, second = (safetensors.torch.load_file(path) for path in (base, a, b))
    task_a = {name: first[name] - tensor for name, tensor in start.items()}
    task_b = {name: second[name] - tensor for name, tensor in start.items()}
    return {name: metric(task_a, task_b) for name, metric in _REFERENCE.items()}


def _flat(delta: Delta) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in delta.values()])


def _cosine(a: Delta, b: Delta) -> float:
    return float(torch.nn.functional.cosine_similarity(_flat(a), _flat(b), dim=0))


def _distance(a: Delta, b: Delta) -> float:
    return float((_flat(a) - _flat(b)).norm())


def _dot(a: Delta, b: Delta) -> float:
    return float(torch.dot(_flat(a), _flat(b)))


def _angle(a: Delta, b: Delta) -> float:
    return math.degrees(math.acos(min(max(_cosine(a, b), -1.0), 1.0)))


def _magnitude_ratio(a: Delta, b: Delta) -> float:
    smaller, larger = sorted((float(_flat(a).norm()), float(_flat(b).norm())))
    return smaller / larger if smaller >= _SMALLEST_NORM else 0.0


def _stacked_values(a: Delta, b: Delta) -> Tensor:
    return torch.linalg.svdvals(torch.stack([_flat(a), _flat(b)]))


def _rank_of(values: Tensor) -> float:
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def _effective_rank(a: Delta, b: Delta) -> float:
    return _rank_of(_stacked_values(a, b))


def _effective_rank_score(a: Delta, b: Delta) -> float:
    return min(max(2 - _effective_rank(a, b), 0.0), 1.0)


def _stable_rank(a: Delta, b: Delta) -> float:
    values = _stacked_values(a, b)
    return float(values.sum() ** 2 / values.square().sum())


def _spectral_gap(a: Delta, b: Delta) -> float:
    values = _stacked_values(a, b)
    return float((values[0] - values[1]) / values[0])


def _singular_value_ratio(a: Delta, b: Delta) -> float:
    values = _stacked_values(a, b)
    return float(values[1] / values[0])


def _layerwise_rank(a: Delta, b: Delta) -> float:
    total, weights = 0.0, 0.0
    for name in a:
        x, y = a[name].flatten(), b[name].flatten()
        norms = float(x.norm()), float(y.norm())
        if min(norms) < _SMALLEST_LAYER_NORM:
            continue
        total += sum(norms) * _rank_of(torch.linalg.svdvals(torch.stack([x, y])))
        weights += sum(norms)
    return total / weights if weights else 2.0


def _layerwise_score(a: Delta, b: Delta) -> float:
    return min(max(2 - _layerwise_rank(a, b), 0.0), 1.0)


Factors = tuple[Tensor, Tensor, Tensor]


def _mean_over_matrices(of_matrix: Callable[[Factors, Factors], float]) -> Callable[[Delta, Delta], float]:
    """Make a metric that decomposes both deltas of every matrix and averages a function of the factors."""

    def metric(a: Delta, b: Delta) -> float:
        values = []
        for name in a:
            if a[name].ndim == 2 and a[name].any() and b[name].any():
                factors = (torch.linalg.svd(delta[name], full_matrices=False) for delta in (a, b))
                values.append(of_matrix(*factors))
        return sum(values) / len(values) if values else math.nan

    return metric


def _value_overlap(a: Factors, b: Factors) -> float:
    return float(torch.nn.functional.cosine_similarity(a[1][:_VALUES], b[1][:_VALUES], dim=0))


def _left(a: Factors, b: Factors) -> float:
    k = min(_VECTORS, len(a[1]))
    return float((a[0][:, :k].T @ b[0][:, :k]).norm()) / k


def _right_product(a: Factors, b: Factors, end: str) -> Tensor:
    k = min(_VECTORS, len(a[1]))
    rows = slice(None, k) if end == "top" else slice(-k, None)
    return a[2][rows] @ b[2][rows].T


def _right(end: str) -> Callable[[Factors, Factors], float]:
    def overlap(a: Factors, b: Factors) -> float:
        product = _right_product(a, b, end)
        return float(product.norm()) / math.sqrt(len(product))

    return overlap


def _interaction(end: str) -> Callable[[Factors, Factors], float]:
    def overlap(a: Factors, b: Factors) -> float:
        return float(torch.linalg.svdvals(_right_product(a, b, end)).square().mean())

    return overlap


_REFERENCE: dict[str, Callable[[Delta, Delta], float]] = {
    "task_vector_cosine_similarity": _cosine,
    "task_vector_l2_distance": _distance,
    "task_vector_dot_product": _dot,
    "weight_space_angle": _angle,
    "task_vector_magnitude_ratio": _magnitude_ratio,
    "effective_rank": _effective_rank,
    "effective_rank_mergeability_score": _effective_rank_score,
    "stable_rank": _stable_rank,
    "spectral_gap": _spectral_gap,
    "singular_value_ratio": _singular_value_ratio,
    "layerwise_effective_rank": _layerwise_rank,
    "layerwise_effective_rank_mergeability_score": _layerwise_score,
    "singular_value_overlap": _mean_over_matrices(_value_overlap),
    "subspace_overlap": _mean_over_matrices(_left),
    "right_subspace_overlap_top_k": _mean_over_matrices(_right("top")),
    "right_subspace_overlap_bottom_k": _mean_over_matrices(_right("bottom")),
    "interaction_matrix_overlap_top_k": _mean_over_matrices(_interaction("top")),
    "interaction_matrix_overlap_bottom_k": _mean_over_matrices(_interaction("bottom")),
}


def careful(base: Path, a: Path, b: Path) -> dict[str, float]:
    """Compute the 18 metrics of a pair without doing anything twice.

    The deltas are flattened once, into one 2×D matrix. One 2×2 Gram matrix per tensor in float64 serves
    geometry and ranks; one thin float32 SVD per matrix and model serves the subspace metrics.
    """
    start, first, second = (safetensors.torch.load_file(path) for path in (base, a, b))
    sizes = [tensor.numel() for tensor in start.values()]
    both = torch.empty(2, sum(sizes))
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    slices = {name: slice(*between) for name, between in zip(start, pairwise(ends), strict=True)}
    for name, columns in slices.items():
        for row, state in zip(both, (first, second), strict=True):
            torch.sub(state[name].flatten(), start[name].flatten(), out=row[columns])
    grams = [_gram(both[:, columns]) for columns in slices.values()]
    matrices = [
        both[:, slices[name]].reshape(2, *start[name].shape) for name in start if start[name].ndim == 2
    ]
    return {**_from_grams(grams), **_from_factors(matrices)}


def _gram(rows: Tensor) -> tuple[float, float, float]:
    """Compute ‖a‖², ⟨a, b⟩ and ‖b‖² in float64."""
    a, b = rows.double()
    return float(a @ a), float(a @ b), float(b @ b)


def _from_grams(grams: list[tuple[float, float, float]]) -> dict[str, float]:
    aa, ab, bb = (math.fsum(entries) for entries in zip(*grams, strict=True))
    s1, s2 = _spectrum(aa, ab, bb)
    norms = math.sqrt(aa), math.sqrt(bb)
    cosine = ab / (norms[0] * norms[1])
    layers = [(math.sqrt(one[0]), math.sqrt(one[2]), one) for one in grams]
    layers = [layer for layer in layers if min(layer[:2]) >= _SMALLEST_LAYER_NORM]
    weight = sum(a + b for a, b, _ in layers)
    weighted = sum((a + b) * _rank_of_two(*_spectrum(*one)) for a, b, one in layers)
    layerwise = weighted / weight if weight else 2.0
    return {
        "task_vector_cosine_similarity": cosine,
        "task_vector_l2_distance": math.sqrt(max(aa + bb - 2 * ab, 0)),
        "task_vector_dot_product": ab,
        "weight_space_angle": math.degrees(math.acos(min(max(cosine, -1.0), 1.0))),
        "task_vector_magnitude_ratio": min(norms) / max(norms) if min(norms) >= _SMALLEST_NORM else 0.0,
        "effective_rank": _rank_of_two(s1, s2),
        "effective_rank_mergeability_score": min(max(2 - _rank_of_two(s1, s2), 0.0), 1.0),
        "stable_rank": (s1 + s2) ** 2 / (s1**2 + s2**2),
        "spectral_gap": (s1 - s2) / s1,
        "singular_value_ratio": s2 / s1,
        "layerwise_effective_rank": layerwise,
        "layerwise_effective_rank_mergeability_score": min(max(2 - layerwise, 0.0), 1.0),
    }


def _spectrum(aa: float, ab: float, bb: float) -> tuple[float, float]:
    largest = (aa + bb) / 2 + math.hypot((aa - bb) / 2, ab)
    return math.sqrt(largest), math.sqrt(max(aa * bb - ab * ab, 0) / largest)


def _rank_of_two(s1: float, s2: float) -> float:
    shares = [s / (s1 + s2) for s in (s1, s2) if s > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def _from_factors(matrices: list[Tensor]) -> dict[str, float]:
    rows: list[dict[str, float]] = []
    for a, b in matrices:
        if not (a.any() and b.any()):
            continue
        first, second = (torch.linalg.svd(delta, full_matrices=False) for delta in (a, b))
        k = min(_VECTORS, *a.shape)
        top = float(_right_product(first, second, "top").square().sum())
        bottom = float(_right_product(first, second, "bottom").square().sum())
        overlaps = (math.sqrt(top / k), math.sqrt(bottom / k), top / k, bottom / k)
        values = (_value_overlap(first, second), _left(first, second), *overlaps)
        rows.append(dict(zip(_SUBSPACE_METRICS, values, strict=True)))
    if not rows:
        return dict.fromkeys(_SUBSPACE_METRICS, math.nan)
    return {name: sum(row[name] for row in rows) / len(rows) for name in _SUBSPACE_METRICS}


OPPONENTS: dict[str, Callable[[Path, Path, Path], dict[str, float]]] = {
    "reference_like": reference_like,
    "careful": careful,
}
