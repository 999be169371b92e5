"""Compute the inner products of the models' task vectors, separately for each tensor."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mergeability.profiles.evidence import finite_grams
from mergeability.profiles.layer_grams import LayerVectors, layer_grams
from mergeability.profiles.subject import Subject


@dataclass(frozen=True)
class TaskVectorGrams:
    """For each parameter, compute and store the Gram matrix of the models' task vectors."""

    def combine(self, subject: Subject) -> Float64[np.ndarray, "L T T"]:
        """Compute the Gram matrices, and check that the models were fine-tuned from their base.

        Raises:
            UserError: a delta is not finite, or a model has another base.
        """
        vectors = subject.task_vectors
        layers = layer_grams(
            subject,
            LayerVectors(
                sizes={name: vectors.parameters[name].size for name in vectors.names},
                keys={
                    task: {"base": vectors.base_hash, "model": vectors.identity(task)}
                    for task in subject.tasks
                },
                content=lambda name: {
                    "tensor": vectors.parameters[name].tensor,
                    "start": vectors.parameters[name].start,
                },
                read=vectors.read,
                description="task vectors",
            ),
        )
        # Deltas are read without checking each value, because NaN and infinity appear in the sums of squares.
        squares = np.diagonal(layers, axis1=1, axis2=2)
        for layer, row in zip(*np.nonzero(~np.isfinite(squares)), strict=True):
            raise vectors.not_finite(subject.tasks[row], vectors.names[layer])
        vectors.check_base(dict(zip(subject.tasks, np.sqrt(squares.sum(0)).tolist(), strict=True)))
        return finite_grams("task_vector", layers, subject.tasks)
