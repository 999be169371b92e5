"""Open the models that `compare`, `predict` and `merge` accept: paths, hub ids, state dicts and modules."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from torch import nn

from mergeability.checks import check_path_part, clean_names
from mergeability.errors import UserError
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.verbs.defaults import suite_options
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.folders import WEIGHTS
from mergeability.weights.hub import open_checkpoint
from mergeability.weights.in_memory import InMemory, open_in_memory, write_in_memory

Model: TypeAlias = str | PathLike[str] | InMemory
Models: TypeAlias = Mapping[str, Model] | Sequence[Model]

# Generic file names, for which the folder's name is used instead.
_COMMON = {Path(name).stem for name in WEIGHTS} | {
    "adapter_model",
    "model.safetensors.index",
    "pytorch_model.bin.index",
}


def named(models: Models) -> dict[str, Model]:
    """Return a name for every model: its key, the name of its file or folder, or the last part of its hub id.

    Args:
        models: name → model, or a list of paths and hub ids.

    Returns:
        Name → model.

    Raises:
        UserError: two names are the same, a name cannot be a folder's, or a model in memory has no name.

    Examples:
        >>> from mergeability.verbs.sources import named
        >>> list(named(["cars.safetensors", "runs/svhn/model.safetensors", "owner/clip-dtd"]))
        ['cars', 'svhn', 'clip-dtd']
    """
    if isinstance(models, str | PathLike | nn.Module):
        raise UserError(f"Expected a list of models or a mapping from names to models, got {models!r}.")
    if isinstance(models, Mapping):
        found = {name: models[given] for name, given in clean_names(models, "models").items()}
    else:
        found = {}
        for model in models:
            name = _name_of(model)
            if name in found:
                raise UserError(
                    f"Two models have the same name {name!r}: {found[name]} and {model}. Give names: NAME=PATH on the "
                    "command line, {'a': …, 'b': …} in Python."
                )
            found[name] = model
    for name in found:
        check_path_part("name of a model", name)
    return found


def _name_of(model: Model) -> str:
    if not isinstance(model, str | PathLike):
        raise UserError(
            "Models in memory need names. Pass a mapping from names to models, such as"
            " {'a': state_dict, 'b': module}."
        )
    path = Path(model)
    if path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json"):
        return path.absolute().parent.name if path.stem in _COMMON else path.stem
    return path.absolute().name


def task_vectors(
    base: Model,
    models: Models,
    store: Store,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    towers: str | None = None,
) -> TaskVectors:
    """Open two or more models and their base.

    Args:
        base: the model they were fine-tuned from.
        models: name → model, or a list of paths and hub ids.
        store: where converted files and derived values are kept.
        include: regular expressions; only tensors whose names contain a match are used.
        exclude: regular expressions; tensors whose names contain a match are not used.
        towers: "visual", or "both" to read the text tower of a CLIP too.

    Raises:
        UserError: there are fewer than two models, or one cannot be read or does not belong to the base.

    Examples:
        >>> import torch
        >>> from mergeability.store import Store
        >>> from mergeability.verbs.sources import task_vectors
        >>> state = {"weight": torch.tensor([10.0, 10.0])}
        >>> models = {"a": {"weight": torch.tensor([11.0, 10.0])}, "b": {"weight": torch.tensor([10.0, 12.0])}}
        >>> task_vectors(state, models, Store())["weight"]
        tensor([[1., 0.],
                [0., 2.]])
    """
    options = suite_options("checkpoints")
    towers = towers or str(options["towers"])
    opened_base = _opened(base, store, None, towers)
    several = named(models)
    if len(several) < 2:
        raise UserError(
            f"Expected at least two models and the base they were fine-tuned from, got {len(several)}"
            f"{': ' if several else ''}{', '.join(several)}."
        )
    return TaskVectors.load(
        {name: _opened(model, store, opened_base.origin, towers) for name, model in several.items()},
        base=opened_base,
        store=store,
        include=include,
        exclude=exclude,
        towers=towers,
        warn_above=options["warn_above"],
        refuse_above=options["refuse_above"],
    )


def _opened(model: Model, store: Store, base: Path | None, towers: str) -> Checkpoint:
    if isinstance(model, str | PathLike):
        return open_checkpoint(Path(model) if isinstance(model, PathLike) else model, store, base, towers)
    if isinstance(model, Mapping | nn.Module):
        return open_in_memory(model, towers)
    raise UserError(f"Expected a path, a hub id, a state dict or a module, got {type(model).__name__}.")


@contextmanager
def as_paths(base: Model, models: Mapping[str, Model]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a path for every model; in-memory models are written to files that are deleted after the `with` block.

    Args:
        base: the base.
        models: name → model.

    Examples:
        >>> import torch
        >>> from mergeability.verbs.sources import as_paths
        >>> with as_paths("base.safetensors", {"a": {"weight": torch.ones(2)}}) as (base, models):
        ...     base, models["a"].endswith("a.safetensors")
        ('base.safetensors', True)
    """
    with TemporaryDirectory(prefix="mergeability-") as folder:

        def path(model: Any, name: str) -> str:
            if isinstance(model, str | PathLike):
                return str(model)
            return str(write_in_memory(model, Path(folder) / name / f"{name}.safetensors"))

        yield path(base, "base of these"), {name: path(model, name) for name, model in models.items()}
