"""Compute the profiles of T models as T×T matrices, from which metrics are computed."""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float64

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.profiles import gradients, shared_gradients, subspaces
from mergeability.profiles.activations import ActivationGrams, ActivationKernelGrams
from mergeability.profiles.encoders import parameter_owners
from mergeability.profiles.evidence import Evidence
from mergeability.profiles.fisher import FisherInformation, Read
from mergeability.profiles.linear_inputs import LinearInputs, LinearPart, ReadGram
from mergeability.profiles.sign_conflict import SignConflicts, SignCounts
from mergeability.profiles.subject import Subject
from mergeability.profiles.subspace_overlaps import (
    SUBSPACE_SIZE,
    SubspaceOverlaps,
    matrix_shapes,
    undetermined,
)
from mergeability.profiles.task_vector_grams import TaskVectorGrams
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import PREFIX

Found = TypeVar("Found")

# View → its Gram matrices, one per layer.
VIEWS: dict[str, Evidence[np.ndarray]] = {
    "task_vector": TaskVectorGrams(),
    "activation": ActivationGrams(),
    "activation_kernel": ActivationKernelGrams(),
    "encoder_gradient": gradients.EncoderGradientGrams(),
    "input_gradient": gradients.InputGradientGrams(),
}


class Profiles:
    """Compute T×T matrices from the task vectors, activations, gradients and subspaces of T models.

    Everything is computed on first use. Expensive values are computed once per model and layer and kept in the task
    vectors' store, so an interrupted run continues where it stopped, and runs that share a store share the work.

    Args:
        task_vectors: the models' weights.
        views: the encoder, heads and inputs; without them only weight-space evidence is available.
        run: device, memory budget and progress; the CPU, 4 GiB and no progress when None. Evidence is kept in the
            task vectors' store, not in that of the run.

    Attributes:
        tasks: names of the models, in the order of the rows of every matrix.
        task_vectors: the models' weights.
        views: the encoder, heads and inputs, or None.
        remarks: sentences about values found to be undefined so far, with their causes.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[-1, 2]))
        >>> profiles.gram()
        array([[ 9., -3.],
               [-3.,  5.]])
        >>> profiles.select(["svhn"]).gram()
        array([[5.]])
    """

    def __init__(self, task_vectors: TaskVectors, views: Views | None = None, run: Run | None = None) -> None:
        self.task_vectors, self.views, self.tasks = task_vectors, views, task_vectors.tasks
        self.remarks: list[str] = []
        self.subject = Subject(task_vectors, views, Run() if run is None else run)
        self._found: dict[Evidence[Any], Any] = {}

    def select(self, tasks: Iterable[str]) -> "Profiles":
        """Return the profiles of some tasks, in the given order; the result shares stored values with this object.

        Raises:
            UserError: a task is unknown, named twice, or none is named.
        """
        selected = copy.copy(self)
        selected.subject = self.subject.select(tasks)
        selected.task_vectors = selected.subject.task_vectors
        selected.tasks = selected.subject.tasks
        # These hold one row per model.
        selected.remarks, selected._found = [], {}
        return selected

    def evidence(self, kind: Evidence[Found]) -> Found:
        """Return one kind of evidence about these models; results are cached separately for each choice of options.

        Args:
            kind: a frozen dataclass of the evidence's options, such as `SubspaceOverlaps(k=5)`.
        """
        if kind not in self._found:
            self._found[kind] = kind.combine(self.subject)
        return cast("Found", self._found[kind])

    def has(self, kind: Evidence[Any]) -> bool:
        """Return whether this object has already computed the given kind of evidence."""
        return kind in self._found

    @property
    def data_key(self) -> dict[str, Any]:
        """The description of samples, heads and encoder; the store keys of data-dependent values contain it."""
        return gradients.data_key(self.subject)

    def gram(self, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
        """For a view, such as the task vectors, compute the models' Gram matrix ⟨x_a, x_b⟩, summed over tensors."""
        return self.layer_grams(view).sum(0)

    def layer_grams(self, view: str = "task_vector") -> Float64[np.ndarray, "L T T"]:
        """For each tensor of a view, such as the task vectors, compute the models' Gram matrix.

        Sums are accumulated in float64. L is the number of parameters for task vectors and encoder gradients, and 1
        otherwise.

        Raises:
            UserError: the view is unknown, not finite, or needs inputs and heads that were not given.
        """
        if view not in VIEWS:
            raise UserError(f"Expected one of the views {', '.join(VIEWS)}; got {view!r}.")
        return self.evidence(VIEWS[view])

    def subspace_overlaps(self, side: str, end: str, k: int = SUBSPACE_SIZE) -> Float64[np.ndarray, "L T T"]:
        """Compute ‖UaᵀUb‖²_F for every matrix and every pair of models a and b.

        Ua and Ub contain the first k or the last k singular vectors of the models' changes (thin SVD). k is
        clipped to min(m, n). NaN if one of the two models did not change the matrix, or if its k vectors are not
        unique: the last ones of a change with several zero singular values, or the first ones of a change of rank
        below k. `remarks` lists such cases.
        """
        if side not in subspaces.SIDES or end not in subspaces.ENDS or k < 1:
            raise UserError(
                "Expected `side` to be left or right, `end` to be top or bottom, and `k` to be at least 1; got"
                f" {side!r}, {end!r}, {k}."
            )
        found = self.evidence(SubspaceOverlaps(k))
        remarks = undetermined(found, self.tasks, side, end, k)
        self.remarks += [remark for remark in remarks if remark not in self.remarks]
        return found[f"{side}_{end}"]

    def subspace_sizes(self, k: int = SUBSPACE_SIZE) -> np.ndarray:
        """Return min(k, m, n) for every matrix of shape m×n."""
        return np.minimum(k, self.matrix_shapes().min(1))

    def matrix_shapes(self) -> np.ndarray:
        """Return the shapes (m, n) of all L matrices as an L×2 array."""
        return matrix_shapes(self.task_vectors)

    def singular_values(self, count: int) -> Float64[np.ndarray, "L T K"]:
        """Return, for each matrix, the `count` leading singular values of every model's delta, padded with zeros."""
        # Singular values do not depend on k.
        at_hand = (one for one in self._found if isinstance(one, SubspaceOverlaps))
        found = self.evidence(next(at_hand, SubspaceOverlaps()))
        return found["singular_values"][:, :, :count]

    def decompose(self, k: int = SUBSPACE_SIZE) -> None:
        """Compute and store the singular values and the first and last k singular vectors of all matrices."""
        SubspaceOverlaps(k).decompose(self.subject)

    def sign_counts(self, density: float | int = 0.2) -> SignCounts:
        """Count the entries that are among the most changed in both models of a pair, and how many have opposite signs.

        Raises:
            UserError: the density is not in (0, 1], or a delta is not finite.
        """
        return self.evidence(SignConflicts(density))

    def shared_grams(self, view: str) -> Float64[np.ndarray, "T T 2 2"]:
        """For every pair of models, compute the 2×2 Gram matrix of the two gradients on the samples of both tasks.

        x_a and x_b are the gradients of the two models on the union of both tasks' samples, each sample
        classified by the head of its own task. This takes two passes per pair, while other evidence takes one per
        model.

        Raises:
            UserError: the view is not one of gradients, a gradient is not finite, or inputs or heads are missing.
        """
        if view not in shared_gradients.VIEWS:
            raise UserError(f"Expected one of the views {', '.join(shared_gradients.VIEWS)}; got {view!r}.")
        if view == "input_gradient":
            gradients.check_differentiable(self.subject)
        return self.evidence(shared_gradients.SharedGradientGrams())[view]

    @property
    def encoder_parameters(self) -> frozenset[str]:
        """The checkpoint names of the encoder's parameters; Fisher information is computed for these parameters."""
        own = parameter_owners(self.subject.required_views("Fisher information").encoder)
        return frozenset(name for name in self.subject.tensors if name.removeprefix(PREFIX) in own)

    def fisher(self) -> dict[str, Read]:
        """Compute and store every model's diagonal Fisher information, and return functions that read it.

        F = mean over the task's own samples of the squared gradient of the cross-entropy at the true label, entry by
        entry. It is read in ranges, since each is as large as a model.

        Returns:
            Task → function (tensor's name, start, stop) → float32 values of that range.

        Raises:
            UserError: inputs or heads are missing, or a gradient is not finite.
        """
        return self.evidence(FisherInformation())

    def linear_inputs(self) -> tuple[dict[str, list[LinearPart]], dict[str, ReadGram]]:
        """Compute and store the Gram matrices XᵀX of the inputs X of every model's linear layers.

        X holds the inputs on the task's own samples, one row per token and sample. The matrices are read layer by
        layer, since together they are as large as one or two models.

        Returns:
            Checkpoints' tensor → the linear layers it holds; and task → function that reads a layer's Gram matrix.

        Raises:
            UserError: inputs or heads are missing, or an input is not finite.
        """
        return self.evidence(LinearInputs())
