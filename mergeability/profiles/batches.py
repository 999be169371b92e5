"""Choose a batch size such that the activations kept for the backward pass fit in memory."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mergeability.data.inputs import Inputs
from mergeability.models.features import features
from mergeability.profiles.encoders import evaluation_mode

# Factor for the gradients of activations, which a backward pass needs in addition to the saved activations.
_SLACK = 1.5


def fitting_batch_size(
    encoder: nn.Module, state: Mapping[str, Tensor], sample: Inputs, memory: float | int, at_most: int
) -> int:
    """Return the number of samples whose activations fit into `memory` bytes in addition to the model; at least 1.

    Measures the memory that autograd saves for one sample. The weights, their gradients and the sum of
    these (three times the weights) are subtracted first, because they do not depend on the batch size.

    Args:
        encoder: inputs → features.
        state: the weights to run it with.
        sample: one preprocessed sample.
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

    # Exclude running statistics, because batch norms do not accept statistics that require gradients.
    wanted = dict(encoder.named_parameters())
    parameters = {
        name: tensor.detach().requires_grad_() if name in wanted else tensor for name, tensor in state.items()
    }
    device = next(iter(state.values())).device
    watch = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with evaluation_mode(encoder), torch.enable_grad(), watch:
        features(encoder, sample.to(device), parameters)
    left = memory - 3 * sum(tensor.nbytes for tensor in state.values())
    per_sample = _SLACK * sum(saved.values())
    return max(1, min(at_most, int(left / per_sample))) if per_sample else at_most
