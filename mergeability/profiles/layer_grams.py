"""For each layer, compute the Gram matrix of the models' vectors; each model has one long vector per layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mergeability.files import digest
from mergeability.linalg import grams
from mergeability.profiles.subject import Subject

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2


@dataclass(frozen=True)
class LayerVectors:
    """Define one long vector for each model and layer, and a function that reads ranges of it.

    Attributes:
        sizes: layer → length of its vectors.
        keys: task → everything that determines its vectors.
        content: layer → the tensor ranges that its vectors consist of.
        read: (task, layer, start, stop) → elements start to stop of that vector.
        description: description of the work, for the progress.
    """

    sizes: Mapping[str, int]
    keys: Mapping[str, Mapping[str, Any]]
    content: Callable[[str], Mapping[str, Any]]
    read: Callable[[str, str, int, int], np.ndarray]
    description: str


def layer_grams(subject: Subject, vectors: LayerVectors) -> Float64[np.ndarray, "L T T"]:
    """Compute and store one Gram matrix per layer; sums are accumulated in float64."""
    # Sorted by content, so that one set of models is one entry, whatever their order and names.
    identities = {task: digest(key) for task, key in vectors.keys.items()}
    owners = {identity: task for task, identity in identities.items()}
    order = sorted(owners)
    places = [order.index(identities[task]) for task in subject.tasks]

    def compute(name: str) -> dict[str, Tensor]:
        gram = grams.streamed_gram(
            lambda row, start, stop: vectors.read(owners[order[row]], name, start, stop),
            len(order),
            vectors.sizes[name],
            device=subject.run.device,
        )
        return {"gram": torch.from_numpy(gram)}

    def find(name: str) -> np.ndarray:
        content, size = vectors.content(name), vectors.sizes[name]
        key = {"models": order, **content, "size": size, **subject.settings(_VERSION)}
        return subject.store.arrays("gram", key, lambda: compute(name))["gram"].numpy()

    layers = subject.run.map(
        find, list(vectors.sizes), description=vectors.description, memory=grams.needed(len(order))
    )
    # One array filled layer by layer, so that at most one layer is in memory twice. Layers are contiguous in
    # memory, so that NumPy sums them pairwise; another axis order would change the last bits of sums.
    found = np.empty((len(places), len(places), len(layers))).transpose(2, 1, 0)
    for layer, gram in enumerate(layers):
        found[layer] = gram[np.ix_(places, places)]
    return found
