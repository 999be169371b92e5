"""What is known about each model, as T×T matrices: the evidence that every metric is arithmetic on."""

import copy
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from mergeability.context import GIBIBYTE, work
from mergeability.devices import chosen_device
from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.linalg import grams
from mergeability.profiles import shared_gradients, subspaces
from mergeability.profiles.activations import centred_kernel, image_activations
from mergeability.profiles.batches import fitting_batch_size
from mergeability.profiles.fisher import fisher_roots, fitting_samples
from mergeability.profiles.gradients import Gradients, task_gradients
from mergeability.profiles.linear_inputs import LinearPart, input_grams, linear_parts, parameter_owners
from mergeability.profiles.sign_conflict import SignCounts, count_signs
from mergeability.profiles.views import Views
from mergeability.progress import Progress, no_progress
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import PREFIX

logger = logging.getLogger(__name__)

VIEWS = ("task_vector", "activation", "activation_kernel", "encoder_gradient", "input_gradient")

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 2
_FISHER_VERSION = _LINEAR_INPUTS_VERSION = 1
_SUBSPACE_SIZE = 10
# Models whose subspaces meet in one product. Fixed, so that sums never depend on the memory budget.
_GROUP = 64
# Elements of a delta that are read at a time.
_PART = 2**20

# (checkpoints' tensor, start, stop) → that range of the flattened tensor's Fisher information, in float64
Read = Callable[[str, int, int], np.ndarray]
# linear layer → its Gram matrix, in float64
ReadGram = Callable[[LinearPart], Tensor]


class Profiles:
    """Task vectors together with data-dependent views of the same models; each computed when first asked for.

    What is expensive is computed once per model and layer and filed in the task vectors' store, so a run that
    was killed goes on where it stopped, and runs that share a store share the work.

    Args:
        task_vectors: the models' weights.
        views: images, heads and the encoder; only weight-space evidence is there without them.
        split_qkv: take the queries, keys and values of a fused attention for three parameters.
        matricize: "conv" takes a convolution's kernel for the matrix out × (in·height·width).
        memory_budget: GiB for what is computed; decides how much is done at a time.
        device: "cpu", "cuda", "cuda:<number>", or "auto": CUDA where there is one.
        progress: wraps a loop over models or layers: (items, description, total) → the items.

    Attributes:
        tasks: names of the models: the order of every matrix's rows.
        task_vectors: the models' weights, in the layout asked for.
        views: what was given, or None.
        remarks: sentences on what has no value, and why, as far as it is known by now.

    Raises:
        UserError: the budget is not positive, or there is no such device.
    """

    def __init__(
        self,
        task_vectors: TaskVectors,
        views: Views | None = None,
        *,
        split_qkv: bool = False,
        matricize: str | None = None,
        memory_budget: float | int = 4,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        is_number = isinstance(memory_budget, int | float) and not isinstance(memory_budget, bool)
        if not is_number or not 0 < memory_budget < float("inf"):
            raise UserError(f"Expected memory_budget to be a positive number of GiB, got {memory_budget!r}.")
        self.task_vectors = task_vectors.arranged(split_qkv=split_qkv, matricize=matricize)
        self.views = views
        self.tasks = task_vectors.tasks
        self.device = chosen_device(device)
        self.remarks: list[str] = []
        self._memory_budget = memory_budget
        self._progress: Progress = no_progress if progress is None else progress
        self._layer_grams: dict[str, np.ndarray] = {}
        self._overlaps: dict[int, dict[str, np.ndarray]] = {}
        self._sign_counts: dict[float, SignCounts] = {}
        self._shared_grams: dict[str, np.ndarray] = {}
        self._images_at_once: int | None = None

    def select(self, tasks: Iterable[str]) -> "Profiles":
        """Return the same evidence for some of the tasks, in the order given; what is stored is shared.

        Raises:
            UserError: a task is unknown, named twice, or none is named.
        """
        # Decided for all models, so that selections share what they compute.
        if self.views is not None:
            _ = self._gradient_store
        selected = copy.copy(self)
        selected.task_vectors = self.task_vectors.select(tasks)
        selected.tasks = selected.task_vectors.tasks
        selected.remarks = []
        # These hold one row per model.
        selected._layer_grams, selected._overlaps = {}, {}
        selected._sign_counts, selected._shared_grams = {}, {}
        selected.__dict__.pop("_own_gradients", None)
        return selected

    @property
    def data_key(self) -> dict[str, Any]:
        """What everything made from the models' own images and heads depends on besides the models."""
        views = self._required_views("data")
        return {"tasks": [views.gradient_key(task) for task in sorted(self.tasks)], **self._settings}

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

        k is clipped to min(m, n). NaN where one of the two models did not change the matrix, or where its k
        vectors are not determined: the last ones of a change that has several zero singular values, or the
        first ones of a change of rank below k. `remarks` then counts them.
        """
        if side not in subspaces.SIDES or end not in subspaces.ENDS or k < 1:
            raise UserError(
                f"Expected side left or right, end top or bottom and k ≥ 1; got {side!r}, {end!r}, {k}."
            )
        overlaps = self._subspaces(k)[f"{side}_{end}"]
        self._remark_undetermined(side, end, k, overlaps)
        return overlaps

    def subspace_sizes(self, k: int = _SUBSPACE_SIZE) -> np.ndarray:
        """Return k clipped to min(m, n), for every matrix."""
        return np.minimum(k, self.matrix_shapes().min(1))

    def matrix_shapes(self) -> np.ndarray:
        """Return the extents m and n of every matrix, L×2."""
        vectors = self.task_vectors
        shapes = [vectors.parameters[name].shape for name in vectors.matrices]
        return np.array(shapes, dtype=np.int64).reshape(-1, 2)

    def singular_values(self, count: int) -> Float64[np.ndarray, "L T K"]:
        """Return the `count` leading singular values of every matrix's deltas, padded with zeros."""
        at_hand = next(iter(self._overlaps), _SUBSPACE_SIZE)
        return self._subspaces(at_hand)["singular_values"][:, :, :count]

    def sign_counts(self, density: float | int = 0.2) -> SignCounts:
        """Count the entries that two models both keep among their largest, and those of opposite sign.

        Raises:
            UserError: the density is not in (0, 1], or a delta is not finite.
        """
        if density not in self._sign_counts:
            self.task_vectors.check_base()
            self._sign_counts[density] = count_signs(
                self.task_vectors, density, memory_budget=self._memory_budget, progress=self._progress
            )
        return self._sign_counts[density]

    def shared_grams(self, view: str) -> Float64[np.ndarray, "T T 2 2"]:
        """Compute [[⟨x_a, x_a⟩, ⟨x_a, x_b⟩], [⟨x_b, x_a⟩, ⟨x_b, x_b⟩]] of every pair's gradients on the same samples.

        x_a and x_b are the gradients of the two models on the union of both tasks' samples, each sample
        classified by the head of its own task. This takes two passes per pair, where all else takes one per
        model.

        Raises:
            UserError: the view is not one of gradients, a gradient is not finite, or images or heads are missing.
        """
        if view not in shared_gradients.VIEWS:
            raise UserError(f"Expected one of the views {', '.join(shared_gradients.VIEWS)}; got {view!r}.")
        if view not in self._shared_grams:
            self._shared_grams.update(self._compute_shared_grams())
        return self._shared_grams[view]

    def _check_finite(self, view: str, layers: np.ndarray) -> None:
        squares = np.diagonal(layers, axis1=1, axis2=2).sum(0)
        for task, square in zip(self.tasks, squares, strict=True):
            if not np.isfinite(square):
                raise UserError(
                    f"The {view} of '{task}' is not finite: its model or its calibration images overflow. "
                    "Check them, or leave the model out."
                )

    def _task_vector_grams(self) -> Float64[np.ndarray, "L T T"]:
        vectors = self.task_vectors
        layers = self._grams(
            {name: vectors.parameters[name].size for name in vectors.names},
            {task: {"base": vectors.base_hash, "model": vectors.identity(task)} for task in self.tasks},
            lambda name: {"tensor": vectors.parameters[name].tensor, "start": vectors.parameters[name].start},
            vectors.read,
            "task vectors",
        )
        # Deltas are read without a look at each number: what is not finite shows in the squares.
        squares = np.diagonal(layers, axis1=1, axis2=2)
        for layer, row in zip(*np.nonzero(~np.isfinite(squares)), strict=True):
            raise vectors.not_finite(self.tasks[row], vectors.names[layer])
        vectors.check_base(dict(zip(self.tasks, np.sqrt(squares.sum(0)).tolist(), strict=True)))
        return layers

    def _activation_grams(self) -> Float64[np.ndarray, "L T T"]:
        store, keys = self._activations()
        means = [
            store.read("activation", keys[task])["images"].double().mean(0).numpy() for task in self.tasks
        ]
        rows = np.stack(means)
        return (rows @ rows.T)[None]

    def _activation_kernel_grams(self) -> Float64[np.ndarray, "L T T"]:
        store, keys = self._activations()

        # A few numbers per image: all of them fit, unlike the models.
        activations = {task: store.read("activation", keys[task])["images"].numpy() for task in self.tasks}

        def read(task: str, _name: str, start: int, stop: int) -> np.ndarray:
            return centred_kernel(activations[task], start, stop)

        return self._grams(
            {"kernel": len(activations[self.tasks[0]]) ** 2},
            keys,
            lambda name: {"activation": name},
            read,
            "activation kernels",
        )

    def _activations(self) -> tuple[Store, dict[str, dict[str, Any]]]:
        """See to it that every model's activations of the pool's images are in the store; return it and the keys."""
        vectors, views = self.task_vectors, self._required_views("activation")
        keys = {
            task: {"model": vectors.hashes[task], "of": "images", **views.activation_key, **self._settings}
            for task in self.tasks
        }
        self._ensure("activation", keys, self._activation, vectors.store)
        return vectors.store, keys

    def _activation(self, task: str) -> dict[str, Tensor]:
        views = self._required_views("activation")
        state = views.state(self.task_vectors, task, self.device)
        images = views.pool_images
        found = image_activations(
            self._encoder, state, images, layer=views.layer, batch_size=self._batch_size(state, images)
        )
        return {"images": found}

    def _encoder_gradient_grams(self) -> Float64[np.ndarray, "L T T"]:
        store, keys = self._gradients()
        read = {task: store.reader("gradient", key) for task, key in keys.items()}
        views = self._required_views("gradient")
        sizes = {name: value.numel() for name, value in views.encoder.named_parameters()}
        return self._grams(
            dict(sorted(sizes.items())),
            keys,
            lambda name: {"gradient": name},
            lambda task, name, start, stop: read[task](f"encoder.{name}", start, stop),
            "encoder gradients",
        )

    def _input_gradient_grams(self) -> Float64[np.ndarray, "L T T"]:
        views = self._required_views("gradient")
        shapes = {task: tuple(views.samples(task)[0].shape) for task in self.tasks}
        first = self.tasks[0]
        for task, shape in shapes.items():
            if shape != shapes[first]:
                raise UserError(
                    "Input gradients need as many images of one size for every task: "
                    f"'{first}' has {shapes[first]}, '{task}' has {shape}."
                )
        store, keys = self._gradients()
        read = {task: store.reader("gradient", key) for task, key in keys.items()}
        return self._grams(
            {"inputs": int(np.prod(shapes[first]))},
            keys,
            lambda name: {"gradient": name},
            lambda task, name, start, stop: read[task](name, start, stop),
            "input gradients",
        )

    def _gradients(self) -> tuple[Store, dict[str, dict[str, Any]]]:
        """See to it that every model's gradients are in a store; return it and the keys."""
        keys = self._gradient_keys()
        self._ensure("gradient", keys, self._gradient, self._gradient_store)
        return self._gradient_store, keys

    def _gradient_keys(self) -> dict[str, dict[str, Any]]:
        vectors, views = self.task_vectors, self._required_views("gradient")
        return {
            task: {"model": vectors.hashes[task], **views.gradient_key(task), **self._settings}
            for task in self.tasks
        }

    def _gradient(self, task: str) -> dict[str, Tensor]:
        gradients = self._differentiated(task, task)
        named = {f"encoder.{name}": gradient for name, gradient in gradients.encoder.items()}
        return {**named, "inputs": gradients.inputs}

    def _differentiated(self, task: str, of: str) -> Gradients:
        """Compute one model's gradients on the samples of a task, with that task's head."""
        views = self._required_views("gradient")
        images, labels = views.samples(of)
        state = views.state(self.task_vectors, task, self.device)
        return task_gradients(
            self._encoder,
            state,
            views.head(of),
            images,
            labels,
            batch_size=self._batch_size(state, images),
        )

    def _compute_shared_grams(self) -> dict[str, np.ndarray]:
        keys = self._gradient_keys()
        # Sorted by content: a pair is one entry, whichever of its models comes first.
        identities = {task: digest(key) for task, key in keys.items()}
        pairs = [
            sorted((a, b), key=lambda task: identities[task])
            for position, a in enumerate(self.tasks)
            for b in self.tasks[position:]
        ]
        count = len(self.tasks)
        found = {view: np.empty((count, count, 2, 2)) for view in shared_gradients.VIEWS}
        for a, b in self._progress(pairs, "shared gradients", len(pairs)):
            record = self.task_vectors.store.record(
                "shared_gradient",
                {"pair": [identities[a], identities[b]]},
                lambda a=a, b=b: self._shared_gradients(a, b),
            )
            i, j = self.tasks.index(a), self.tasks.index(b)
            for view, pair_grams in found.items():
                pair_grams[j, i] = np.flip(record[view])
                pair_grams[i, j] = record[view]
        return {view: _frozen(pair_grams) for view, pair_grams in found.items()}

    def _shared_gradients(self, a: str, b: str) -> dict[str, list[list[float]]]:
        """Compare two models on both tasks' samples: at most their own gradients and each other's are in memory."""
        store, keys = self._own_gradients

        def side(task: str, other: str) -> shared_gradients.Side:
            samples = len(self._required_views("gradient").samples(task)[1])
            # The diagonal: a model beside itself needs no pass.
            found = self._differentiated(task, other) if task != other else _stored(store, keys[task])
            return shared_gradients.Side(task, samples, store.reader("gradient", keys[task]), found)

        return shared_gradients.pair_grams(side(a, b), side(b, a))

    @cached_property
    def _own_gradients(self) -> tuple[Store, dict[str, dict[str, Any]]]:
        return self._gradients()

    @property
    def encoder_parameters(self) -> frozenset[str]:
        """The checkpoints' names of what the encoder has as parameters: there is Fisher information on these."""
        own = parameter_owners(self._required_views("Fisher information").encoder)
        return frozenset(name for name in self._tensors if name.removeprefix(PREFIX) in own)

    def fisher(self) -> dict[str, Read]:
        """See to it that every model's diagonal Fisher information is in a store, and return readers of it.

        F = mean over the task's own samples of the squared gradient of the cross-entropy at the true label,
        entry by entry. Read range by range: each is as large as a model.

        Raises:
            UserError: images or heads are missing, or a gradient is not finite.
        """
        store, keys = self._gradient_store, self._versioned_keys("fisher", _FISHER_VERSION)
        for task in self._progress(self.tasks, "Fisher information", len(self.tasks)):
            store.ensure("fisher", keys[task], lambda task=task: self._fisher_roots(task))

        def reader(task: str) -> Read:
            read = store.reader("fisher", keys[task])
            return lambda name, start, stop: np.square(
                read(name.removeprefix(PREFIX), start, stop), dtype=np.float64
            )

        return {task: reader(task) for task in self.tasks}

    def linear_inputs(self) -> tuple[dict[str, list[LinearPart]], dict[str, ReadGram]]:
        """See to it that the inputs of every model's linear layers are in a store, as Gram matrices XᵀX.

        X holds the inputs on the task's own images, one row per token and image. Read layer by layer: all of
        them take as much as a model or two.

        Returns:
            Checkpoints' tensor → the linear layers it holds; and task → reader of a layer's Gram matrix.

        Raises:
            UserError: images or heads are missing, or an input is not finite.
        """
        store, keys = self._gradient_store, self._versioned_keys("linear_inputs", _LINEAR_INPUTS_VERSION)
        for task in self._progress(self.tasks, "inputs of linear layers", len(self.tasks)):
            store.ensure("linear_inputs", keys[task], lambda task=task: self._linear_inputs(task))

        def reader(task: str) -> ReadGram:
            read = store.reader("linear_inputs", keys[task])
            return lambda part: (
                torch.from_numpy(read(part.key, 0, part.width**2)).double().reshape(part.width, part.width)
            )

        owners = parameter_owners(self._encoder)
        of_weight = {name: owners.get(name.removeprefix(PREFIX)) for name in self._tensors}
        found = self._linear_parts()
        parts = {
            name: [part for part in found if part.weight == weight] for name, weight in of_weight.items()
        }
        return parts, {task: reader(task) for task in self.tasks}

    def _fisher_roots(self, task: str) -> dict[str, Tensor]:
        views = self._required_views("Fisher information")
        images, labels = views.samples(task)
        head, state = views.head(task), views.state(self.task_vectors, task, self.device)
        fitting = fitting_samples(state, self._memory_budget * GIBIBYTE)
        samples_at_once = min(fitting, self._batch_size(state, images))
        try:
            return fisher_roots(self._encoder, state, head, images, labels, samples_at_once=samples_at_once)
        except UserError as error:
            raise UserError(f"The model of '{task}': {error}") from error

    def _linear_inputs(self, task: str) -> dict[str, Tensor]:
        views = self._required_views("inputs of linear layers")
        images, _ = views.samples(task)
        state = views.state(self.task_vectors, task, self.device)
        try:
            found = input_grams(self._encoder, state, images, batch_size=self._batch_size(state, images))
        except UserError as error:
            raise UserError(f"The model of '{task}': {error}") from error
        return {part.key: gram for part, gram in found.items()}

    def _linear_parts(self) -> list[LinearPart]:
        """Find the encoder's linear layers, once for all models of its architecture."""
        views, task = self._required_views("inputs of linear layers"), self.tasks[0]

        def compute() -> dict[str, Any]:
            state = views.state(self.task_vectors, task, self.device)
            found = linear_parts(self._encoder, state, views.samples(task)[0][:1])
            return {"parts": [asdict(part) for part in found]}

        encoder = views.gradient_key(task)["encoder"]
        key = {"encoder": encoder, "version": _LINEAR_INPUTS_VERSION}
        record = self.task_vectors.store.record("linear_parts", key, compute)
        return [LinearPart(**part) for part in record["parts"]]

    @property
    def _tensors(self) -> set[str]:
        """The checkpoints' tensors, however they are cut into parameters."""
        return {parameter.tensor for parameter in self.task_vectors.parameters.values()}

    def _versioned_keys(self, of: str, version: int) -> dict[str, dict[str, Any]]:
        return {task: {**key, "of": of, "of_version": version} for task, key in self._gradient_keys().items()}

    def _batch_size(self, state: Mapping[str, Tensor], images: Tensor) -> int:
        """Choose how many images pass through the encoder at a time; the same for all models."""
        if self._images_at_once is None:
            memory, at_most = self._memory_budget * GIBIBYTE, self._required_views("images").batch_size
            self._images_at_once = fitting_batch_size(self._encoder, state, images[:1], memory, at_most)
        return self._images_at_once

    @cached_property
    def _gradient_store(self) -> Store:
        """Where gradients are kept: never all in memory where they exceed the budget."""
        vectors = self.task_vectors
        size = 4 * len(self.tasks) * sum(vectors.parameters[name].size for name in vectors.names)
        if vectors.store.root is not None or size <= self._memory_budget * GIBIBYTE:
            return vectors.store
        # Removed together with these profiles.
        self._spill = _TemporaryFolder()
        return Store(self._spill.path)

    @cached_property
    def _encoder(self) -> nn.Module:
        """The encoder on the device; the one that was given stays where it is."""
        encoder = self._required_views("activation").encoder
        return encoder if self.device == "cpu" else copy.deepcopy(encoder).to(self.device)

    @property
    def _settings(self) -> dict[str, Any]:
        """What every number computed here depends on besides its input."""
        return {"device": self.device.partition(":")[0], "version": _VERSION}

    def _required_views(self, what: str) -> Views:
        if self.views is None:
            raise UserError(
                f"The {what} metrics need images and heads: give Profiles views, "
                "or ask for the metrics of weight space only."
            )
        return self.views

    def _ensure(
        self,
        kind: str,
        keys: Mapping[str, Mapping[str, Any]],
        compute: Callable[[str], Mapping[str, Tensor]],
        store: Store,
    ) -> None:
        """Compute one entry per model where it is missing, one after the other: each uses all cores or the GPU."""
        for task in self._progress(self.tasks, f"{kind}s", len(self.tasks)):
            # Dropped at once: held together, the gradients of 20 large models would fill the memory.
            store.ensure(kind, keys[task], lambda task=task: compute(task))

    def _grams(
        self,
        sizes: Mapping[str, int],
        keys: Mapping[str, Mapping[str, Any]],
        content: Callable[[str], Mapping[str, Any]],
        read: Callable[[str, str, int, int], np.ndarray],
        description: str,
    ) -> Float64[np.ndarray, "L T T"]:
        """Compute and file one Gram matrix per layer.

        Args:
            sizes: layer → length of its vectors.
            keys: task → what its vectors depend on.
            content: layer → what it consists of.
            read: (task, layer, start, stop) → that range of the vector.
            description: of the work, for the progress.
        """
        store, budget = self.task_vectors.store, self._memory_budget
        # Sorted by content: one set of models is one entry, in whatever order and under whatever names.
        identities = {task: digest(key) for task, key in keys.items()}
        owners = {identity: task for task, identity in identities.items()}
        order = sorted(owners)
        places = [order.index(identities[task]) for task in self.tasks]
        found: dict[str, np.ndarray] = {}

        def compute(name: str) -> None:
            def gram() -> dict[str, Tensor]:
                return {
                    "gram": torch.from_numpy(
                        grams.streamed_gram(
                            lambda row, start, stop: read(owners[order[row]], name, start, stop),
                            len(order),
                            sizes[name],
                            device=self.device,
                        )
                    )
                }

            key = {"models": order, **content(name), "size": sizes[name], **self._settings}
            found[name] = store.arrays("gram", key, gram)["gram"].numpy()

        work(
            list(sizes),
            compute,
            description=description,
            memory=grams.needed(len(order)),
            memory_budget=budget,
            progress=self._progress,
        )
        layers = np.stack([found[name] for name in sizes])
        return layers[:, places][:, :, places]

    def _subspaces(self, k: int) -> dict[str, np.ndarray]:
        """Compute all that follows from the singular values and vectors of all matrices."""
        if k not in self._overlaps:
            vectors = self.task_vectors
            key = {
                "base": vectors.base_hash,
                "models": [vectors.identity(task) for task in self.tasks],
                "matrices": [vectors.content(name) for name in vectors.matrices],
                "k": k,
                **self._settings,
            }
            found = vectors.store.arrays("overlap", key, lambda: self._compute_subspaces(k))
            self._overlaps[k] = {name: _frozen(array.numpy()) for name, array in found.items()}
        return self._overlaps[k]

    def _compute_subspaces(self, k: int) -> dict[str, Tensor]:
        self.decompose(k)
        vectors, count = self.task_vectors, len(self.tasks)
        longest = int(self.matrix_shapes().min(1).max(initial=0))
        found = {
            f"{side}_{end}": torch.full((len(vectors.matrices), count, count), torch.nan, dtype=torch.float64)
            for side in subspaces.SIDES
            for end in subspaces.ENDS
        }
        found["singular_values"] = torch.zeros(len(vectors.matrices), count, longest, dtype=torch.float64)

        def compare(layer: int) -> None:
            for name, values in self._compare(vectors.matrices[layer], k).items():
                found[name][layer, ..., : values.shape[-1]] = torch.from_numpy(values)

        largest = (
            8 * min(_GROUP, count) * k * (int(self.matrix_shapes().sum(1).max(initial=0)) + 4 * _GROUP * k)
        )
        work(
            range(len(vectors.matrices)),
            compare,
            description="subspaces of all pairs",
            memory=largest,
            memory_budget=self._memory_budget,
            progress=self._progress,
        )
        return found

    def decompose(self, k: int = _SUBSPACE_SIZE) -> None:
        """See to it that the singular values and outer vectors of every model's matrices are in the store."""
        vectors = self.task_vectors
        vectors.check_base()
        # Two copies of a model are one piece of work.
        owners = {vectors.identity(task): task for task in self.tasks}
        items = [(task, name) for name in vectors.matrices for task in owners.values()]
        sizes = [subspaces.needed((rows, columns)) for rows, columns in self.matrix_shapes().tolist()]
        work(
            items,
            lambda item: vectors.store.ensure(
                "singular", self._singular_key(*item, k), lambda: self._decomposed(*item, k)
            ),
            description="singular vectors",
            memory=max(sizes, default=0),
            memory_budget=self._memory_budget,
            progress=self._progress,
        )

    def _singular_key(self, task: str, name: str, k: int) -> dict[str, Any]:
        vectors = self.task_vectors
        model = {"base": vectors.base_hash, "model": vectors.identity(task)}
        return {**model, **vectors.content(name), "k": k, **self._settings}

    def _decomposed(self, task: str, name: str, k: int) -> dict[str, Tensor]:
        vectors = self.task_vectors
        size = vectors.parameters[name].size
        delta = np.empty(size, dtype=np.float32)
        # In parts: the base's values, and what a conversion makes, need not all be there beside the delta.
        for start in range(0, size, _PART):
            stop = min(start + _PART, size)
            delta[start:stop] = vectors.read(task, name, start, stop)
        delta = delta.reshape(vectors.parameters[name].shape)
        if not np.isfinite(delta).all():
            raise vectors.not_finite(task, name)
        return subspaces.decompose(delta, k, self.device)

    def _compare(self, name: str, k: int) -> dict[str, np.ndarray]:
        """Compare one matrix's subspaces between all models."""
        vectors, count = self.task_vectors, len(self.tasks)
        size = min(k, *vectors.parameters[name].shape)
        groups = [range(first, min(first + _GROUP, count)) for first in range(0, count, _GROUP)]
        found = {
            f"{side}_{end}": np.full((count, count), np.nan)
            for side in subspaces.SIDES
            for end in subspaces.ENDS
        }
        found["singular_values"] = np.zeros((count, min(vectors.parameters[name].shape)))
        for position, rows in enumerate(groups):
            left = self._read_singular(name, k, rows)
            found["singular_values"][rows] = [one["values"] for one in left]
            for columns in groups[position:]:
                right = left if columns == rows else self._read_singular(name, k, columns)
                for axis, side in enumerate(subspaces.SIDES):
                    extent = vectors.parameters[name].shape[axis]
                    for end in subspaces.ENDS:
                        overlaps = subspaces.squared_overlaps(left, right, f"{side}_{end}", (extent, size))
                        found[f"{side}_{end}"][np.ix_(rows, columns)] = overlaps
                        found[f"{side}_{end}"][np.ix_(columns, rows)] = overlaps.T
        return found

    def _read_singular(self, name: str, k: int, rows: range) -> list[dict[str, Tensor]]:
        store = self.task_vectors.store
        return [store.read("singular", self._singular_key(self.tasks[row], name, k)) for row in rows]

    def _remark_undetermined(self, side: str, end: str, k: int, overlaps: np.ndarray) -> None:
        """Say which changed matrices were left out, because their outer vectors are not determined."""
        changed = self._subspaces(k)["singular_values"].max(-1, initial=0) > 0
        missing = changed & np.isnan(np.diagonal(overlaps, axis1=1, axis2=2))
        for task, count in zip(self.tasks, missing.sum(0), strict=True):
            remark = (
                f"the {'first' if end == 'top' else 'last'} {k} {side} singular vectors of '{task}' are not "
                f"determined in {count} of {len(missing)} matrices, where singular values are zero or equal: "
                "these are left out of the overlaps of its pairs"
            )
            if count and remark not in self.remarks:
                self.remarks.append(remark)


class _TemporaryFolder:
    """A folder that is removed with the last object that holds it, without a warning."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="mergeability-gradients-")
        self.cleanup = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _stored(store: Store, key: Mapping[str, Any]) -> Gradients:
    found = store.read("gradient", key)
    inputs = found.pop("inputs")
    return Gradients({name.removeprefix("encoder."): tensor for name, tensor in found.items()}, inputs)


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a private, read-only copy: the same matrix is handed to every metric."""
    frozen = np.array(array, dtype=np.float64)
    frozen.setflags(write=False)
    return frozen
