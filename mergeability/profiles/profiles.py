"""What is known about each model, as T×T matrices: the evidence that every metric is arithmetic on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mergeability.errors import UserError
from mergeability.profiles.activations import mean_activation
from mergeability.profiles.gradients import task_gradients
from mergeability.profiles.views import Views
from mergeability.task_vectors import TaskVectors

VIEWS = ("task_vector", "activation", "encoder_gradient", "input_gradient")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 1
# Columns of a stack that are held in float64 at a time. Fixed, so that sums never depend on the machine.
_COLUMNS = 2**18
_SUBSPACE_SIZE = 10


def _no_progress(items: Iterable[Any], _description: str, _total: int) -> Iterable[Any]:
    return items


class Profiles:
    """Task vectors together with data-dependent views of the same models; each computed when first asked for.

    Args:
        task_vectors: the models' weights.
        views: images, heads and the encoder; only weight-space evidence is there without them.
        progress: wraps a loop over models or layers: (items, description, total) → the items.

    Attributes:
        tasks: names of the models: the order of every matrix's rows.
        task_vectors: the models' weights.
        views: what was given, or None.
    """

    def __init__(
        self, task_vectors: TaskVectors, views: Views | None = None, *, progress: Progress | None = None
    ) -> None:
        self.task_vectors = task_vectors
        self.views = views
        self.tasks = task_vectors.tasks
        self._progress: Progress = _no_progress if progress is None else progress
        self._layer_grams: dict[str, np.ndarray] = {}
        self._overlaps: dict[int, dict[str, np.ndarray]] = {}

    def gram(self, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
        """Compute the models' Gram matrix ⟨x_a, x_b⟩ of a view, over everything the view holds."""
        return self.layer_grams(view).sum(0)

    def layer_grams(self, view: str = "task_vector") -> Float64[np.ndarray, "L T T"]:
        """Compute one Gram matrix per tensor of a view, accumulated in float64.

        L is the number of parameters for task vectors and encoder gradients, and 1 otherwise.

        Raises:
            UserError: the view is unknown, not finite, or needs images and heads that were not given.
        """
        if view not in VIEWS:
            raise UserError(f"Expected one of the views {', '.join(VIEWS)}; got {view!r}.")
        if view not in self._layer_grams:
            grams = _frozen(getattr(self, f"_{view}_grams")())
            self._check_finite(view, grams)
            self._layer_grams[view] = grams
        return self._layer_grams[view]

    def subspace_overlaps(self, side: str, end: str, k: int = _SUBSPACE_SIZE) -> Float64[np.ndarray, "L T T"]:
        """Compute ‖UaᵀUb‖²_F of every matrix, U the k first or last singular vectors of the thin SVD.

        k is clipped to min(m, n). NaN where one of the two models did not change the matrix.
        """
        if side not in ("left", "right") or end not in ("top", "bottom") or k < 1:
            raise UserError(
                f"Expected side left or right, end top or bottom and k ≥ 1; got {side!r}, {end!r}, {k}."
            )
        return self._subspaces(k)[f"{side}_{end}"]

    def subspace_sizes(self, k: int = _SUBSPACE_SIZE) -> np.ndarray:
        """Return k clipped to min(m, n), for every matrix."""
        shapes = [self.task_vectors.shapes[name] for name in self.task_vectors.matrices]
        return np.array([min(k, *shape) for shape in shapes], dtype=np.int64)

    def singular_values(self, count: int) -> Float64[np.ndarray, "L T K"]:
        """Return the `count` leading singular values of every matrix's deltas, padded with zeros."""
        at_hand = next(iter(self._overlaps), _SUBSPACE_SIZE)
        return self._subspaces(at_hand)["singular_values"][:, :, :count]

    def _check_finite(self, view: str, grams: np.ndarray) -> None:
        squares = np.diagonal(grams, axis1=1, axis2=2).sum(0)
        for task, square in zip(self.tasks, squares, strict=True):
            if not np.isfinite(square):
                raise UserError(
                    f"The {view} of '{task}' is not finite: its model or its calibration images overflow. "
                    "Check them, or leave the model out."
                )

    def _task_vector_grams(self) -> Float64[np.ndarray, "L T T"]:
        vectors = self.task_vectors
        vectors.check_base()

        def compute() -> dict[str, Tensor]:
            names = self._progress(vectors.names, "task vectors", len(vectors.names))
            return {"grams": torch.stack([_gram(vectors.stack(name)) for name in names])}

        return self._stored("gram", {"names": list(vectors.names)}, compute)["grams"]

    def _activation_grams(self) -> Float64[np.ndarray, "L T T"]:
        views = self._required_views("activation")
        rows = []
        for task in self._progress(self.tasks, "activations", len(self.tasks)):
            key = {"model": self.task_vectors.hashes[task], **views.activation_key, "version": _VERSION}
            rows.append(
                self.task_vectors.store.arrays("activation", key, lambda task=task: self._activation(task))[
                    "mean"
                ]
            )
        return _gram(torch.stack(rows))[None].numpy()

    def _activation(self, task: str) -> dict[str, Tensor]:
        views = self._required_views("activation")
        state = views.state(self.task_vectors, task)
        mean = mean_activation(
            views.encoder, state, views.pool_images, layer=views.layer, batch_size=views.batch_size
        )
        return {"mean": mean}

    def _encoder_gradient_grams(self) -> Float64[np.ndarray, "L T T"]:
        # One layer of all models at a time.
        gradients = self._gradients()
        names = sorted(name for name in gradients[0] if name.startswith("encoder."))
        grams = [_gram(torch.stack([one[name] for one in gradients])) for name in names]
        return torch.stack(grams).numpy()

    def _input_gradient_grams(self) -> Float64[np.ndarray, "L T T"]:
        inputs = [one["inputs"] for one in self._gradients()]
        for task, gradient in zip(self.tasks, inputs, strict=True):
            if gradient.shape != inputs[0].shape:
                raise UserError(
                    "Input gradients need as many images of one size for every task: "
                    f"'{self.tasks[0]}' has {tuple(inputs[0].shape)}, '{task}' has {tuple(gradient.shape)}."
                )
        return _gram(torch.stack(inputs))[None].numpy()

    def _gradients(self) -> list[dict[str, Tensor]]:
        """Return every model's gradients as the store maps them into memory, computing what it lacks."""
        for task in self._progress(self.tasks, "gradients", len(self.tasks)):
            # Dropped at once: held together, the gradients of 20 large models would fill the memory.
            self._stored_gradient(task)
        return [self._stored_gradient(task) for task in self.tasks]

    def _stored_gradient(self, task: str) -> dict[str, Tensor]:
        vectors, views = self.task_vectors, self._required_views("gradient")
        key = {"model": vectors.hashes[task], **views.gradient_key(task), "version": _VERSION}
        return vectors.store.arrays("gradient", key, lambda: self._gradient(task))

    def _gradient(self, task: str) -> dict[str, Tensor]:
        views = self._required_views("gradient")
        images, labels = views.samples(task)
        state = views.state(self.task_vectors, task)
        gradients = task_gradients(
            views.encoder, state, views.head(task), images, labels, batch_size=views.batch_size
        )
        named = {f"encoder.{name}": gradient for name, gradient in gradients.encoder.items()}
        return {**named, "inputs": gradients.inputs}

    def _required_views(self, what: str) -> Views:
        if self.views is None:
            raise UserError(
                f"The {what} metrics need images and heads: give Profiles views, "
                "or ask for the metrics of weight space only."
            )
        return self.views

    def _subspaces(self, k: int) -> dict[str, np.ndarray]:
        """Compute all that follows from the singular factors in one pass over the matrices."""
        if k not in self._overlaps:
            vectors = self.task_vectors
            key = {"matrices": list(vectors.matrices), "k": k}
            found = self._stored("subspace", key, lambda: self._compute_subspaces(k))
            self._overlaps[k] = {name: _frozen(array) for name, array in found.items()}
        return self._overlaps[k]

    def _compute_subspaces(self, k: int) -> dict[str, Tensor]:
        vectors = self.task_vectors
        count = len(self.tasks)
        longest = max((min(vectors.shapes[name]) for name in vectors.matrices), default=0)
        overlaps: dict[str, list[Tensor]] = {
            "left_top": [],
            "left_bottom": [],
            "right_top": [],
            "right_bottom": [],
        }
        values = torch.zeros(len(vectors.matrices), count, longest, dtype=torch.float64)
        matrices = self._progress(vectors.matrices, "singular vectors", len(vectors.matrices))
        for row, name in enumerate(matrices):
            U, S, Vh = vectors.svd(name)
            values[row, :, : S.shape[1]] = S
            unchanged = S[:, 0] == 0
            for side, basis in (("left", U), ("right", Vh.mT)):
                overlaps[f"{side}_top"].append(_squared_overlap(basis[:, :, :k], unchanged))
                overlaps[f"{side}_bottom"].append(_squared_overlap(basis[:, :, -k:], unchanged))
        empty = torch.zeros(0, count, count, dtype=torch.float64)
        stacked = {name: torch.stack(rows) if rows else empty.clone() for name, rows in overlaps.items()}
        return {**stacked, "singular_values": values}

    def _stored(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, np.ndarray]:
        vectors = self.task_vectors
        models = [vectors.hashes[task] for task in self.tasks]
        whole_key = {"base": vectors.base_hash, "models": models, **key, "version": _VERSION}
        return {name: array.numpy() for name, array in vectors.store.arrays(kind, whole_key, compute).items()}


def _gram(stack: Tensor) -> Tensor:
    """Compute the T×T Gram matrix of a stack in float64, a bounded number of columns at a time."""
    rows = stack.reshape(len(stack), -1)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for columns in rows.split(_COLUMNS, dim=1):
        wide = columns.double()
        gram += wide @ wide.T
    # Exactly symmetric whatever order the product summed in.
    return (gram + gram.T) / 2


def _squared_overlap(bases: Tensor, unchanged: Tensor) -> Tensor:
    """Compute ‖BaᵀBb‖²_F for all pairs of T bases (T×m×k) by one product."""
    count, rows, k = bases.shape
    side_by_side = bases.permute(1, 0, 2).reshape(rows, count * k)
    products = (side_by_side.T @ side_by_side).double().reshape(count, k, count, k)
    squares = products.square().sum((1, 3))
    squares = (squares + squares.T) / 2
    squares[unchanged, :] = torch.nan
    squares[:, unchanged] = torch.nan
    return squares


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a private, read-only copy: the same matrix is handed to every metric."""
    frozen = np.array(array, dtype=np.float64)
    frozen.setflags(write=False)
    return frozen
