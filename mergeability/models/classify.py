"""Classify samples with an encoder and a frozen head."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from mergeability.data.inputs import Inputs, Samples
from mergeability.errors import UserError
from mergeability.models.features import features


@torch.inference_mode()
def correct(
    encoder: nn.Module,
    head: Tensor,
    preprocess: Callable[[Tensor], Tensor],
    samples: Samples,
    batch_size: int = 256,
    precision: torch.dtype = torch.float32,
) -> Bool[np.ndarray, " N"]:
    """Return whether each sample is classified correctly, that is, its highest logit is the label's.

    The encoder is switched to evaluation mode, and back to its previous mode afterwards. Features need no
    normalisation: it would scale all logits of a sample equally.

    Args:
        encoder: inputs → features.
        head: classes × features.
        preprocess: rows of samples → the encoder's input.
        samples: the samples to classify.
        batch_size: samples per pass.
        precision: float32, or a narrower dtype for matrix products in the encoder.

    Raises:
        UserError: a logit is NaN or infinite, in which case argmax would return the first class.
    """
    device = next(encoder.parameters()).device
    head, was_training = head.to(device), encoder.training
    encoder.eval()
    right = []
    shorter = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
    try:
        for batch, labels in zip(
            samples.rows.split(batch_size), samples.labels.split(batch_size), strict=True
        ):
            with shorter:
                of_batch = features(encoder, Inputs({"rows": preprocess(batch.to(device))})).float()
            logits = of_batch @ head.T
            if not torch.isfinite(logits).all():
                raise UserError(
                    "Expected finite logits, got NaN or Inf: the weights overflow on these samples. "
                    "Merge at a smaller alpha, or train at a lower learning rate."
                )
            right.append(logits.argmax(dim=1).cpu() == labels)
    finally:
        encoder.train(was_training)
    return torch.cat(right).numpy()


@torch.inference_mode()
def encoded(
    encoder: nn.Module, inputs: Inputs, batch_size: int = 256, precision: torch.dtype = torch.float32
) -> Float32[Tensor, "n d"]:
    """Return the features of preprocessed inputs, on the CPU.

    The encoder is switched to evaluation mode, and back to its previous mode afterwards.

    Args:
        encoder: inputs → features.
        inputs: samples; labels are not used.
        batch_size: samples per pass.
        precision: float32, or a narrower dtype for matrix products in the encoder.
    """
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    shorter = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
    try:
        with shorter:
            rows = [
                features(encoder, batch.to(device)).float().cpu()
                for batch in inputs.without_labels().batches(batch_size)
            ]
    finally:
        encoder.train(was_training)
    return torch.cat(rows)


def accuracy(
    encoder: nn.Module,
    head: Tensor,
    preprocess: Callable[[Tensor], Tensor],
    samples: Samples,
    batch_size: int = 256,
) -> float:
    """Return the accuracy in [0, 1]: the share of samples that are classified correctly; see `correct`."""
    return float(correct(encoder, head, preprocess, samples, batch_size).mean())
