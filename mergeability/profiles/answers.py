"""Compare predictions of models on a task's unlabelled inputs with those of the task's own model."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

BY_CHANCE = "expected by chance"
"""Words in the message that the base model agrees with a model no more often than by chance.

A verdict repeats the messages that contain these words.
"""

# Sums of features below this length have no reliable direction.
_SHORTEST = 1e-6

Probabilities = Float64[np.ndarray, "n classes"]


def normalised(features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Divide each row by its Euclidean norm, in float64; rows with a norm below 1e-6 become NaN.

    >>> normalised(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [nan, nan]])
    """
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.full_like(rows, np.nan), where=lengths >= _SHORTEST)


def probabilities(
    features: Float64[np.ndarray, "n d"], head: Float64[np.ndarray, "classes d"]
) -> Probabilities:
    """Compute softmax(head · z) of each row z: the probability of each class, in [0, 1]; rows sum to 1.

    Args:
        features: L2-normalised.
        head: a frozen zero-shot head, with the logit scale in it.

    >>> probabilities(np.array([[1.0, 0.0]]), np.log([[3.0, 1.0], [1.0, 1.0]])).round(3)
    array([[0.75, 0.25]])
    """
    logits = features @ head.T
    # Subtract the maximum to prevent overflow.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def overlap(answers: Probabilities, own: Probabilities) -> float:
    """Average Σ_y min(P(y|x), Q(y|x)) over the inputs x; the result is in [0, 1], and 1 if P = Q.

    Args:
        answers: P, the probabilities of the compared model.
        own: Q, the probabilities of the task's own fine-tuned model.

    >>> overlap(np.array([[0.7, 0.3]]), np.array([[0.5, 0.5]]))
    0.8
    """
    return float(np.minimum(answers, own).sum(axis=1).mean())


def agreement(answers: Probabilities, own: Probabilities) -> float:
    """Compute the share, in [0, 1], of inputs for which P and Q predict the same class.

    P and Q are defined as in `overlap`. NaN if a prediction is unknown. Not corrected for chance.

    >>> agreement(np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.6, 0.4]]))
    0.5
    """
    if np.isnan(answers).any() or np.isnan(own).any():
        return float("nan")
    return float((answers.argmax(axis=1) == own.argmax(axis=1)).mean())


def confidence(answers: Probabilities, own: Probabilities) -> float:
    """Average P(ŷ|x) over the inputs x, where ŷ is the class that Q predicts for x; the result is in [0, 1].

    P and Q are defined as in `overlap`.

    >>> confidence(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([[0.9, 0.1], [0.6, 0.4]]))
    0.5
    """
    return float(answers[np.arange(len(own)), own.argmax(axis=1)].mean())


def chance_agreement(answers: Probabilities, own: Probabilities) -> float:
    """Compute how often P and Q would agree if their predictions were independent: Σ_y share_P(y) · share_Q(y).

    P and Q are defined as in `overlap`; share_P(y) is the share of inputs for which P predicts the class y.

    >>> chance_agreement(np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.6, 0.4]]))
    0.5
    """
    classes = own.shape[1]
    shares = [np.bincount(one.argmax(axis=1), minlength=classes) / len(one) for one in (answers, own)]
    return float(shares[0] @ shares[1])


Measure = Callable[[Probabilities, Probabilities], float]
MEASURES: dict[str, Measure] = {"overlap": overlap, "agreement": agreement, "confidence": confidence}
