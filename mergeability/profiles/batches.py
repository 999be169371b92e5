"""How many images pass through an encoder at a time, so that what the backward pass keeps fits in memory."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mergeability.profiles.activations import evaluation_mode

# What a backward pass allocates beside what was saved for it: gradients of the largest activations.
_SLACK = 1.5


def fitting_batch_size(
    encoder: nn.Module, state: Mapping[str, Tensor], image: Tensor, memory: float | int, at_most: int
) -> int:
    """Return how many images' activations fit into `memory` bytes beside the model; at least 1.

    Counts what automatic differentiation saves of one image. The weights, their gradients and the sum of
    these (three times the weights) are taken off first; they are needed whatever the batch.

    Args:
        encoder: the visual encoder.
        state: the weights to run it with.
        image: one preprocessed image, 1×C×H×W.
        memory: bytes for everything.
        at_most: the batch size to return where memory is no limit.
    """
    weights = {tensor.data_ptr() for tensor in state.values()}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Running statistics are no parameters: a batch norm takes none that want a gradient.
    wanted = dict(encoder.named_parameters())
    parameters = {
        name: tensor.detach().requires_grad_() if name in wanted else tensor for name, tensor in state.items()
    }
    device = next(iter(state.values())).device
    watch = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with evaluation_mode(encoder), torch.enable_grad(), watch:
        functional_call(encoder, parameters, (image.to(device),))
    left = memory - 3 * sum(tensor.nbytes for tensor in state.values())
    per_image = _SLACK * sum(saved.values())
    return max(1, min(at_most, int(left / per_image))) if per_image else at_most
