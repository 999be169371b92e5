"""Merge models that were fine-tuned from the same base, and save the result in the format of the inputs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeability.checks import is_number
from mergeability.errors import UserError
from mergeability.evaluation.merge import Merge, given_alpha
from mergeability.files import temporary_folder
from mergeability.members import data_free
from mergeability.merging.method import MergeMethod
from mergeability.pipeline.merge_writer import MergeWriter
from mergeability.progress import Progress, no_progress
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.verbs.defaults import method_called
from mergeability.verbs.sources import Model, Models, task_vectors
from mergeability.weights import checkpoints

DTYPES = ("float32", "float16", "bfloat16")
_OWN = "own"


@dataclass(frozen=True, repr=False)
class Merged:
    """Hold a merged model with the weights θ_0 + α·M.

    Attributes:
        merge: the models and the method.
        name: name of the method.
        alpha: the scale α.
        alpha_from: how it was chosen.
        dtype: dtype of the written weights; None for the base's own.

    Examples:
        >>> import torch
        >>> from mergeability import merge
        >>> base = {"weight": torch.tensor([10.0, 10.0])}
        >>> models = {"a": {"weight": torch.tensor([12.0, 10.0])}, "b": {"weight": torch.tensor([10.0, 14.0])}}
        >>> merged = merge(base, models, method="average")
        >>> merged
        Merged(a + b, method='average', alpha=1.0)
        >>> merged.state_dict
        {'weight': tensor([11., 12.])}
    """

    merge: Merge
    name: str
    alpha: float
    alpha_from: str
    dtype: torch.dtype | None = None

    @property
    def task_vectors(self) -> TaskVectors:
        """The task vectors of the models that are merged."""
        return self.merge.task_vectors

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The merged weights under canonical names; integer buffers are copied from the base."""
        return self.merge.state(self.alpha, dtype=self.dtype)

    @property
    def left_out(self) -> list[str]:
        """Messages about tensors that are unused, or may be used unintentionally."""
        return [*map(str, self.task_vectors.left_out), *self.task_vectors.notes]

    def save(self, folder: str | Path, *, overwrite: bool = False, progress: Progress = no_progress) -> Path:
        """Save the merged model and its card; tensors are named as in transformers if the base is a transformers model.

        The folder is written atomically.

        Args:
            folder: gets `model.safetensors`, `card.json` and `README.md`; and for transformers its configuration and
                tokenizer.
            overwrite: replace a folder that exists.
            progress: wraps the loop over tensors: (items, description, total) → the items.

        Returns:
            The folder.

        Raises:
            UserError: the folder exists, or cannot be written.
        """
        place = Path(folder).expanduser()
        check_out(place, overwrite)
        try:
            place.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot create {place.parent}: {error.strerror or error}.") from error
        write = MergeWriter(place.absolute().parent, self.task_vectors, None, self.dtype, progress=progress)
        if place.exists():
            write.write(place, self.merge, self.name, self.alpha, self.alpha_from, None)
            return place
        with temporary_folder(place.absolute()) as staging:
            write.write(staging, self.merge, self.name, self.alpha, self.alpha_from, None)
            try:
                staging.rename(place)
            except OSError as error:
                raise UserError(f"Cannot write {place}: {error.strerror or error}.") from error
        return place

    def to_json(self, folder: Path) -> str:
        """Return a JSON description of the merge, with the folder in which the merge was saved."""
        card = checkpoints.read_card(folder) or {}
        record = {
            "folder": str(folder),
            "models": list(self.task_vectors.tasks),
            "method": self.name,
            "alpha": self.alpha,
            "alpha_from": self.alpha_from,
            "sha256": card.get("sha256"),
            "left_out": self.left_out,
        }
        return json.dumps(record, indent=1)

    def __repr__(self) -> str:
        return f"Merged({' + '.join(self.task_vectors.tasks)}, method={self.name!r}, alpha={self.alpha})"


def merge(
    base: Model,
    models: Models,
    method: str | MergeMethod = "tsv",
    *,
    alpha: float | int | str | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    towers: str | None = None,
    store: str | Path | None = None,
) -> Merged:
    """Merge, without data, two or more models that were fine-tuned from the same base.

    Args:
        base: a path, an id on the Hugging Face hub, a state dict, or a module.
        models: name → model, each given in the same way or as the folder of a LoRA adapter; or a list of paths and ids.
        method: name of a merge method, or a method.
        alpha: the scale α of the merged task vector; the method's own when None.
        options: values that replace the method's defaults, such as {"density": 0.1} of "ties".
        dtype: "float32", "float16" or "bfloat16" for all floating-point tensors; the base's own when None.
        include: regular expressions; only tensors whose names contain a match are merged, others are the base's.
        exclude: regular expressions; tensors whose names contain a match are not merged.
        towers: "both" to merge the text tower of a CLIP as well.
        store: folder in which computed values are kept for the next call; in memory when None.

    Returns:
        The merged model; its `state_dict` is computed on first use.

    Raises:
        UserError: there are fewer than two models, a model cannot be read or has another base, the method is unknown,
            needs images or another number of models, or an option is invalid.

    Examples:
        >>> from mergeability import merge
        >>> from mergeability.examples import tiny_files
        >>> base, models = tiny_files()
        >>> merge(base, models, method="ties", options={"density": 0.5}).state_dict["weight"]
        tensor([[66.5000, 64.0000, 64.0000],
                [64.0000, 65.5000, 65.0000]])
    """
    chosen = method_called(method, options) if isinstance(method, str) else method
    name = method if isinstance(method, str) else type(method).__name__
    if options and not isinstance(method, str):
        raise UserError(
            "options can only be used with a method given by name; for a method object, set its attributes."
        )
    if chosen.needs_data:
        raise UserError(
            f"{name} requires images of every task. Run analyze with a suite of tasks, or choose a method that"
            f" needs no data: {', '.join(data_free())}."
        )
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"Expected dtype to be {', '.join(DTYPES)} or None, got {dtype!r}.")
    if alpha is not None and alpha != _OWN and not is_number(alpha):
        raise UserError(f"Expected alpha to be a number, or None for the method's default, got {alpha!r}.")
    kept = Store(None if store is None else str(store))
    vectors = task_vectors(base, models, kept, include=include, exclude=exclude, towers=towers)
    if chosen.models is not None and len(vectors.tasks) != chosen.models:
        raise UserError(f"{name} merges exactly {chosen.models} models, got {len(vectors.tasks)}.")
    one = Merge(vectors, chosen)
    value, source = given_alpha(_OWN if alpha is None else alpha, one)
    return Merged(one, name, value, source, None if dtype is None else getattr(torch, dtype))


def check_out(place: Path, overwrite: bool) -> None:
    """Raise an error if a folder exists and may not be overwritten.

    Raises:
        UserError: it exists and is not empty.
    """
    if place.is_file():
        raise UserError(f"{place} is a file: give a folder.")
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise UserError(
            f"{place} exists. Choose another folder, or overwrite it with --overwrite (command line) or "
            "overwrite=True (Python)."
        )
