"""What fine-tuning changed: per parameter, the stack of all models' deltas from the base, read on demand."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.linalg.decompositions import leading_triplets
from mergeability.store import Store
from mergeability.weights.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 2
# A file this many seconds old will not be written again within the resolution of its time stamps.
_SETTLED = 2
# Elements that are read at a time where a whole tensor is not needed.
_BLOCK = 2**18
# Elements that tell most tensors apart.
_GLANCE = 16
_RUNNING_STATISTICS = ("running_mean", "running_var")


def is_running_statistic(name: str) -> bool:
    """Say whether a tensor is a batch norm's running mean or variance: state, not a parameter."""
    return name.rsplit(".", 1)[-1] in _RUNNING_STATISTICS


@dataclass(frozen=True)
class Parameter:
    """One parameter as the metrics see it: a range of a flattened tensor of the checkpoints, in some shape.

    Attributes:
        tensor: the checkpoints' tensor.
        start: the first of its elements.
        shape: the parameter's shape.
    """

    tensor: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TaskVectors(Mapping[str, Tensor]):
    """Task vectors τ_t = θ_t − θ_0 of several models from one base, as a mapping parameter name → stack.

    Lazy: a stack is read when it is asked for, so no more than one parameter of all models is held. Deltas
    stay in memory only where all of them take less than `keep_below` bytes.
    Checkpoints in float16, bfloat16 or float64, mixed too, are read as they are and subtracted in float32.
    Make one with `TaskVectors.load`.

    Attributes:
        tasks: names of the models, in the order given.
        parameters: parameter (and buffer) name → where it lies in the checkpoints.
        hashes: task → SHA-256 of the model's file; of its and the base's where the model has no projection of its
            own, as Hugging Face's `CLIPVisionModel`: it then is the base's.
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
        models = {task: model.completed(base) for task, model in models.items()}
        for task, model in models.items():
            _check_same_architecture(task, model, base)
        floating = [name for name in base.names if base.dtypes[name].is_floating_point]
        if not floating:
            raise UserError(f"{base.path} has no floating-point tensor: expected the weights of a model.")
        self.tasks: tuple[str, ...] = tuple(models)
        self.parameters = {name: Parameter(name, 0, tuple(base.shapes[name])) for name in floating}
        self.store = Store(None) if store is None else store
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(lambda one: _file_hash(one, self.store), [base, *models.values()]))
        self.base_hash: str = hashes[0]
        self.hashes: dict[str, str] = {
            # A model's own file does not say what it is where the projection is the base's.
            task: digest({"file": own, "base": hashes[0]}) if models[task].has_lent_projection else own
            for task, own in zip(models, hashes[1:], strict=True)
        }
        self._base, self._models = base, dict(models)
        self._warn_above, self._refuse_above = warn_above, refuse_above
        self._transform: Callable[[str, str, Tensor], Tensor] | None = None
        size = sum(one.size for one in self.parameters.values()) * 4 * len(models)
        self._kept: dict[tuple[str, str], Tensor] | None = {} if size <= keep_below else None
        self._relative_norms: dict[str, float] = {}
        _warn_about_copies(self.hashes)

    @property
    def names(self) -> tuple[str, ...]:
        """Floating-point parameters, sorted; integer tensors and running statistics are left out."""
        return tuple(sorted(name for name in self.parameters if not is_running_statistic(name)))

    @property
    def buffers(self) -> tuple[str, ...]:
        """Floating-point running statistics of batch norms, sorted."""
        return tuple(sorted(name for name in self.parameters if is_running_statistic(name)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter (and buffer) name → shape."""
        return {name: one.shape for name, one in self.parameters.items()}

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the 2-D parameters, sorted; those without elements are left out."""
        return tuple(
            name
            for name in self.names
            if len(self.parameters[name].shape) == 2 and self.parameters[name].size
        )

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
        if self._kept is not None or self._transform is not None:
            return torch.stack(list(self._deltas(name)))
        # Straight into the stack: no delta is copied.
        base = self.base(name).float()
        stacked = torch.empty((len(self.tasks), *base.shape))
        for row, task in zip(stacked, self.tasks, strict=True):
            torch.sub(self._part(self._models[task], name).float(), base, out=row)
            if not torch.isfinite(row.sum()):
                self._check_finite(task, name)
        return stacked

    def read(
        self, task: str, name: str, start: int = 0, stop: int | None = None
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of one model's flattened delta, in float32: only these bytes of the two files.

        What is not finite comes as it is: summed squares tell, in one pass over the data instead of two.
        """
        parameter = self.parameters[name]
        stop = parameter.size if stop is None else stop
        if self._transform is not None:
            return self.delta(task, name).flatten()[start:stop].numpy()
        first, last = parameter.start + start, parameter.start + stop
        # Without warnings of ∞ − ∞ and the like: whoever reads looks for them.
        with np.errstate(invalid="ignore", over="ignore"):
            delta = self._models[task].values(parameter.tensor, first, last)
            np.subtract(delta, self._base.values(parameter.tensor, first, last), out=delta)
        return delta

    def not_finite(self, task: str, name: str) -> UserError:
        """Return the error for a delta that is not finite: it says whether the model or the base is to blame."""
        try:
            self.delta(task, name)
        except UserError as error:
            return error
        return UserError(
            f"The change of '{name}' in the model of '{task}' is beyond the range of float32. "
            "Give the base it was trained from."
        )

    def read_base(
        self, name: str, start: int = 0, stop: int | None = None
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of one of the base's flattened parameters, in float32."""
        parameter = self.parameters[name]
        stop = parameter.size if stop is None else stop
        return self._base.values(parameter.tensor, parameter.start + start, parameter.start + stop)

    @property
    def layout(self) -> str | None:
        """A digest of how the checkpoints' tensors are cut into parameters; None where they are taken as they are."""
        natural = all(
            one.tensor == name and one.shape == tuple(self._base.shapes[name])
            if name in self._base.shapes
            else False
            for name, one in self.parameters.items()
        )
        return None if natural else digest({name: self.content(name) for name in self.parameters})

    @property
    def is_transformed(self) -> bool:
        """Whether deltas are changed as they are read: each read then takes a whole tensor."""
        return self._transform is not None

    def identity(self, task: str) -> str:
        """Return what tells one model's deltas from all others: its hash, with its name once transformed."""
        return self.hashes[task] if self._transform is None else f"{self.hashes[task]} {task}"

    def content(self, name: str) -> dict[str, Any]:
        """Say which numbers of a checkpoint a parameter consists of: part of a store's key."""
        parameter = self.parameters[name]
        return {"tensor": parameter.tensor, "start": parameter.start, "shape": list(parameter.shape)}

    def base(self, name: str) -> Tensor:
        """Read one of the base's parameters, in the base's own dtype."""
        return self._part(self._base, name)

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
        selected = self._copy()
        selected.tasks = chosen
        selected.hashes = {task: self.hashes[task] for task in chosen}
        selected._models = {task: self._models[task] for task in chosen}
        return selected

    def arranged(self, *, split_qkv: bool = False, matricize: str | None = None) -> "TaskVectors":
        """Return the same numbers cut into other parameters.

        Args:
            split_qkv: one parameter each for the queries, keys and values of an attention, which open_clip
                stores one below the other in `in_proj_weight` and `in_proj_bias`.
            matricize: "conv" makes a convolution's kernel the matrix out × (in·height·width).

        Raises:
            UserError: `matricize` is something else.
        """
        if matricize not in (None, "conv"):
            raise UserError(f"Expected matricize to be 'conv' or null, got {matricize!r}.")
        arranged = self._copy()
        arranged.parameters = {}
        for name, whole in self.parameters.items():
            parts = _split(name, whole) if split_qkv else {name: whole}
            for part, parameter in parts.items():
                arranged.parameters[part] = _as_matrix(parameter) if matricize == "conv" else parameter
        if split_qkv and arranged.parameters.keys() == self.parameters.keys():
            logger.warning("There is no fused attention to split: no tensor is called in_proj_weight.")
        if arranged.parameters == self.parameters:
            return self
        if self._kept is not None:
            # Under one name there would be two shapes.
            arranged._kept = {}
        return arranged

    def assembled(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put tensors named as these parameters are together again, as the checkpoints hold them.

        Args:
            merged: parameter name → tensor of the parameter's shape, for all parameters of a tensor or none.

        Raises:
            UserError: a name is unknown, or a part of a tensor is missing.
        """
        parts: dict[str, list[str]] = {}
        for name in merged:
            if name not in self.parameters:
                raise UserError(f"'{name}' is none of the models' parameters.")
            parts.setdefault(self.parameters[name].tensor, []).append(name)
        whole = {}
        for tensor, names in parts.items():
            names.sort(key=lambda name: self.parameters[name].start)
            shape = tuple(self._base.shapes[tensor])
            pieces = [merged[name].flatten() for name in names]
            if sum(len(piece) for piece in pieces) != math.prod(shape):
                raise UserError(f"Parts of '{tensor}' are missing: there are only {', '.join(names)}.")
            whole[tensor] = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(shape)
        return whole

    @cached_property
    def tied(self) -> dict[str, str]:
        """Names of tensors that hold what another one holds, in the base and in every model → that other one.

        A file has no two names for one tensor: tied weights are found by their values.
        """
        found: dict[str, str] = {}
        first_values: dict[Any, list[str]] = {}
        for name in self.names:
            glance = tuple(self.read_base(name, 0, min(_GLANCE, self.parameters[name].size)).tolist())
            first_values.setdefault((self.parameters[name].shape, glance), []).append(name)
        for alike in first_values.values():
            for position, name in enumerate(alike):
                owner = next((one for one in alike[:position] if self._same(one, name)), None)
                if owner is not None:
                    found[name] = found.get(owner, owner)
        return found

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
        """Decompose one matrix's deltas: the leading triplets U, S, Vh of every model in float32, S descending.

        A folder store keeps half of each model's triplets, the most that a merge of two or more models takes.
        They are computed once, whichever models they are stacked with.

        Args:
            name: a 2-D parameter.
            rank: how many triplets to return; all min(m, n) when None.

        Raises:
            UserError: the parameter is not a matrix.
        """
        shape = self.parameters[name].shape
        if len(shape) != 2:
            raise UserError(f"Expected a matrix, got '{name}' of shape {shape}.")
        wanted = min(shape) if rank is None else min(rank, *shape)
        factors = [self._factors(task, name, wanted) for task in self.tasks]
        return (
            torch.stack([one["U"][:, :wanted] for one in factors]),
            torch.stack([one["S"][:wanted] for one in factors]),
            torch.stack([one["Vh"][:wanted] for one in factors]),
        )

    def relative_norms(self) -> dict[str, float]:
        """Compute ‖τ_t‖ / ‖θ_0‖ of every model over all parameters, once per model; kept in the store."""
        for task in self.tasks:
            self._relative_norm(task, lambda task=task: self._norms(task))
        return {task: self._relative_norms[self.hashes[task]] for task in self.tasks}

    def check_base(self, norms: Mapping[str, float] | None = None) -> None:
        """Check that every model can come from this base: ‖τ‖/‖θ_0‖ is a few percent after fine-tuning.

        Args:
            norms: task → ‖τ‖ where it is known; computed when None.

        Raises:
            UserError: a model's task vector is longer than `refuse_above` times the base.
        """
        unchecked = [task for task in self.tasks if self.hashes[task] not in self._relative_norms]
        if norms is not None and self._transform is None:
            for task, norm in norms.items():
                self._relative_norm(task, lambda norm=norm: {"task_vector": norm, "base": self._base_norm()})
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

    def _relative_norm(self, task: str, compute: Callable[[], Mapping[str, Any]]) -> None:
        if self.hashes[task] not in self._relative_norms:
            key = {"base": self.base_hash, "model": self.hashes[task], "version": _VERSION}
            record = self.store.record("relative_norm", key, compute)
            self._relative_norms[self.hashes[task]] = _ratio(record["task_vector"], record["base"])

    def _copy(self) -> "TaskVectors":
        copied = copy.copy(self)
        # What is tied depends on the models and on how their tensors are cut.
        copied.__dict__.pop("tied", None)
        return copied

    def _same(self, a: str, b: str) -> bool:
        """Say whether two parameters hold the same values in the base and in every model."""

        def values(checkpoint: Checkpoint, name: str, stop: int) -> np.ndarray:
            parameter = self.parameters[name]
            return checkpoint.values(parameter.tensor, parameter.start, parameter.start + stop)

        checkpoints = [*self._models.values(), self._base]
        size = self.parameters[a].size
        return all(
            np.array_equal(values(one, a, stop), values(one, b, stop))
            for stop in (min(_GLANCE, size), size)
            for one in checkpoints
        )

    def _part(self, checkpoint: Checkpoint, name: str) -> Tensor:
        parameter = self.parameters[name]
        tensor = checkpoint.tensor(parameter.tensor)
        if tuple(tensor.shape) == parameter.shape:
            return tensor
        return tensor.flatten()[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)

    def _deltas(self, name: str) -> Iterator[Tensor]:
        if self._transform is not None and not is_running_statistic(name):
            yield from self._transformed_deltas(name, self._transform)
            return
        base = None
        for task in self.tasks:
            delta = None if self._kept is None else self._kept.get((self.hashes[task], name))
            if delta is None:
                if base is None:
                    base = self.base(name).float()
                delta = self._part(self._models[task], name).float() - base
                # One sum tells in a fraction of the time that a look at each number takes.
                if not torch.isfinite(delta.sum()):
                    self._check_finite(task, name)
                if self._kept is not None:
                    self._kept[self.hashes[task], name] = delta
            yield delta

    def _check_finite(self, task: str, name: str) -> None:
        """Refuse what is NaN or infinite; a sum of finite numbers may be infinite too."""
        base = _finite(self.base(name).float(), "base model", name)
        model = _finite(self._part(self._models[task], name).float(), f"model of '{task}'", name)
        if not torch.isfinite(model - base).all():
            raise UserError(
                f"The change of '{name}' in the model of '{task}' is beyond the range of float32. "
                "Give the base it was trained from."
            )

    def _transformed_deltas(
        self, name: str, transform: Callable[[str, str, Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Transform the checkpoints' whole tensor, then cut: the same numbers in whatever layout."""
        parameter = self.parameters[name]
        plain = copy.copy(self)
        plain._transform = None
        shape = tuple(self._base.shapes[parameter.tensor])
        plain.parameters = {parameter.tensor: Parameter(parameter.tensor, 0, shape)}
        if shape != parameter.shape and self._kept is not None:
            plain._kept = {}
        for task, delta in zip(self.tasks, plain._deltas(parameter.tensor), strict=True):
            changed = transform(task, parameter.tensor, delta).flatten()
            yield changed[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)

    def _factors(self, task: str, name: str, rank: int) -> Mapping[str, Tensor]:
        half = min(self.parameters[name].shape) // 2
        if self._transform is not None or (self.store.root is None and self._kept is None):
            # What a transformation gives is not known by the model's hash; large factors fill no memory.
            return _triplets(self.delta(task, name), rank)
        kept = half if rank <= half else min(self.parameters[name].shape)
        key = {
            "base": self.base_hash,
            "model": self.hashes[task],
            **self.content(name),
            "rank": kept,
            "version": _VERSION,
        }
        return self.store.arrays("svd", key, lambda: _triplets(self.delta(task, name), kept))

    def delta(self, task: str, name: str) -> Float[Tensor, " *shape"]:
        """Read one model's delta of one parameter, in float32.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        return next(self.select([task])._deltas(name))

    def _norms(self, task: str) -> dict[str, float]:
        # Of the model as it is, before any transformation.
        own = self.select([task])
        own._transform = None
        square = 0.0
        for name in own.names:
            of_tensor = self._square_sum(name, lambda *part: own.read(task, *part))
            if not np.isfinite(of_tensor):
                raise own.not_finite(task, name)
            square += of_tensor
        return {"task_vector": square**0.5, "base": self._base_norm()}

    def _square_sum(self, name: str, read: Callable[[str, int, int], np.ndarray]) -> float:
        size, square = self.parameters[name].size, 0.0
        for start in range(0, size, _BLOCK):
            block = read(name, start, min(start + _BLOCK, size)).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                square += float(block @ block)
        return square

    def _base_norm(self) -> float:
        def compute() -> dict[str, float]:
            return {"norm": sum(self._square_sum(name, self.read_base) for name in self.names) ** 0.5}

        return self.store.record("base_norm", {"base": self.base_hash, "version": _VERSION}, compute)["norm"]


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


def _triplets(matrix: Float[Tensor, "m n"], rank: int) -> dict[str, Tensor]:
    return dict(zip(("U", "S", "Vh"), leading_triplets(matrix, rank), strict=True))


def _ratio(length: float, reference: float) -> float:
    if length == 0:
        return 0.0
    return length / reference if reference > 0 else float("inf")


def _split(name: str, whole: Parameter) -> dict[str, Parameter]:
    """Cut a fused attention projection into its queries, keys and values."""
    stem, _, last = name.rpartition(".")
    if last not in ("in_proj_weight", "in_proj_bias") or whole.shape[0] % 3:
        return {name: whole}
    shape = (whole.shape[0] // 3, *whole.shape[1:])
    kind = last.removeprefix("in_proj_")
    return {
        f"{stem}.{part}_proj_{kind}": Parameter(
            whole.tensor, whole.start + position * math.prod(shape), shape
        )
        for position, part in enumerate("qkv")
    }


def _as_matrix(parameter: Parameter) -> Parameter:
    if len(parameter.shape) != 4:
        return parameter
    rows = parameter.shape[0]
    return Parameter(parameter.tensor, parameter.start, (rows, math.prod(parameter.shape[1:])))


def _file_hash(checkpoint: Checkpoint, store: Store) -> str:
    """Hash a checkpoint's file, or find the hash again while the file has not been touched since."""
    status = checkpoint.path.stat()
    # The change time cannot be set back, unlike the modification time, which copying tools restore.
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    if store.root is None or time.time_ns() - newest < _SETTLED * 10**9:
        return checkpoint.sha256
    stamp = {
        "device": status.st_dev,
        "file": status.st_ino,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "changed": status.st_ctime_ns,
    }
    # A store of its own: the counts of the other one are of results.
    notes = Store(store.root)
    return notes.record("file_hash", stamp, lambda: {"sha256": checkpoint.sha256})["sha256"]
