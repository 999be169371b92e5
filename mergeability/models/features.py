"""Call an encoder on inputs of any kind."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from mergeability.data.inputs import Inputs


def features(encoder: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Call an encoder on inputs, with its own or other weights, and return the features.

    Args:
        encoder: inputs → features, or a tuple that begins with them; called with the tensors of `inputs` in order.
        inputs: inputs on the device of the weights; labels are not used.
        state: weights to use instead of the encoder's own, under its names.

    Returns:
        The features, N × d.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.models import features
        >>> encoder, inputs = tiny_encoder(), Inputs({"images": torch.zeros(5, 3, 2, 2)})
        >>> features(encoder, inputs).shape
        torch.Size([5, 4])
        >>> zeros = {name: torch.zeros_like(tensor) for name, tensor in encoder.state_dict().items()}
        >>> features(encoder, inputs, zeros).abs().max()
        tensor(0.)
    """
    arguments = tuple(inputs.tensors.values())
    found = encoder(*arguments) if state is None else functional_call(encoder, dict(state), arguments)
    return found[0] if isinstance(found, tuple) else found
