"""Activations of a model on calibration samples, per sample and averaged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.models.features import features, place_mask, watched_output
from mergeability.profiles.encoders import evaluation_mode, last_layer
from mergeability.profiles.evidence import ensure_entries, finite_grams
from mergeability.profiles.layer_grams import LayerVectors, layer_grams
from mergeability.profiles.subject import Subject

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2
# The name of the rows in version 0.1.0, kept in keys and entries; rows may also belong to other inputs than images.
_ROWS = "images"


@dataclass(frozen=True)
class Activations:
    """Compute every model's activations on the calibration inputs of all tasks, one row per input.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.activations import Activations
        >>> found = tiny_profiles("cars", "svhn").evidence(Activations())
        >>> {task: tuple(rows.shape) for task, rows in found.items()}
        {'cars': (16, 6), 'svhn': (16, 6)}
    """

    kind: ClassVar[str] = "activation"
    description: ClassVar[str] = "activations"

    def key(self, subject: Subject, task: str) -> dict[str, Any]:
        """Return everything that determines a model's activations."""
        views = subject.required_views("activation")
        model = {"model": subject.task_vectors.hashes[task], "of": _ROWS}
        return {**model, **views.activation_key, **subject.settings(_VERSION)}

    def compute(self, subject: Subject, task: str) -> dict[str, Tensor]:
        """Compute one model's activations on the calibration inputs of all tasks."""
        views, state = subject.required_views("activation"), subject.state(task)
        inputs = views.pool_inputs
        batch_size = subject.batch_size(state, inputs)
        rows = sample_activations(subject.encoder, state, inputs, layer=views.layer, batch_size=batch_size)
        return {_ROWS: rows}

    def combine(self, subject: Subject) -> dict[str, Float32[Tensor, "n d"]]:
        """Return the activations of every model; all activations fit in memory together, but all models may not."""
        keys = ensure_entries(self, subject, subject.store)
        return {task: subject.store.read(self.kind, key)[_ROWS] for task, key in keys.items()}


@dataclass(frozen=True)
class ActivationGrams:
    """Compute the Gram matrix of the models' mean activations.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.activations import ActivationGrams
        >>> tiny_profiles("cars", "svhn").evidence(ActivationGrams()).shape
        (1, 2, 2)
    """

    def combine(self, subject: Subject) -> Float64[np.ndarray, "1 T T"]:
        """Compute the inner products of the models' mean activations over all inputs, in float64."""
        found = Activations().combine(subject)
        rows = np.stack([found[task].double().mean(0).numpy() for task in subject.tasks])
        return finite_grams("activation", (rows @ rows.T)[None], subject.tasks)


@dataclass(frozen=True)
class ActivationKernelGrams:
    """Compute the Gram matrix of the models' centred kernels.

    A model's kernel is the n×n matrix of the inner products of its activations on n inputs.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.activations import ActivationKernelGrams
        >>> tiny_profiles("cars", "svhn").evidence(ActivationKernelGrams()).shape
        (1, 2, 2)
    """

    def combine(self, subject: Subject) -> Float64[np.ndarray, "1 T T"]:
        """Compute the inner products of the flattened kernels."""
        found = {task: rows.numpy() for task, rows in Activations().combine(subject).items()}
        layers = layer_grams(
            subject,
            LayerVectors(
                sizes={"kernel": len(found[subject.tasks[0]]) ** 2},
                keys={task: Activations().key(subject, task) for task in subject.tasks},
                content=lambda name: {"activation": name},
                read=lambda task, _name, start, stop: centred_kernel(found[task], start, stop),
                description="activation kernels",
            ),
        )
        return finite_grams("activation_kernel", layers, subject.tasks)


def sample_activations(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    layer: str | None = None,
    batch_size: int = 32,
) -> Float32[Tensor, "n d"]:
    """Run the encoder in eval mode; return a layer's output, averaged over tokens or positions, as one row per sample.

    Padding tokens do not count; see `mergeability.models.features.place_mask`.

    Args:
        encoder: inputs → features; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        inputs: preprocessed calibration samples.
        layer: dotted name of the layer; by default the last transformer block, or the last stage of a ResNet.
        batch_size: samples per forward pass; affects only speed and memory.

    Raises:
        UserError: there is no sample, or the encoder has no such layer.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.profiles.activations import sample_activations
        >>> encoder, inputs = tiny_encoder(), Inputs({"images": torch.zeros(5, 3, 2, 2)})
        >>> sample_activations(encoder, encoder.state_dict(), inputs, layer="hidden").shape
        torch.Size([5, 6])
    """
    if not len(inputs):
        raise UserError("Expected at least one calibration image for the activations, got none.")
    layer = last_layer(encoder) if layer is None else layer
    with evaluation_mode(encoder), torch.no_grad():
        batch_axis = _batch_axis(_output(encoder, state, layer, inputs[:1]), layer)
        rows = [
            _mean_over_places(_output(encoder, state, layer, batch), batch_axis, place_mask(encoder, batch))
            .float()
            .cpu()
            for batch in inputs.batches(batch_size)
        ]
    return torch.cat(rows)


def centred_kernel(
    activations: Float32[np.ndarray, "n d"], start: int, stop: int
) -> Float64[np.ndarray, " elements"]:
    """Subtract the mean row from each row of X, and compute a slice of the flattened n×n matrix X Xᵀ.

    All zeros if the rows are equal up to float32 rounding: n equal samples have no geometry, and neither has
    the remaining rounding error.

    Args:
        activations: one row per sample.
        start: the first element of the row-major matrix.
        stop: the one after the last.

    Examples:
        >>> import numpy as np
        >>> from mergeability.profiles.activations import centred_kernel
        >>> centred_kernel(np.array([[1, 0], [3, 0]], dtype=np.float32), 0, 4)
        array([ 1., -1., -1.,  1.])
    """
    count = len(activations)
    rows = activations.astype(np.float64)
    centred = rows - rows.mean(0)
    if np.linalg.norm(centred) <= np.finfo(np.float32).eps * np.linalg.norm(rows):
        return np.zeros(stop - start)
    first, last = start // count, -(-stop // count)
    products = (centred[first:last] @ centred.T).ravel()
    return products[start - first * count : stop - first * count]


def _output(encoder: nn.Module, state: Mapping[str, Tensor], layer: str, batch: Inputs) -> Tensor:
    """Run the encoder with the given weights and return one layer's output."""
    try:
        module = encoder.get_submodule(layer)
    except AttributeError as error:
        raise UserError(
            f"{type(encoder).__name__} has no layer '{layer}' (profile.layer). PyTorch reports: {error}."
        ) from error
    with watched_output(module) as outputs:
        features(encoder, batch.to(next(iter(state.values())).device), state)
    return outputs[-1]


def _batch_axis(output_of_one: Tensor, layer: str) -> int:
    """Determine the batch axis from the output for one sample, because versions of open_clip differ in layout."""
    for axis in (0, 1):
        if output_of_one.ndim > axis and output_of_one.shape[axis] == 1:
            return axis
    raise UserError(
        f"The output of '{layer}' for one image has shape {tuple(output_of_one.shape)}: "
        "expected batch × tokens × channels, tokens × batch × channels or batch × channels × height × width."
    )


def _mean_over_places(output: Tensor, batch_axis: int, mask: Tensor | None) -> Float[Tensor, "n d"]:
    if output.ndim == 4:
        return output.mean((2, 3))
    if output.ndim == 3 and mask is not None:
        places = output.movedim(batch_axis, 0)
        # An encoder may leave out columns that are padding in the whole batch.
        counted = mask[:, : places.shape[1], None].to(output.device, output.dtype)
        return (places * counted).sum(1) / counted.sum(1).clamp(min=1)
    if output.ndim == 3:
        return output.mean(1 - batch_axis)
    return output
