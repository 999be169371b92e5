"""Provide the task vectors of several models as stacked deltas that are read on demand."""

import copy
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from html import escape
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.store import Store
from mergeability.task_vectors import parameters as parts
from mergeability.task_vectors.checks import BaseCheck, file_hash, warn_about_copies
from mergeability.task_vectors.deltas import Deltas
from mergeability.task_vectors.differences import Differences
from mergeability.task_vectors.factors import stacked_triplets
from mergeability.task_vectors.matching import Chosen, matched
from mergeability.task_vectors.transforms import Transform
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.hub import open_checkpoint
from mergeability.weights.in_memory import InMemory, open_in_memory
from mergeability.weights.names import VISUAL

logger = logging.getLogger(__name__)


class TaskVectors(Deltas):
    """Map parameter names to the stacked task vectors τ_t = θ_t − θ_0 of T models with the same base.

    A stack has the shape T × the parameter's shape and is read on access, so at most one parameter of all models is in
    memory. Deltas stay in memory only if all of them take at most `keep_below` bytes. Checkpoints may be float16,
    bfloat16, float32 or float64, also mixed; they are subtracted in float32. Create one with `TaskVectors.load`.

    Attributes:
        tasks: names of the models, in the order given.
        parameters: parameter (and buffer) name → its place in the checkpoints.
        hashes: task → SHA-256 of the model's file; for a model that uses the base's projection, as Hugging Face's
            `CLIPVisionModel` does, the hash of both files.
        base_hash: SHA-256 of the base's file.
        store: where values derived from the deltas are kept.
        left_out: unused tensors.
        notes: sentences about tensors that may be used unintentionally.

    Paper: Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv 2212.04089.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability import TaskVectors, checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     base = checkpoints.save(Path(folder) / "base.safetensors", {"weight": torch.tensor([5.0, 5.0])})
        ...     cars = checkpoints.save(Path(folder) / "cars.safetensors", {"weight": torch.tensor([6.0, 5.0])})
        ...     svhn = checkpoints.save(Path(folder) / "svhn.safetensors", {"weight": torch.tensor([5.0, 3.0])})
        ...     models = TaskVectors.load({"cars": cars, "svhn": svhn}, base=base)
        ...     models.tasks, models["weight"]
        (('cars', 'svhn'), tensor([[ 1.,  0.],
            [ 0., -2.]]))
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
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        if not models:
            raise UserError(
                "Expected at least one fine-tuned model, got none. Pass a mapping such as {'a': path, ...}."
            )
        completed = {task: model.completed(base) for task, model in models.items()}
        found = matched(base, completed, Chosen.of(include, exclude))
        models = found.models
        if not base.floating:
            raise UserError(
                f"Expected the weights of a model, but {base.path} contains no floating-point tensor."
            )
        store = Store(None) if store is None else store
        with ThreadPoolExecutor() as pool:
            base_hash, *files = pool.map(lambda one: file_hash(one, store), [base, *models.values()])
        hashes = {
            # If the projection is copied from the base, the model's file alone does not determine the model.
            task: digest({"file": own, "base": base_hash}) if models[task].has_lent_projection else own
            for task, own in zip(models, files, strict=True)
        }
        differences = Differences.between(base, models, found.names)
        super().__init__(differences, hashes, base_hash, store=store, keep_below=keep_below)
        self.left_out, self.notes = found.left_out, found.notes
        for one in self.left_out:
            logger.log(logging.WARNING if one.matters else logging.INFO, "%s", one)
        for note in self.notes:
            logger.warning("%s", note)
        self._base_check = BaseCheck(warn_above, refuse_above)
        warn_about_copies(self.hashes, base_hash)

    @classmethod
    def load(
        cls,
        models: Mapping[str, str | Path | Checkpoint | InMemory],
        base: str | Path | Checkpoint | InMemory,
        *,
        store: Store | None = None,
        warn_above: float | int = 0.5,
        refuse_above: float | int = 2.0,
        keep_below: int = 2**28,
        towers: str = VISUAL,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> "TaskVectors":
        """Open the base and the models that were fine-tuned from it; read only the headers of files.

        Args:
            models: task → a safetensors file, the index of several, a folder, a LoRA adapter's folder, an open
                checkpoint, a state dict, or a module.
            base: the model they were fine-tuned from.
            store: where singular factors are kept; in memory when None.
            warn_above: relative norm ‖τ‖/‖θ_0‖ above which a warning suggests that the model has another base.
            refuse_above: relative norm above which a model is an error.
            keep_below: largest size of all float32 deltas, in bytes, for which they stay in memory once read.
            towers: "visual", or "both" to read the text tower of a CLIP too.
            include: regular expressions; only tensors whose names contain a match are used.
            exclude: regular expressions; tensors whose names contain a match are not used.

        Raises:
            UserError: there is no model, a file is missing or damaged, or names or shapes differ from the base's.
        """
        store = Store(None) if store is None else store
        base = _opened(base, store, None, towers)
        opened = {task: _opened(model, store, base.origin, towers) for task, model in models.items()}
        return cls(
            base,
            opened,
            store=store,
            warn_above=warn_above,
            refuse_above=refuse_above,
            keep_below=keep_below,
            include=include,
            exclude=exclude,
        )

    def __repr__(self) -> str:
        count = sum(math.prod(shape) for shape in self.shapes.values())
        size = f"{count:,} parameters in {len(self.shapes)} tensors"
        return f"TaskVectors({', '.join(self.tasks)}; {size}, base {self.base_checkpoint.origin.name})"

    def _repr_html_(self) -> str:
        """Show the models and their lengths in a notebook."""
        norms = self.relative_norms().items()
        rows = "".join(f"<tr><td>{escape(task)}</td><td>{100 * norm:.3g} %</td></tr>" for task, norm in norms)
        head = "<tr><th>model</th><th>‖τ‖ / ‖θ_0‖</th></tr>"
        return f"<table><caption>{escape(repr(self))}</caption>{head}{rows}</table>"

    def select(self, tasks: Iterable[str]) -> "TaskVectors":
        """Return the task vectors of some tasks, in the given order; the result shares its caches with this object.

        Raises:
            UserError: a task is unknown, named twice, or none is named.
        """
        chosen = tuple(tasks)
        unknown = [task for task in chosen if task not in self.tasks]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise UserError(
                f"Expected tasks among {', '.join(self.tasks)}, each at most once, got "
                f"{', '.join(chosen) or 'none'}."
            )
        selected = self._with(models={task: self.model(task) for task in chosen})
        selected.hashes = {task: self.hashes[task] for task in chosen}
        return selected

    def with_layout(self, *, split_qkv: bool = False, matricize: str | None = None) -> "TaskVectors":
        """Return the same task vectors with another rule for splitting tensors into parameters.

        Args:
            split_qkv: one parameter each for the queries, keys and values of an attention, which open_clip
                stores one below the other in `in_proj_weight` and `in_proj_bias`.
            matricize: "conv" makes a convolution's kernel the matrix out × (in·height·width).

        Raises:
            UserError: `matricize` is something else.
        """
        parameters = parts.cut(self.parameters, split_qkv=split_qkv, matricize=matricize)
        if split_qkv and parameters.keys() == self.parameters.keys():
            logger.warning("There is no fused attention to split: no tensor is called in_proj_weight.")
        if parameters == self.parameters:
            return self
        cut = self._with(parameters=parameters)
        if self._kept is not None:
            # One name would have two shapes.
            cut._kept = {}
        return cut

    def transformed(self, transform: Transform) -> "TaskVectors":
        """Return task vectors to which `transform(task, name, delta)` is applied when they are read.

        Running statistics are not parameters and are not transformed.
        """
        changed = copy.copy(self)
        # Values derived from transformed deltas must not be stored under the models' hashes.
        changed.store = Store(None)
        previous = self._transform
        changed._transform = (
            transform
            if previous is None
            else lambda task, name, delta: transform(task, name, previous(task, name, delta))
        )
        return changed

    def assembled(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Combine parameters into the tensors of the checkpoints; this is the inverse of `with_layout`.

        Args:
            merged: parameter name → tensor of the parameter's shape, for all parameters of a tensor or none.

        Raises:
            UserError: a name is unknown, or a part of a tensor is missing.
        """
        return parts.assembled(merged, self.parameters, self.base_checkpoint.shapes)

    @cached_property
    def tied(self) -> dict[str, str]:
        """The mapping from the name of each tied tensor to the name of the tensor that it equals in all checkpoints.

        Files store tied tensors under one name each, so they are identified by their values.
        """
        named = {name: self.parameters[name] for name in self.names}
        return parts.tied_names(named, [self.base_checkpoint, *(self.model(task) for task in self.tasks)])

    def svd(
        self, name: str, rank: int | None = None
    ) -> tuple[Float[Tensor, "T m r"], Float[Tensor, "T r"], Float[Tensor, "T r n"]]:
        """Compute the leading singular triplets U, S, Vh of every model's delta of one matrix, with S descending.

        A folder store keeps half of each model's triplets, the most that a merge of two or more models takes.
        They are computed once per model, independent of the other models.

        Args:
            name: a 2-D parameter.
            rank: how many triplets to return; all min(m, n) when None.

        Raises:
            UserError: the parameter is not a matrix.
        """
        # Not stored, because hashes do not determine transformed deltas, and large factors would fill a store in
        # memory.
        keep = not self.is_transformed and (self.store.root is not None or self._kept is not None)
        return stacked_triplets(self, name, rank, keep=keep)

    def relative_norms(self) -> dict[str, float]:
        """Compute ‖τ_t‖ / ‖θ_0‖ of every model over all parameters, and cache it in the store."""
        return self._base_check.relative_norms(self)

    def check_base(self, norms: Mapping[str, float] | None = None) -> None:
        """Check that every model was fine-tuned from this base; ‖τ‖ / ‖θ_0‖ is then typically a few per cent.

        Args:
            norms: task → ‖τ‖ where it is known; computed when None.

        Raises:
            UserError: a model's task vector is longer than `refuse_above` times the base.
        """
        # Norms of transformed deltas do not describe the models.
        self._base_check.check(self, None if self.is_transformed else norms)


def _opened(
    model: str | Path | Checkpoint | InMemory, store: Store, base: str | Path | None, towers: str
) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, Mapping | nn.Module):
        return open_in_memory(model, towers)
    path = Path(model).expanduser()
    # Do not search the hub for missing files, because this function must not use the network.
    return open_checkpoint(path, store, base, towers) if path.exists() else Checkpoint.open(path)
