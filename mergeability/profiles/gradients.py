"""Gradients of a model on its own task, with respect to weights and inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.models.features import embedding_layer, features, watched_output
from mergeability.models.zero_shot import classify
from mergeability.profiles.encoders import evaluation_mode
from mergeability.profiles.evidence import ensure_entries, finite_grams
from mergeability.profiles.layer_grams import LayerVectors, layer_grams
from mergeability.profiles.subject import Subject
from mergeability.store import Store

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2


@dataclass(frozen=True)
class Gradients:
    """Gradients of the cross-entropy of one model on its own calibration samples, in eval mode.

    Attributes:
        encoder: parameter name → mean over the samples of ∇θ CE.
        inputs: per-sample ∇x CE, divided by the number of samples; x the floating-point tensor of the inputs, or
            the rows of several of them, flattened, one after the other; for tokens, x is their embeddings before
            positions are added, and the gradient of padding is zero.

    Examples:
        >>> import torch
        >>> from mergeability.profiles.gradients import Gradients
        >>> found = Gradients({"weight": torch.zeros(4, 6)}, torch.zeros(8, 3, 2, 2))
        >>> found.encoder["weight"].shape, len(found.inputs)
        (torch.Size([4, 6]), 8)
    """

    encoder: dict[str, Tensor]
    inputs: Float[Tensor, "n *shape"]


@dataclass(frozen=True)
class OwnGradients:
    """Compute and store every model's gradients on its task's samples; the gradients are as large as the models.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import OwnGradients
        >>> store, keys = tiny_profiles("cars", "svhn").evidence(OwnGradients())
        >>> sorted(keys)
        ['cars', 'svhn']
    """

    kind: ClassVar[str] = "gradient"
    description: ClassVar[str] = "gradients"

    def key(self, subject: Subject, task: str) -> dict[str, Any]:
        """Return everything that determines a model's gradients."""
        views = subject.required_views("gradient")
        model = {"model": subject.task_vectors.hashes[task]}
        return {**model, **views.gradient_key(task), **subject.settings(_VERSION)}

    def compute(self, subject: Subject, task: str) -> dict[str, Tensor]:
        """Compute the gradients of one model."""
        gradients = differentiated(subject, task, task)
        named = {f"encoder.{name}": gradient for name, gradient in gradients.encoder.items()}
        return {**named, "inputs": gradients.inputs}

    def combine(self, subject: Subject) -> tuple[Store, dict[str, dict[str, Any]]]:
        """Compute and store every model's gradients; return the store and each task's key in it."""
        keys = ensure_entries(self, subject, subject.data_store)
        return subject.data_store, keys


@dataclass(frozen=True)
class EncoderGradientGrams:
    """For each parameter of the encoder, compute the Gram matrix of the models' gradients.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import EncoderGradientGrams
        >>> tiny_profiles("cars", "svhn").evidence(EncoderGradientGrams()).shape
        (4, 2, 2)
    """

    def combine(self, subject: Subject) -> Float64[np.ndarray, "L T T"]:
        """Compute the inner products of the gradients with respect to the weights."""
        encoder = subject.required_views("gradient").encoder
        sizes = {name: value.numel() for name, value in encoder.named_parameters()}
        layers = _grams(subject, dict(sorted(sizes.items())), "encoder.{}", "encoder gradients")
        return finite_grams("encoder_gradient", layers, subject.tasks)


@dataclass(frozen=True)
class InputGradientGrams:
    """Compute the Gram matrix of the models' gradients with respect to their inputs.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import InputGradientGrams
        >>> tiny_profiles("cars", "svhn").evidence(InputGradientGrams()).shape
        (1, 2, 2)
    """

    def combine(self, subject: Subject) -> Float64[np.ndarray, "1 T T"]:
        """Compute the inner products of the gradients with respect to the inputs.

        Raises:
            UserError: the tasks' inputs differ in number or size, or are integers that the encoder does not embed.
        """
        check_differentiable(subject)
        views, first = subject.required_views("gradient"), subject.tasks[0]
        shapes = {task: _gradient_shape(views.encoder, views.samples(task)) for task in subject.tasks}
        for task, shape in shapes.items():
            if shape != shapes[first]:
                raise UserError(
                    "Input gradients require the same number and size of inputs for every task: "
                    f"'{first}' has {shapes[first]}, '{task}' has {shape}."
                )
        layers = _grams(subject, {"inputs": math.prod(shapes[first])}, "{}", "input gradients")
        return finite_grams("input_gradient", layers, subject.tasks)


def _grams(
    subject: Subject, sizes: Mapping[str, int], stored_as: str, description: str
) -> Float64[np.ndarray, "L T T"]:
    store, keys = OwnGradients().combine(subject)
    read = {task: store.reader("gradient", key) for task, key in keys.items()}
    return layer_grams(
        subject,
        LayerVectors(
            sizes=sizes,
            keys=keys,
            content=lambda name: {"gradient": name},
            read=lambda task, name, start, stop: read[task](stored_as.format(name), start, stop),
            description=description,
        ),
    )


def data_key(subject: Subject) -> dict[str, Any]:
    """Return the fields that all values computed from samples and heads share in their store keys.

    None of these fields names a model.

    Args:
        subject: the models with their data.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import data_key
        >>> sorted(data_key(tiny_profiles("cars", "svhn").subject))
        ['device', 'tasks', 'version']
    """
    views = subject.required_views("data")
    return {
        "tasks": [views.gradient_key(task) for task in sorted(subject.tasks)],
        **subject.settings(_VERSION),
    }


def check_differentiable(subject: Subject) -> None:
    """Check that gradients with respect to the inputs exist for every task.

    Args:
        subject: the models with their data.

    Raises:
        UserError: a task's inputs are all integers, and the encoder has no layer that embeds them.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import check_differentiable
        >>> check_differentiable(tiny_profiles("cars", "svhn").subject) is None
        True
    """
    views = subject.required_views("gradient")
    if embedding_layer(views.encoder) is not None:
        return
    for task in subject.tasks:
        if not any(one.is_floating_point() for one in views.samples(task).tensors.values()):
            raise UserError(
                f"Input gradients require floating-point inputs, but the inputs of '{task}' are integers: "
                "remove the metrics of input gradients."
            )


def stored_gradients(store: Store, key: Mapping[str, Any]) -> Gradients:
    """Read the stored gradients of one model; see `OwnGradients`.

    Args:
        store: the store.
        key: key of the model's entry.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import OwnGradients, stored_gradients
        >>> store, keys = tiny_profiles("cars", "svhn").evidence(OwnGradients())
        >>> stored_gradients(store, keys["cars"]).inputs.shape
        torch.Size([8, 3, 2, 2])
    """
    found = store.read("gradient", key)
    inputs = found.pop("inputs")
    return Gradients({name.removeprefix("encoder."): tensor for name, tensor in found.items()}, inputs)


def differentiated(subject: Subject, task: str, of: str) -> Gradients:
    """Compute one model's gradients on the samples of a task, with that task's head.

    Args:
        subject: the models with their data.
        task: the model.
        of: the task whose samples and head are used.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.profiles.gradients import differentiated
        >>> found = differentiated(tiny_profiles("cars", "svhn").subject, "cars", of="svhn")
        >>> found.inputs.shape
        torch.Size([8, 3, 2, 2])
    """
    views = subject.required_views("gradient")
    samples, state = views.samples(of), subject.state(task)
    batch_size = subject.batch_size(state, samples)
    return task_gradients(subject.encoder, state, views.head(of), samples, batch_size=batch_size)


def task_gradients(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    head: Float[Tensor, "classes d"],
    samples: Inputs,
    *,
    batch_size: int = 32,
) -> Gradients:
    """Compute the gradients with respect to parameters and inputs in one forward and one backward pass.

    Sums of per-sample losses are differentiated and divided by n at the end, so the batch size changes
    nothing. The logits are the normalised features times the frozen head.

    Args:
        encoder: inputs → features; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        head: the task's frozen zero-shot head, with the logit scale in it.
        samples: the task's own preprocessed calibration samples, with their classes.
        batch_size: samples per pass.

    Raises:
        UserError: there is no sample, or a label has no row in the head.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.profiles.gradients import task_gradients
        >>> samples = Inputs({"images": torch.zeros(5, 3, 2, 2)}, torch.tensor([0, 1, 2, 0, 1]))
        >>> encoder = tiny_encoder()
        >>> found = task_gradients(encoder, encoder.state_dict(), torch.eye(3, 4), samples)
        >>> sorted(found.encoder), found.inputs.shape
        (['hidden.bias', 'hidden.weight', 'output.bias', 'output.weight'], torch.Size([5, 3, 2, 2]))
    """
    check_samples(head, samples, "the gradients")
    names = [name for name, _ in encoder.named_parameters() if name in state]
    totals = {name: torch.zeros_like(state[name]) for name in names}
    inputs = []
    with evaluation_mode(encoder), torch.enable_grad():
        for batch in samples.batches(batch_size):
            of_encoder, of_inputs = _summed_gradients(encoder, state, names, head, batch)
            inputs.append(of_inputs)
            for name, gradient in zip(names, of_encoder, strict=True):
                totals[name] += gradient
    count = len(samples)
    return Gradients(
        encoder={name: (total / count).cpu() for name, total in totals.items()},
        inputs=(torch.cat(inputs) / count).cpu(),
    )


def check_samples(head: Float[Tensor, "classes d"], samples: Inputs, purpose: str) -> None:
    """Check that there is at least one sample and that every label has a row in the head.

    Args:
        head: zero-shot head, classes × d.
        samples: the samples.
        purpose: what needs them, for the message.

    Raises:
        UserError: there is no sample, or a label without a row.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.profiles.gradients import check_samples
        >>> samples = Inputs({"images": torch.zeros(2, 3, 2, 2)}, torch.tensor([0, 2]))
        >>> check_samples(torch.eye(3, 4), samples, "gradients") is None
        True
    """
    if not len(samples) or samples.labels is None:
        raise UserError(f"Expected at least one calibration sample for {purpose}, got none.")
    lowest, highest = int(samples.labels.min()), int(samples.labels.max())
    if lowest < 0 or highest >= len(head):
        raise UserError(
            f"Expected labels from 0 to {len(head) - 1}, one per class of the head; got {lowest} to {highest}."
        )


def _summed_gradients(
    encoder: nn.Module, state: Mapping[str, Tensor], names: list[str], head: Tensor, batch: Inputs
) -> tuple[list[Tensor], Tensor]:
    """Differentiate the batch's summed loss with respect to the parameters and the inputs."""
    parameters = {name: state[name].detach().requires_grad_() for name in names}
    device = next(iter(parameters.values())).device
    tensors = {name: tensor.detach().to(device, copy=True) for name, tensor in batch.tensors.items()}
    floating = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    embedding = None if floating else embedding_layer(encoder)
    if embedding is None:
        found = features(encoder, Inputs(tensors), {**state, **parameters})
    else:
        with watched_output(embedding) as embedded:
            found = features(encoder, Inputs(tensors), {**state, **parameters})
        floating = embedded[:1]
    logits = classify(found, head.to(device, found.dtype))
    # The labels exist: they were checked before.
    assert batch.labels is not None
    loss = functional.cross_entropy(logits, batch.labels.to(device), reduction="sum")
    sources = [*parameters.values(), *floating]
    # Parameters that do not affect the features have gradient zero.
    gradients = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
    of_inputs = gradients[len(parameters) :]
    if embedding is not None:
        # An encoder may leave out columns that are padding in the whole batch: their gradient is zero.
        missing = next(iter(tensors.values())).shape[1] - of_inputs[0].shape[1]
        return [*gradients[: len(parameters)]], functional.pad(of_inputs[0], (0, 0, 0, missing))
    if len(of_inputs) == 1:
        return [*gradients[: len(parameters)]], of_inputs[0]
    flat = [found.new_zeros(len(batch), 0), *(one.flatten(1) for one in of_inputs)]
    return [*gradients[: len(parameters)]], torch.cat(flat, dim=1)


def _gradient_shape(encoder: nn.Module, samples: Inputs) -> tuple[int, ...]:
    """Return the shape of the gradient with respect to the inputs."""
    shapes = [tuple(one.shape) for one in samples.tensors.values() if one.is_floating_point()]
    if not shapes and isinstance(embedding := embedding_layer(encoder), nn.Embedding):
        return (*next(iter(samples.tensors.values())).shape, embedding.embedding_dim)
    return shapes[0] if len(shapes) == 1 else (len(samples), sum(math.prod(one[1:]) for one in shapes))
