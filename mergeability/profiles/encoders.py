"""Properties of encoders: the last layer, the names of tied parameters, and evaluation mode."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mergeability.errors import UserError

# The lists of transformer blocks, in open_clip's visual towers and in the encoders of transformers.
_BLOCKS = ("transformer.resblocks", "encoder.layer")


def last_layer(encoder: nn.Module) -> str:
    """Return the name of the last transformer block, or of the last stage of a ResNet.

    Raises:
        UserError: the encoder has neither.
    """
    modules = dict(encoder.named_modules())
    for name in _BLOCKS:
        blocks = modules.get(name)
        if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) > 0:
            return f"{name}.{len(blocks) - 1}"
    if "layer4" in modules:
        return "layer4"
    raise UserError(
        f"{type(encoder).__name__} contains none of the layers {', '.join(_BLOCKS)} and layer4: "
        "set profile.layer to the layer whose activations should be averaged."
    )


def parameter_owners(encoder: nn.Module) -> dict[str, str]:
    """Map each parameter name to the first name of the same parameter; the two names differ only for tied parameters.

    A tied weight is one variable, so its names must not be assigned different values.
    """
    first: dict[int, str] = {}
    named = encoder.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in named}


@contextlib.contextmanager
def evaluation_mode(encoder: nn.Module) -> Iterator[None]:
    """Switch the encoder to eval mode and full precision during the block, then restore the mode of every module."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        # Otherwise GPU convolutions would use TF32, with ten bits of mantissa.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
