"""Compute the norms of task vectors and of their base in one pass over the files, and keep them in the store."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from mergeability.context import cores
from mergeability.task_vectors.deltas import Deltas
from mergeability.threads import one_blas_thread

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2
# Number of elements of each file that are read at a time.
_BLOCK = 2**18


def relative_norms(
    deltas: Deltas, tasks: Sequence[str], norms: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the relative norm ‖τ_t‖ / ‖θ_0‖ of models as stored on disk, without transformation.

    All norms that are not in the store are computed in one pass, in which the base is read once.

    Args:
        deltas: the models, whose store caches the norms.
        tasks: the models whose norms are returned.
        norms: task → ‖τ_t‖, if already known; computed otherwise.

    Raises:
        UserError: a value is NaN or infinite, naming the model and the tensor.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.task_vectors.norms import relative_norms
        >>> norms = relative_norms(tiny_task_vectors(cars=[3, 4], svhn=[0, 0]), ["cars", "svhn"])
        >>> {task: round(norm, 3) for task, norm in norms.items()}
        {'cars': 0.055, 'svhn': 0.0}
    """
    store, selection = deltas.store, {} if deltas.selection is None else {"selection": deltas.selection}
    base_key: dict[str, Any] = {"base": deltas.base_hash, **selection, "version": _VERSION}
    keys = {
        task: {
            "base": deltas.base_hash,
            "model": deltas.hashes[task],
            **selection,
            "version": _VERSION,
        }
        for task in tasks
    }
    stored = {task: store.found_record("relative_norm", keys[task]) for task in tasks}
    missing = [task for task in tasks if stored[task] is None]
    if missing:
        base = store.found_record("base_norm", base_key)
        known = {task: norms[task] for task in missing if norms is not None and task in norms}
        computed = _norms(deltas, [task for task in missing if task not in known], with_base=base is None)
        base = base or store.add_record("base_norm", base_key, {"norm": computed[None]})
        for task in missing:
            record = {"task_vector": known[task] if task in known else computed[task], "base": base["norm"]}
            stored[task] = store.add_record("relative_norm", keys[task], record)
    return {task: _ratio(**record) for task, record in stored.items() if record is not None}


def _norms(deltas: Deltas, tasks: Sequence[str], *, with_base: bool) -> dict[str | None, float]:
    """Compute ‖τ_t‖ of models and, under None, ‖θ_0‖; parameters are shared between threads."""
    plain = deltas.untransformed()
    squares: dict[str | None, dict[str, float]] = {task: {} for task in tasks}
    if with_base:
        squares[None] = {}
    # Each thread takes the next parameter: `next` of a list's iterator is atomic.
    waiting = iter(plain.names if squares else ())
    # Each thread reads with NumPy, so linear algebra needs no threads.
    with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda _: _add_squares(plain, waiting, squares), range(cores())))
    for task in tasks:
        for name in plain.names:
            if not np.isfinite(squares[task][name]):
                raise plain.not_finite(task, name)
    # In the order of the names, so that the rounding of the sum is always the same.
    return {owner: sum(found[name] for name in plain.names) ** 0.5 for owner, found in squares.items()}


def _add_squares(plain: Deltas, names: Iterator[str], squares: Mapping[str | None, dict[str, float]]) -> None:
    """Compute the squared norms of parameters until none is left."""
    # The same memory for all blocks, because new memory takes several times as long as reading.
    room, wide = np.empty((2, _BLOCK), dtype=np.float32), np.empty(_BLOCK)
    for name in names:
        size, sums = plain.parameters[name].size, dict.fromkeys(squares, 0.0)
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            base = plain.read_base(name, start, stop, room=room[0])
            for owner in squares:
                values = (
                    base if owner is None else plain.read(owner, name, start, stop, room=room[1], base=base)
                )
                sums[owner] += _square(values, wide)
        for owner, found in squares.items():
            found[name] = sums[owner]


def _square(values: Float32[np.ndarray, " elements"], wide: Float[np.ndarray, " at_least_elements"]) -> float:
    block = wide[: len(values)]
    block[:] = values
    with np.errstate(invalid="ignore", over="ignore"):
        return float(block @ block)


def _ratio(task_vector: float, base: float) -> float:
    if task_vector == 0:
        return 0.0
    return task_vector / base if base > 0 else float("inf")
