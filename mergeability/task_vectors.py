"""What fine-tuning changed: per parameter, the stack of all models' deltas from the base, read on demand."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.checkpoints import Checkpoint
from mergeability.errors import UserError
from mergeability.store import Store

logger = logging.getLogger(__name__)

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 1
_RUNNING_STATISTICS = ("running_mean", "running_var")


def is_running_statistic(name: str) -> bool:
    """Say whether a tensor is a batch norm's running mean or variance: state, not a parameter."""
    return name.rsplit(".", 1)[-1] in _RUNNING_STATISTICS


class TaskVectors(Mapping[str, Tensor]):
    """Task vectors τ_t = θ_t − θ_0 of several models from one base, as a mapping parameter name → stack.

    Lazy: a stack is read when it is asked for. Deltas and singular factors stay in memory only where all of
    the deltas take less than `keep_below` bytes. Make one with `TaskVectors.load`.

    Attributes:
        tasks: names of the models, in the order given.
        names: floating-point parameters, sorted; integer tensors and running statistics are left out.
        buffers: floating-point running statistics of batch norms.
        shapes: parameter (and buffer) name → shape.
        matrices: the names of the 2-D parameters.
        hashes: task → SHA-256 of the model's file.
        base_hash: SHA-256 of the base's file.
    """

    def __init__(
        self,
        base: Checkpoint,
        models: Mapping[str, Checkpoint],
        *,
        store: Store | None = None,
        warn_above: float | int = 0.5,
        refuse_above: float | int = 2.0,
        keep_below: int = 2**28,
    ) -> None:
        if not models:
            raise UserError(
                "Expected at least one fine-tuned model, got none: name them as {'a': path, ...}."
            )
        for task, model in models.items():
            _check_same_architecture(task, model, base)
        floating = [name for name in base.names if base.dtypes[name].is_floating_point]
        self.tasks: tuple[str, ...] = tuple(models)
        self.names = tuple(name for name in floating if not is_running_statistic(name))
        self.buffers = tuple(name for name in floating if is_running_statistic(name))
        self.shapes = {name: tuple(base.shapes[name]) for name in floating}
        self.matrices = tuple(name for name in self.names if len(self.shapes[name]) == 2)
        self.base_hash: str = base.sha256
        self.hashes: dict[str, str] = {task: model.sha256 for task, model in models.items()}
        self.store = Store(None) if store is None else store
        self._base, self._models = base, dict(models)
        self._warn_above, self._refuse_above = warn_above, refuse_above
        self._transform: Callable[[str, str, Tensor], Tensor] | None = None
        size = sum(_count(shape) for shape in self.shapes.values()) * 4 * len(models)
        self._kept: dict[tuple[str, str, str], Tensor] | None = {} if size <= keep_below else None
        self._relative_norms: dict[str, float] = {}
        _warn_about_copies(self.hashes)

    @classmethod
    def load(
        cls,
        models: Mapping[str, str | Path | Checkpoint],
        base: str | Path | Checkpoint,
        *,
        store: Store | None = None,
        warn_above: float | int = 0.5,
        refuse_above: float | int = 2.0,
        keep_below: int = 2**28,
    ) -> "TaskVectors":
        """Open the base and the models fine-tuned from it; nothing but headers is read yet.

        Args:
            models: task → safetensors file (or an open checkpoint).
            base: the model they were fine-tuned from.
            store: where singular factors are kept; in memory when None.
            warn_above: relative norm ‖τ‖/‖θ_0‖ above which a model is suspected to have another base.
            refuse_above: relative norm above which it is refused.
            keep_below: bytes of float32 deltas up to which they stay in memory once read.

        Raises:
            UserError: no model, a missing or damaged file, or keys or shapes that differ from the base's.
        """
        opened = {task: _opened(model) for task, model in models.items()}
        return cls(
            _opened(base),
            opened,
            store=store,
            warn_above=warn_above,
            refuse_above=refuse_above,
            keep_below=keep_below,
        )

    def __getitem__(self, name: str) -> Tensor:
        return self.stack(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    # Mapping compares by value, which would read every tensor.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def stack(self, name: str) -> Float[Tensor, "T *shape"]:
        """Read one parameter's deltas of all models, in float32; the caller owns the result.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        return torch.stack(list(self._deltas(name)))

    def base(self, name: str) -> Tensor:
        """Read one of the base's tensors, in the base's own dtype."""
        return self._base.tensor(name)

    @property
    def base_checkpoint(self) -> Checkpoint:
        """The open checkpoint of the base model."""
        return self._base

    def model(self, task: str) -> Checkpoint:
        """Return the open checkpoint of one fine-tuned model."""
        return self._models[task]

    def select(self, tasks: Iterable[str]) -> "TaskVectors":
        """Return the same task vectors for some of the tasks, in the order given; memory is shared.

        Raises:
            UserError: a task is unknown, named twice, or none is named.
        """
        chosen = tuple(tasks)
        unknown = [task for task in chosen if task not in self._models]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise UserError(
                f"Expected distinct tasks out of {', '.join(self.tasks)}; got {', '.join(chosen) or 'none'}."
            )
        selected = copy.copy(self)
        selected.tasks = chosen
        selected.hashes = {task: self.hashes[task] for task in chosen}
        selected._models = {task: self._models[task] for task in chosen}
        return selected

    def transformed(self, transform: Callable[[str, str, Tensor], Tensor]) -> "TaskVectors":
        """Return task vectors that are `transform(task, name, delta)` of these, as they are read.

        Running statistics are no parameters and stay as they are.
        """
        changed = copy.copy(self)
        # Whatever is derived from changed deltas must not be filed under the models' hashes.
        changed.store = Store(None)
        previous = self._transform
        changed._transform = (
            transform
            if previous is None
            else lambda task, name, delta: transform(task, name, previous(task, name, delta))
        )
        return changed

    def svd(
        self, name: str, rank: int | None = None
    ) -> tuple[Float[Tensor, "T m r"], Float[Tensor, "T r"], Float[Tensor, "T r n"]]:
        """Decompose one matrix's deltas: thin U, S, Vh of every model in float32, S descending.

        Each model's factors are computed once and kept in the store, whichever models they are stacked with.

        Args:
            name: a 2-D parameter.
            rank: how many leading triplets to return; all min(m, n) when None.

        Raises:
            UserError: the parameter is not a matrix.
        """
        if len(self.shapes[name]) != 2:
            raise UserError(f"Expected a matrix, got '{name}' of shape {self.shapes[name]}.")
        factors = [self._factors(task, name) for task in self.tasks]
        return (
            torch.stack([one["U"][:, :rank] for one in factors]),
            torch.stack([one["S"][:rank] for one in factors]),
            torch.stack([one["Vh"][:rank] for one in factors]),
        )

    def relative_norms(self) -> dict[str, float]:
        """Compute ‖τ_t‖ / ‖θ_0‖ of every model over all parameters, once per model; kept in the store."""
        for task in self.tasks:
            if self.hashes[task] not in self._relative_norms:
                key = {"base": self.base_hash, "model": self.hashes[task], "version": _VERSION}
                record = self.store.record("relative_norm", key, lambda task=task: self._norms(task))
                self._relative_norms[self.hashes[task]] = _ratio(record["task_vector"], record["base"])
        return {task: self._relative_norms[self.hashes[task]] for task in self.tasks}

    def check_base(self) -> None:
        """Check that every model can come from this base: ‖τ‖/‖θ_0‖ is a few percent after fine-tuning.

        Raises:
            UserError: a model's task vector is longer than `refuse_above` times the base.
        """
        unchecked = [task for task in self.tasks if self.hashes[task] not in self._relative_norms]
        for task, norm in self.relative_norms().items():
            if norm > self._refuse_above:
                raise UserError(
                    f"The model of '{task}' was not fine-tuned from this base: its task vector is {norm:.3g} "
                    f"times as long as the base, at most {self._refuse_above:g} is accepted. "
                    "Give the checkpoint it was started from."
                )
            if norm > self._warn_above and task in unchecked:
                logger.warning(
                    "The task vector of '%s' is %.3g times as long as the base (over %g): is this its base?",
                    task,
                    norm,
                    self._warn_above,
                )

    def _deltas(self, name: str) -> Iterator[Tensor]:
        base = None
        for task in self.tasks:
            delta = None if self._kept is None else self._kept.get((self.hashes[task], name, "delta"))
            if delta is None:
                if base is None:
                    base = _finite(self.base(name).float(), "base model", name)
                delta = _finite(self._models[task].tensor(name).float(), f"model of '{task}'", name) - base
                if self._kept is not None:
                    self._kept[self.hashes[task], name, "delta"] = delta
            if self._transform is not None and not is_running_statistic(name):
                delta = self._transform(task, name, delta)
            yield delta

    def _factors(self, task: str, name: str) -> Mapping[str, Tensor]:
        if self._transform is not None:
            # What a transformation gives is not known by the model's hash.
            return _thin_svd(self._delta(task, name))
        model = self.hashes[task]
        if self._kept is not None and (model, name, "U") in self._kept:
            return {factor: self._kept[model, name, factor] for factor in ("U", "S", "Vh")}
        key = {"base": self.base_hash, "model": model, "tensor": name, "version": _VERSION}
        factors = self.store.arrays("svd", key, lambda: _thin_svd(self._delta(task, name)))
        if self._kept is not None:
            self._kept.update({(model, name, factor): value for factor, value in factors.items()})
        return factors

    def _delta(self, task: str, name: str) -> Tensor:
        return next(self.select([task])._deltas(name))

    def _norms(self, task: str) -> dict[str, float]:
        squares = {"task_vector": 0.0, "base": 0.0}
        # Of the models as they are, before any transformation.
        own = self.select([task])
        own._transform = None
        for name in self.names:
            squares["task_vector"] += _square_sum(next(own._deltas(name)))
            squares["base"] += _square_sum(self.base(name))
        return {part: square**0.5 for part, square in squares.items()}


def _opened(model: str | Path | Checkpoint) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else Checkpoint.open(model)


def _check_same_architecture(task: str, model: Checkpoint, base: Checkpoint) -> None:
    expected, given = _floating(base), _floating(model)
    missing, extra = sorted(expected - given), sorted(given - expected)
    if missing or extra:
        parts = [f"lacks {len(missing)} such as '{missing[0]}'"] if missing else []
        parts += [f"has {len(extra)} the base lacks, such as '{extra[0]}'"] if extra else []
        raise UserError(
            f"Expected the same floating-point tensors in the model of '{task}' as in the base: "
            f"it {' and '.join(parts)}. Give state dicts of one architecture under the same names."
        )
    for name in sorted(expected):
        if tuple(model.shapes[name]) != tuple(base.shapes[name]):
            raise UserError(
                f"'{name}' has shape {tuple(model.shapes[name])} in the model of '{task}' and "
                f"{tuple(base.shapes[name])} in the base: another architecture. Give models of one."
            )


def _floating(checkpoint: Checkpoint) -> set[str]:
    return {name for name in checkpoint.names if checkpoint.dtypes[name].is_floating_point}


def _warn_about_copies(hashes: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for task, sha256 in hashes.items():
        if sha256 in first:
            logger.warning("'%s' and '%s' are the same file twice.", first[sha256], task)
        first.setdefault(sha256, task)


def _finite(tensor: Tensor, owner: str, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"Expected finite weights, but '{name}' of the {owner} holds NaN or infinite values. "
            "Train or export it anew."
        )
    return tensor


def _thin_svd(matrix: Float[Tensor, "m n"]) -> dict[str, Tensor]:
    try:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        # The divide and conquer driver can fail on clusters of equal singular values in float32.
        U, S, Vh = (factor.float() for factor in torch.linalg.svd(matrix.double(), full_matrices=False))
    return {"U": U, "S": S, "Vh": Vh}


def _square_sum(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64) ** 2)


def _ratio(length: float, reference: float) -> float:
    if length == 0:
        return 0.0
    return length / reference if reference > 0 else float("inf")


def _count(shape: Iterable[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
