"""Call an encoder on inputs of any kind."""

import contextlib
from collections.abc import Iterator, Mapping

from jaxtyping import Bool
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


def place_mask(encoder: nn.Module, inputs: Inputs) -> Bool[Tensor, "N places"] | None:
    """Return a mask of each sample's positions that are not padding, for encoders of padded sequences.

    An encoder defines `token_mask(*tensors)`, which returns true where a position holds a token.

    Args:
        encoder: the encoder.
        inputs: its inputs.

    Returns:
        The mask, or None if the encoder does not define `token_mask`.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder, tiny_text_model
        >>> from mergeability.models.features import place_mask
        >>> tokens = tiny_text_model().tokenize(["a red square"])
        >>> place_mask(tiny_text_model().encoder_only(), Inputs({"tokens": tokens})).sum()
        tensor(5)
        >>> place_mask(tiny_encoder(), Inputs({"images": torch.zeros(1, 3, 2, 2)})) is None
        True
    """
    mask = getattr(encoder, "token_mask", None)
    return None if mask is None else mask(*inputs.tensors.values())


def embedding_layer(encoder: nn.Module) -> nn.Module | None:
    """Return the layer that embeds an encoder's integer inputs, such as tokens; None if there is no such layer.

    This is the method of that name of the transformers library, `get_input_embeddings`.

    Args:
        encoder: the encoder.

    Examples:
        >>> from mergeability.examples import tiny_encoder, tiny_text_model
        >>> from mergeability.models.features import embedding_layer
        >>> embedding_layer(tiny_text_model().encoder_only()), embedding_layer(tiny_encoder())
        (Embedding(32, 16, padding_idx=0), None)
    """
    find = getattr(encoder, "get_input_embeddings", None)
    return None if find is None else find()


@contextlib.contextmanager
def watched_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs during the `with` block; if an output is a tuple, collect only its first tensor.

    Args:
        module: the module, inside the encoder that is called.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.models.features import features, watched_output
        >>> encoder = tiny_encoder()
        >>> with watched_output(encoder.hidden) as outputs:
        ...     found = features(encoder, Inputs({"images": torch.zeros(5, 3, 2, 2)}))
        >>> outputs[0].shape
        torch.Size([5, 6])
    """
    outputs: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hook = module.register_forward_hook(remember)
    try:
        yield outputs
    finally:
        hook.remove()
