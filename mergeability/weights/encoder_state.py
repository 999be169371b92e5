"""Load the weights of a checkpoint for an encoder, and check them against its architecture."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mergeability.errors import UserError
from mergeability.weights.checkpoints import PREFIX


def encoder_state(encoder: nn.Module, tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return a visual tower's tensors under the encoder's names, in float32 and on the encoder's device.

    Args:
        encoder: the architecture.
        tensors: canonical names (`visual.` prefix or none) → tensors.
        owner: owner of the tensors, for messages.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, or contains NaN or Inf.
    """
    own = encoder.state_dict()
    given = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    for name in sorted(own.keys() | given.keys()):
        if name not in own or name not in given or own[name].shape != given[name].shape:
            expected = tuple(own[name].shape) if name in own else "no such tensor"
            found = tuple(given[name].shape) if name in given else "no such tensor"
            raise UserError(
                f"The encoder expects '{name}' of shape {expected}, but {owner} has {found}, so the"
                " architectures differ. Set model= to the architecture with which the checkpoint was"
                " trained."
            )
        if not torch.isfinite(given[name]).all():
            raise UserError(f"'{name}' of {owner} contains NaN or Inf. Train or export the model again.")
    return {
        name: value.to(own[name].device, torch.float32 if value.is_floating_point() else own[name].dtype)
        for name, value in given.items()
    }
