"""The activations of one model: where it places each calibration image, and where all of them on average."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from torch.func import functional_call

from mergeability.errors import UserError


def image_activations(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    images: Float[Tensor, "n channels height width"],
    *,
    layer: str | None = None,
    batch_size: int = 32,
) -> Float32[Tensor, "n d"]:
    """Average a layer's output over tokens (or places), one row per image, in eval mode.

    Args:
        encoder: the visual encoder; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        images: preprocessed calibration images.
        layer: dotted name of the layer; by default the last transformer block, or the last stage of a ResNet.
        batch_size: images per forward pass; changes nothing but speed and memory.

    Raises:
        UserError: there is no image, or the encoder has no such layer.
    """
    if not len(images):
        raise UserError("Expected at least one calibration image for the activations, got none.")
    layer = last_layer(encoder) if layer is None else layer
    with evaluation_mode(encoder), torch.no_grad():
        batch_axis = _batch_axis(_output(encoder, state, layer, images[:1]), layer)
        rows = [
            _mean_over_places(_output(encoder, state, layer, batch), batch_axis).float().cpu()
            for batch in images.split(batch_size)
        ]
    return torch.cat(rows)


def mean_activation(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    images: Float[Tensor, "n channels height width"],
    *,
    layer: str | None = None,
    batch_size: int = 32,
) -> Float64[Tensor, " d"]:
    """Average `image_activations`, which explains the arguments, over the images, in float64."""
    return image_activations(encoder, state, images, layer=layer, batch_size=batch_size).double().mean(0)


def centred_kernel(
    activations: Float32[np.ndarray, "n d"], start: int, stop: int
) -> Float64[np.ndarray, " elements"]:
    """Compute a range of the flattened n×n matrix of inner products of the rows, less their mean: X Xᵀ.

    All zeros where float32 cannot tell the rows from one row: n equal images have no geometry, and what
    rounding leaves of it is none either.

    Args:
        activations: one row per image.
        start: the first element of the row-major matrix.
        stop: the one after the last.
    """
    count = len(activations)
    rows = activations.astype(np.float64)
    centred = rows - rows.mean(0)
    if np.linalg.norm(centred) <= np.finfo(np.float32).eps * np.linalg.norm(rows):
        return np.zeros(stop - start)
    first, last = start // count, -(-stop // count)
    products = (centred[first:last] @ centred.T).ravel()
    return products[start - first * count : stop - first * count]


def last_layer(encoder: nn.Module) -> str:
    """Name the last transformer block, or the last stage of a ResNet.

    Raises:
        UserError: the encoder has neither.
    """
    modules = dict(encoder.named_modules())
    blocks = modules.get("transformer.resblocks")
    if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) > 0:
        return f"transformer.resblocks.{len(blocks) - 1}"
    if "layer4" in modules:
        return "layer4"
    raise UserError(
        f"{type(encoder).__name__} has neither transformer.resblocks nor layer4: "
        "name the layer whose activations to average (profile.layer)."
    )


@contextlib.contextmanager
def evaluation_mode(encoder: nn.Module) -> Iterator[None]:
    """Put the encoder into eval mode and full precision; every module's own mode returns afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        # A GPU's convolutions would otherwise round to ten bits.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _output(encoder: nn.Module, state: Mapping[str, Tensor], layer: str, batch: Tensor) -> Tensor:
    """Run the encoder with the given weights and return one layer's output."""
    outputs: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    try:
        module = encoder.get_submodule(layer)
    except AttributeError as error:
        raise UserError(
            f"{type(encoder).__name__} has no layer '{layer}' (profile.layer): {error}."
        ) from error
    hook = module.register_forward_hook(remember)
    try:
        functional_call(encoder, dict(state), (batch.to(_device(state)),))
    finally:
        hook.remove()
    return outputs[-1]


def _device(state: Mapping[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device


def _batch_axis(output_of_one_image: Tensor, layer: str) -> int:
    """Find the batch axis from the output for one image: versions of open_clip differ in their layout."""
    for axis in (0, 1):
        if output_of_one_image.ndim > axis and output_of_one_image.shape[axis] == 1:
            return axis
    raise UserError(
        f"The output of '{layer}' for one image has shape {tuple(output_of_one_image.shape)}: "
        "expected batch × tokens × width, tokens × batch × width or batch × width × height × width."
    )


def _mean_over_places(output: Tensor, batch_axis: int) -> Float[Tensor, "n d"]:
    if output.ndim == 4:
        return output.mean((2, 3))
    if output.ndim == 3:
        return output.mean(1 - batch_axis)
    return output
