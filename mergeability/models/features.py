"""Call an encoder on inputs of any kind."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from mergeability.data.inputs import Inputs


def features(encoder: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the encoder's features of the inputs, whose tensors are its arguments, in their order.

    Args:
        encoder: inputs → features, or a tuple that begins with them.
        inputs: on the device of the weights; labels are not looked at.
        state: weights to use instead of the encoder's own, under its names.
    """
    arguments = tuple(inputs.tensors.values())
    found = encoder(*arguments) if state is None else functional_call(encoder, dict(state), arguments)
    return found[0] if isinstance(found, tuple) else found
