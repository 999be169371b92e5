"""One plain whole-model way to merge for each method that needs no data, written without this library.

Each loads every model whole, makes a dictionary of deltas per model and merges as its paper says, in float32 and
with `torch.linalg.svd`. They are oracles as well: `agreement` compares them with golden values and with ours.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

State = dict[str, Tensor]


def average(base: Path, models: Sequence[Path]) -> State:
    """Average the deltas."""
    return _each(_deltas(base, models), _mean)


def ta(base: Path, models: Sequence[Path]) -> State:
    """Add the deltas."""
    return _each(_deltas(base, models), lambda stack: stack.sum(0))


def dare(base: Path, models: Sequence[Path], *, p: float = 0.9, seed: int = 0) -> State:
    """Drop entries at random, with random numbers of its own, rescale the others, and average."""
    generator = torch.Generator().manual_seed(seed)

    def thin(delta: Tensor) -> Tensor:
        return delta * (torch.rand(delta.shape, generator=generator) >= p) / (1 - p)

    deltas = _deltas(base, models)
    return _each([{name: thin(tensor) for name, tensor in delta.items()} for delta in deltas], _mean)


def ties(base: Path, models: Sequence[Path], *, density: float = 0.2, agg: str = "mean") -> State:
    """Trim, elect and merge flattened models, as the released code does."""
    start = safetensors.torch.load_file(base)
    vectors = torch.stack([flattened(delta) for delta in _deltas(base, models)])
    found = thresholds(vectors, density, SELECTIONS["torch.kthvalue"])
    trimmed = trim(vectors, found)
    return unflattened(disjoint_merge(trimmed, elect(trimmed), agg), start)


def flattened(delta: State) -> Tensor:
    """Concatenate all tensors of a model, sorted by name."""
    return torch.cat([delta[name].flatten() for name in sorted(delta)])


def unflattened(vector: Tensor, like: State) -> State:
    """Cut a vector into tensors like those it was made of."""
    parts = vector.split([like[name].numel() for name in sorted(like)])
    return {name: part.reshape(like[name].shape) for name, part in zip(sorted(like), parts, strict=True)}


# How the k-th smallest magnitude is found: from the magnitudes, which may be overwritten, and k from 1.
SELECTIONS: dict[str, Callable[[Tensor, int], float]] = {
    "torch.kthvalue": lambda magnitudes, rank: float(magnitudes.kthvalue(rank).values),
    "np.partition": lambda magnitudes, rank: _partitioned(magnitudes, rank),
    "torch.topk": lambda magnitudes, rank: float(
        magnitudes.topk(len(magnitudes) - rank + 1, sorted=False).values.min()
    ),
}


def _partitioned(magnitudes: Tensor, rank: int) -> float:
    array = magnitudes.numpy()
    array.partition(rank - 1)
    return float(array[rank - 1])


def thresholds(vectors: Tensor, density: float, selection: Callable[[Tensor, int], float]) -> Tensor:
    """Find the (D − ⌊density·D⌋)-th smallest magnitude of each vector."""
    size = vectors.shape[1]
    return torch.tensor([[selection(vector.abs(), size - int(density * size))] for vector in vectors])


def trim(vectors: Tensor, found: Tensor) -> Tensor:
    """Set to 0 what is smaller than its vector's threshold."""
    return torch.where(vectors.abs() >= found, vectors, 0)


def elect(trimmed: Tensor) -> Tensor:
    """Elect each entry's sign; where the sum is exactly 0, the sign most entries have."""
    signs = trimmed.sum(0).sign()
    return torch.where(signs == 0, signs.sum().sign(), signs)


def disjoint_merge(trimmed: Tensor, signs: Tensor, agg: str = "mean") -> Tensor:
    """Average, or add, the entries that have the elected sign."""
    agreeing = torch.where(trimmed * signs > 0, trimmed, 0)
    total = agreeing.sum(0)
    return total if agg == "sum" else total / (agreeing != 0).sum(0).clamp(min=1)


def tsv(base: Path, models: Sequence[Path]) -> State:
    """Concatenate the leading singular vectors of all models and decorrelate them, by SVDs throughout."""

    def merge(stack: Tensor) -> Tensor:
        rank = min(stack.shape[1:]) // len(stack)
        if rank == 0:
            return _mean(stack)
        factors = [_svd(delta) for delta in stack]
        left = torch.cat([U[:, :rank] for U, _, _ in factors], dim=1)
        values = torch.cat([S[:rank] for _, S, _ in factors])
        right = torch.cat([Vh[:rank] for _, _, Vh in factors])
        return _orthogonal(left) * values @ _orthogonal(right)

    return _matrices(_deltas(base, models), merge)


def iso_c(base: Path, models: Sequence[Path]) -> State:
    """Set all singular values of the sum to their mean."""

    def merge(stack: Tensor) -> Tensor:
        U, S, Vh = _svd(stack.sum(0))
        return S.mean() * (U @ Vh)

    return _matrices(_deltas(base, models), merge)


def iso_cts(base: Path, models: Sequence[Path], *, common: float = 0.8) -> State:
    """Put some directions of each model's own beside the common ones, all with one singular value."""

    def merge(stack: Tensor) -> Tensor:
        smaller, count = min(stack.shape[1:]), len(stack)
        own = round((smaller - int(common * smaller)) / count)
        shared = smaller - own * count
        U, S, Vh = (part[..., :shared] for part in _svd_by_columns(stack.sum(0)))
        parts = [_svd_by_columns(delta - U @ (U.T @ delta)) for delta in stack]
        left = torch.cat([*(part[0][:, :own] for part in parts), U], dim=1)
        values = torch.cat([*(part[1][:own] for part in parts), S])
        right = torch.cat([*(part[2][:, :own] for part in parts), Vh], dim=1)
        return values.mean() * (_orthogonal(left) @ _orthogonal(right).T)

    return _matrices(_deltas(base, models), merge)


def consensus_ta(base: Path, models: Sequence[Path], *, agree: int = 2, threshold: float = 0.4) -> State:
    """Add the deltas and keep the entries that several models need."""

    def merge(stack: Tensor) -> Tensor:
        total = stack.sum(0)
        masks = stack.abs() > threshold * (total - stack).abs()
        return total * (masks.sum(0) >= agree)

    return _each(_deltas(base, models), merge)


def breadcrumbs(
    base: Path, models: Sequence[Path], *, largest: float = 0.01, smallest: float = 0.85
) -> State:
    """Drop both ends of each tensor, found by sorting its magnitudes, and add."""

    def thin(delta: Tensor) -> Tensor:
        magnitudes, size = delta.abs(), delta.numel()
        ordered = magnitudes.flatten().sort().values
        least, most = ordered[int(smallest * size)], ordered[size - 1 - int(largest * size)]
        return delta * ((magnitudes >= least) & (magnitudes <= most))

    return _each(_deltas(base, models), lambda stack: torch.stack([thin(delta) for delta in stack]).sum(0))


def slerp(base: Path, models: Sequence[Path], *, t: float = 0.5) -> State:
    """Interpolate the weights of two models on the sphere, tensor by tensor."""
    start = safetensors.torch.load_file(base)
    first, second = (safetensors.torch.load_file(path) for path in models)

    def between(a: Tensor, b: Tensor) -> Tensor:
        cosine = torch.dot(a.flatten().double(), b.flatten().double()) / (
            a.double().norm() * b.double().norm()
        )
        angle = float(torch.acos(cosine.clamp(-1, 1)))
        if math.sin(angle) < 1e-6:
            return (1 - t) * a + t * b
        return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)

    return {name: between(first[name], second[name]) - tensor for name, tensor in start.items()}


def _deltas(base: Path, models: Sequence[Path]) -> list[State]:
    start = safetensors.torch.load_file(base)
    states = (safetensors.torch.load_file(path) for path in models)
    return [{name: state[name] - tensor for name, tensor in start.items()} for state in states]


def _each(deltas: Sequence[State], merge: Callable[[Tensor], Tensor]) -> State:
    return {name: merge(torch.stack([delta[name] for delta in deltas])) for name in deltas[0]}


def _matrices(deltas: Sequence[State], merge: Callable[[Tensor], Tensor]) -> State:
    """Merge what is a matrix; average everything else."""
    return _each(deltas, lambda stack: merge(stack) if stack.ndim == 3 else _mean(stack))


def _mean(stack: Tensor) -> Tensor:
    return stack.mean(0)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        # Where hundreds of singular values are equal, as those of orthonormal bases, float32 may not converge.
        U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        return U.float(), S.float(), Vh.float()


def _svd_by_columns(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V, whose last axis counts the triplets."""
    U, S, Vh = _svd(matrix)
    return U, S, Vh.T


def _orthogonal(bases: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal rows or columns."""
    U, _, Vh = _svd(bases)
    return U @ Vh


# By the names of the configurations in `conf/merge`.
MERGES: dict[str, Callable[..., State]] = {
    "average": average,
    "ta": ta,
    "ties": ties,
    "dare": dare,
    "tsv": tsv,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "consensus_ta": consensus_ta,
    "breadcrumbs": breadcrumbs,
    "slerp": slerp,
}
