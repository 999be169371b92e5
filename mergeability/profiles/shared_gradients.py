"""The gradients of two models on the same samples: their own ones, and each other's.

The published gradient metrics compare gradients that were taken on different images, each model's own, so that
they mix how the models differ with how their data do. Here both models see the union of both tasks' samples,
and each sample is classified by the head of its own task. That needs the gradient of every model on every
other task's samples: T(T − 1) passes, so nothing but a few numbers per pair is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mergeability.errors import UserError
from mergeability.profiles import grams
from mergeability.profiles.gradients import Gradients

VIEWS = ("encoder_gradient", "input_gradient")

# (name, start, stop) → that range of a flattened gradient, in float32
Read = Callable[[str, int, int], np.ndarray]


@dataclass(frozen=True)
class Side:
    """One model of a pair, as its gradients.

    Attributes:
        task: the model's name.
        count: how many samples its task has.
        own: reads the mean gradient on its own task's samples: "encoder.<parameter>", or "inputs".
        other: the gradients on the other task's samples, with the other task's head.
    """

    task: str
    count: int
    own: Read
    other: Gradients


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
                f"The shared {view} of '{left.task}' and '{right.task}' is not finite: a model or its "
                "calibration images overflow. Check them, or leave the model out."
            )
    return {view: gram.tolist() for view, gram in found.items()}


def _encoder_blocks(left: Side, right: Side) -> Iterator[Float64[np.ndarray, "2 block"]]:
    """Yield both models' mean gradients over the union, range by range."""
    total = left.count + right.count
    for name, gradient in left.other.encoder.items():
        of_left, of_right = _flat(gradient), _flat(right.other.encoder[name])
        for start, stop in _ranges(len(of_left)):
            rows = np.empty((2, stop - start))
            for row, side, others, count in ((0, left, of_left, right.count), (1, right, of_right, left.count)):
                rows[row] = side.own(f"encoder.{name}", start, stop)
                rows[row] *= side.count / total
                rows[row] += others[start:stop] * (count / total)
            yield rows


def _input_blocks(left: Side, right: Side) -> Iterator[Float64[np.ndarray, "2 block"]]:
    """Yield both models' input gradients on the left task's samples, then on the right one's."""
    total = left.count + right.count
    of_left, of_right = _flat(left.other.inputs), _flat(right.other.inputs)
    for start, stop in _ranges(len(of_right)):
        rows = np.stack([left.own("inputs", start, stop), of_right[start:stop]]).astype(np.float64)
        yield rows * (left.count / total)
    for start, stop in _ranges(len(of_left)):
        rows = np.stack([of_left[start:stop], right.own("inputs", start, stop)]).astype(np.float64)
        yield rows * (right.count / total)
