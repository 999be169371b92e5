"""Classify images with an encoder and a frozen head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mergeability.data.tasks import Images


@torch.inference_mode()
def accuracy(
    encoder: nn.Module,
    head: Tensor,
    preprocess: Callable[[Tensor], Tensor],
    images: Images,
    batch_size: int = 256,
) -> float:
    """Return the share of images whose highest logit is the label's, in [0, 1].

    The encoder is in evaluation mode meanwhile and as before afterwards. Features need no normalisation here:
    it scales all logits of an image alike.
    """
    device = next(encoder.parameters()).device
    head, was_training = head.to(device), encoder.training
    encoder.eval()
    correct = 0
    for batch, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
        features = encoder(preprocess(batch.to(device)))
        correct += int(((features @ head.T).argmax(dim=1).cpu() == labels).sum())
    encoder.train(was_training)
    return correct / len(images)
