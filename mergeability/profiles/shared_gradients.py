"""Gradients of two models on the same samples: the samples of both tasks.

The published gradient metrics compare gradients that were taken on different samples, each model's own, so they
mix differences of the models with differences of their data. Here both models use the union of both tasks' samples,
and each sample is classified by the head of its own task. That needs the gradient of every model on every
other task's samples: T(T − 1) passes, so only a few numbers per pair are stored.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.linalg import grams
from mergeability.profiles.evidence import frozen
from mergeability.profiles.gradients import Gradients, OwnGradients, differentiated, stored_gradients
from mergeability.profiles.subject import Subject
from mergeability.store import Store

VIEWS = ("encoder_gradient", "input_gradient")

# (name, start, stop) → that range of a flattened gradient, in float32
Read = Callable[[str, int, int], np.ndarray]
# One range of the left model's gradient and of the right one's, in float64
Rows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Side:
    """The gradients of one model of a pair.

    Attributes:
        task: the model's name.
        count: number of samples of its task.
        own: reads the mean gradient on its own task's samples: "encoder.<parameter>", or "inputs".
        other: the gradients on the other task's samples, with the other task's head.
    """

    task: str
    count: int
    own: Read
    other: Gradients


@dataclass(frozen=True)
class SharedGradientGrams:
    """Compute and store, for every pair, 2×2 Gram matrices of the two models' gradients on the same samples.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.shared_gradients import SharedGradientGrams
        >>> found = tiny_profiles("cars", "svhn").evidence(SharedGradientGrams())
        >>> {view: grams.shape for view, grams in found.items()}
        {'encoder_gradient': (2, 2, 2, 2), 'input_gradient': (2, 2, 2, 2)}
    """

    def combine(self, subject: Subject) -> dict[str, Float64[np.ndarray, "T T 2 2"]]:
        """For each kind of gradient, return the 2×2 Gram matrices of all pairs of models.

        The matrix of a pair is [[⟨x_a, x_a⟩, ⟨x_a, x_b⟩], [⟨x_b, x_a⟩, ⟨x_b, x_b⟩]], where x_a and x_b are the
        gradients of models a and b.
        """
        tasks = subject.tasks
        keys = {task: OwnGradients().key(subject, task) for task in tasks}
        # Sorted by content, so that a pair is one entry for both orders of its models.
        identities = {task: digest(key) for task, key in keys.items()}
        pairs = [
            sorted((a, b), key=lambda task: identities[task])
            for position, a in enumerate(tasks)
            for b in tasks[position:]
        ]
        # Read the models' own gradients only if a pair is missing in the store.
        own = cache(lambda: OwnGradients().combine(subject))

        def find(pair: list[str]) -> dict[str, Any]:
            a, b = pair
            key = {"pair": [identities[a], identities[b]]}
            return subject.store.record("shared_gradient", key, lambda: _compare(subject, a, b, *own()))

        records = subject.run.map(find, pairs, description="shared gradients")
        found = {view: np.empty((len(tasks), len(tasks), 2, 2)) for view in VIEWS}
        for (a, b), record in zip(pairs, records, strict=True):
            i, j = tasks.index(a), tasks.index(b)
            for view, pair in found.items():
                pair[j, i] = np.flip(record[view])
                pair[i, j] = record[view]
        return {view: frozen(pair) for view, pair in found.items()}


def _compare(
    subject: Subject, a: str, b: str, store: Store, keys: dict[str, dict[str, Any]]
) -> dict[str, list[list[float]]]:
    """Compare two models on both tasks' samples, with at most their four gradients in memory."""

    def side(task: str, other: str) -> Side:
        samples = len(subject.required_views("gradient").samples(task))
        # On the diagonal, a model compared with itself needs no pass.
        found = differentiated(subject, task, other) if task != other else stored_gradients(store, keys[task])
        return Side(task, samples, store.reader("gradient", keys[task]), found)

    return pair_grams(side(a, b), side(b, a))


def pair_grams(left: Side, right: Side) -> dict[str, list[list[float]]]:
    """Compute the 2×2 Gram matrices of two models' gradients on the union of both tasks' samples.

    Of the encoder: the mean over the union of ∇θ CE. Of the inputs: all per-sample ∇x CE, divided by the
    number of samples in the union.

    Returns:
        View → Gram matrix, accumulated in float64.

    Raises:
        UserError: a gradient is not finite.
    """
    found = {
        "encoder_gradient": _gram(_encoder_blocks(left, right)),
        "input_gradient": _gram(_input_blocks(left, right)),
    }
    for view, gram in found.items():
        if not np.isfinite(gram).all():
            raise UserError(
                f"The {view} of '{left.task}' or '{right.task}' on the samples of both tasks is not "
                "finite, because weights or calibration images contain values that are too large or not finite. Check "
                "both models and their images, or leave one of the models out."
            )
    return {view: gram.tolist() for view, gram in found.items()}


def _encoder_blocks(left: Side, right: Side) -> Iterator[Rows]:
    """Yield ranges of both models' mean gradients over the union."""
    for name in left.other.encoder:
        yield from zip(
            _means_over_union(left, right.count, name),
            _means_over_union(right, left.count, name),
            strict=True,
        )


def _means_over_union(side: Side, other_count: int, name: str) -> Iterator[Float64[np.ndarray, " block"]]:
    other = side.other.encoder[name].flatten().numpy()
    for start, stop in _ranges(len(other)):
        own = side.own(f"encoder.{name}", start, stop).astype(np.float64)
        yield (side.count * own + other_count * other[start:stop].astype(np.float64)) / (
            side.count + other_count
        )


def _input_blocks(left: Side, right: Side) -> Iterator[Rows]:
    """Yield both models' input gradients, first on the left task's samples and then on the right one's."""
    for own, other in ((left, right), (right, left)):
        # Each gradient was divided by the number of its task's samples; rescale it to the size of the union.
        share = own.count / (own.count + other.count)
        of_other = other.other.inputs.flatten().numpy()
        for start, stop in _ranges(len(of_other)):
            blocks = own.own("inputs", start, stop), of_other[start:stop]
            mine, theirs = (share * block.astype(np.float64) for block in blocks)
            yield (mine, theirs) if own is left else (theirs, mine)


def _gram(blocks: Iterable[Rows]) -> Float64[np.ndarray, "2 2"]:
    total = np.zeros((2, 2))
    for block in blocks:
        rows = np.stack(block)
        total += rows @ rows.T
    return (total + total.T) / 2


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + grams.BLOCK, size)) for start in range(0, size, grams.BLOCK))
