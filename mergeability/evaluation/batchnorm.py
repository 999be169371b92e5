"""Re-estimate the batch-norm running statistics of a merged encoder.

The averaged running statistics of the models do not fit the merged model, whose activations have less variance, so
an averaged CNN is far less accurate than its models until its statistics are re-estimated.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from mergeability.errors import UserError
from mergeability.profiles.encoders import evaluation_mode


class _ReachedError(Exception):
    """Raised to end a forward pass when the remaining layers are not needed."""


def has_batchnorm(encoder: nn.Module) -> bool:
    """Return whether an encoder contains batch norms with running statistics."""
    return bool(_norms(encoder))


def recalibrate_batchnorm(
    encoder: nn.Module,
    images: Float[Tensor, "n channels height width"],
    *,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Re-estimate the running mean and variance of every batch norm of an encoder with merged weights.

    They become exactly the mean and the unbiased variance of the layer's inputs over all images and positions,
    with earlier layers normalised by their own new statistics, as at inference time. So they depend
    neither on the batch size nor on the order of the images, up to rounding. If all images fit into one batch, one
    pass suffices; otherwise each batch norm needs a pass up to its layer.

    Only the running means and variances of the encoder are changed, in place; modes, momenta,
    batch counts and weights are kept. A batch norm that is not called keeps its statistics.

    Args:
        encoder: the encoder, with its weights.
        images: preprocessed calibration images of all merged tasks.
        batch_size: images per forward pass.

    Returns:
        Name → new statistic, for the running means and variances alone; empty, without a pass, for an encoder
        without batch norms.

    Raises:
        UserError: there is no image, a layer sees one value per channel, or a statistic is not finite.
    """
    norms = _norms(encoder)
    if not norms:
        return {}
    if not len(images):
        raise UserError("Expected at least one calibration image for the batch norms, got none.")
    batches = images.split(batch_size)
    with evaluation_mode(encoder), torch.no_grad():
        if len(batches) == 1:
            _recalibrate_at_once(encoder, norms, images)
        else:
            # Layer by layer, because the inputs of a layer depend on the new statistics of all earlier ones.
            for name in _order(encoder, norms, images[:1]):
                _recalibrate_one(encoder, name, norms[name], batches)
    return {
        f"{name}.{statistic}".removeprefix("."): getattr(norm, statistic).clone()
        for name, norm in norms.items()
        for statistic in ("running_mean", "running_var")
    }


def _norms(encoder: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _recalibrate_at_once(encoder: nn.Module, norms: dict[str, _BatchNorm], images: Tensor) -> None:
    """Set each layer's statistics from its inputs, before it uses them, in a single forward pass."""

    def arrive(name: str, inputs: Tensor) -> None:
        moments = _Moments(norms[name].num_features)
        moments.add(inputs)
        moments.write(name, norms[name])

    # Pre-hooks run before the layer, so each layer normalises with the statistics of this very batch.
    with _watched(norms, arrive):
        _run(encoder, images)


def _recalibrate_one(encoder: nn.Module, name: str, norm: _BatchNorm, batches: Sequence[Tensor]) -> None:
    """Set one layer's statistics; those of earlier layers must already be set."""
    moments = _Moments(norm.num_features)

    def arrive(_name: str, inputs: Tensor) -> None:
        moments.add(inputs)
        # The rest of the forward pass is not needed for this layer.
        raise _ReachedError

    with _watched({name: norm}, arrive):
        for batch in batches:
            try:
                _run(encoder, batch)
            except _ReachedError:
                continue
    moments.write(name, norm)


def _order(encoder: nn.Module, norms: dict[str, _BatchNorm], image: Tensor) -> list[str]:
    """List the batch norms in the order in which they are called."""
    met: dict[str, None] = {}
    with _watched(norms, lambda name, _inputs: met.update({name: None})):
        _run(encoder, image)
    return list(met)


@contextmanager
def _watched(norms: dict[str, _BatchNorm], arrive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `arrive` with the name and the inputs of a layer, before the layer processes the inputs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: arrive(name, inputs[0])

    handles: list[RemovableHandle] = []
    try:
        handles.extend(norm.register_forward_pre_hook(hook(name)) for name, norm in norms.items())
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(encoder: nn.Module, images: Tensor) -> None:
    reference = next(tensor for tensor in encoder.state_dict().values() if tensor.is_floating_point())
    encoder(images.to(reference))


class _Moments:
    """Mean and variance per channel, pooled over batches in float64 without the cancellation of Σx² − n·mean²."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, inputs: Float[Tensor, "n channels *places"]) -> None:
        values = inputs.double().transpose(0, 1).flatten(1)
        count, mean = values.shape[1], values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        self._pool(count, mean.cpu(), squares.cpu())

    def _pool(self, count: int, mean: Float64[Tensor, " c"], squares: Float64[Tensor, " c"]) -> None:
        total = self._count + count
        apart = mean - self._mean
        self._mean = self._mean + apart * (count / total)
        # Chan's formula for pooling sums of squared deviations, which is stable for large means.
        self._squares = self._squares + squares + apart.square() * (self._count * count / total)
        self._count = total

    def write(self, name: str, norm: _BatchNorm) -> None:
        """Write a running mean and variance into a batch norm."""
        if self._count < 2:
            raise UserError(
                f"Batch norm '{name}' receives only one value per channel, but a variance requires at least"
                " two. Give more images."
            )
        # Unbiased, as PyTorch updates running_var.
        variance = self._squares / (self._count - 1)
        if not (torch.isfinite(self._mean).all() and torch.isfinite(variance).all()):
            raise UserError(
                f"The inputs of batch norm '{name}' are not finite, because the merged weights or the values of"
                " calibration images are too large or not finite. Check the weights and the images, or"
                " merge at a smaller scale."
            )
        # `_norms` lists only layers with running statistics.
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(self._mean)
        norm.running_var.copy_(variance)
