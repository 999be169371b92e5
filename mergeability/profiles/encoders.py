"""What evidence needs to know of an encoder: its last layer, its parameters, and its evaluation mode."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mergeability.errors import UserError


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


def parameter_owners(encoder: nn.Module) -> dict[str, str]:
    """Map each name of a parameter to the first name of the same parameter; they differ where it is tied.

    A tied weight is one variable: under each of its names it would get a second value.
    """
    first: dict[int, str] = {}
    named = encoder.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in named}


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
