"""The Lightning module: an encoder with a frozen head, the loss, and at most one penalty."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm
from torchmetrics.classification import MulticlassAccuracy

from mergeability.checks import Count, NotNegative, Positive, Share, Whole
from mergeability.errors import UserError
from mergeability.finetuning.objective import Step, cross_entropy
from mergeability.finetuning.penalties.base import Penalty

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class TrainingSettings:
    """The hyper-parameters of a fine-tuning run.

    Attributes:
        epochs: passes over the training split, at least 1.
        learning_rate: peak learning rate, above 0; warm-up is linear, decay a half cosine to 0.
        weight_decay: weight decay of every parameter, at least 0: decoupled with AdamW, part of the gradient with SGD.
        batch_size: images per micro-batch on each device.
        accumulate: micro-batches per optimiser step.
        warmup_steps: steps of linear warm-up, at most `warmup_share` of all steps.
        warmup_share: largest share of steps spent on warm-up, in [0, 1].
        gradient_clip: largest norm of the whole gradient; 0 does not clip.
        train_evaluation_images: number of training images that the training accuracy in the card is measured on.
        optimizer: "adamw", or "sgd" with momentum.
        momentum: momentum of SGD, in [0, 1].
        compile: whether to compile the encoder with `torch.compile`: slow to start, faster steps afterwards.

    Raises:
        UserError: a number is not positive, or the optimizer is unknown.

    Examples:
        >>> from mergeability.finetuning import TrainingSettings
        >>> settings = TrainingSettings(epochs=2, learning_rate=1e-5, batch_size=64, accumulate=2)
        >>> settings.optimizer, settings.weight_decay
        ('adamw', 0.1)
    """

    epochs: Count
    learning_rate: Positive
    weight_decay: NotNegative = 0.1
    batch_size: Count = 128
    accumulate: Count = 1
    warmup_steps: Whole = 500
    warmup_share: Share = 0.1
    gradient_clip: NotNegative = 1.0
    train_evaluation_images: Count = 2000
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Share = 0.9
    compile: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UserError(
                f"Expected training.optimizer to be {' or '.join(OPTIMIZERS)}, got {self.optimizer!r}."
            )
        for name in ("epochs", "learning_rate", "batch_size", "accumulate"):
            if not getattr(self, name) > 0:
                raise UserError(f"training.{name} must be positive, not {getattr(self, name)}.")


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Scale the learning rate at `step`: linear from 1/warmup to 1, then a half cosine that ends at 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class FineTuningModule(pl.LightningModule):
    """Fine-tune a visual encoder with a frozen zero-shot head and an optional penalty.

    The loss is the cross-entropy of the scaled cosines of features and head, plus λ·R(θ) with a penalty R.

    Args:
        encoder: images → features; every parameter that requires a gradient is trained.
        head: frozen zero-shot head, classes × features.
        preprocess: uint8 images → the encoder's normalised float input.
        settings: the hyper-parameters.
        penalty: a term added to the loss; None, or one of strength 0, gives plain fine-tuning.

    Raises:
        UserError: the penalty does not fit the encoder's matrices; or, in training, the penalty or its gradient is
            not finite.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.finetuning import FineTuningModule, TrainingSettings
        >>> settings = TrainingSettings(epochs=1, learning_rate=1e-3)
        >>> module = FineTuningModule(tiny_encoder(), torch.eye(3, 4), lambda images: images / 255, settings)
        >>> module(torch.zeros(5, 3, 2, 2, dtype=torch.uint8)).shape
        torch.Size([5, 4])
        >>> len(module.trained), module.head.requires_grad
        (4, False)
    """

    head: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: Tensor,
        preprocess: Callable[[Tensor], Tensor],
        settings: TrainingSettings,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.settings = encoder, preprocess, settings
        self.register_buffer("head", head.detach().clone(), persistent=False)
        self.penalty = penalty if penalty is not None and penalty.strength > 0 else None
        self.trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        # θ0 is not saved in the checkpoint, because it is the base model's file.
        initial = [p.detach().clone() for p in self.trained] if self.penalty else []
        for index, tensor in enumerate(initial):
            self.register_buffer(f"initial_{index}", tensor, persistent=False)
        # Constants derived from θ0 are not saved either. As buffers, both move between devices with the module.
        constants = self.penalty.constants(initial) if self.penalty else {}
        for name, tensor in constants.items():
            self.register_buffer(f"constant/{name}", tensor, persistent=False)
        self._constant_names = tuple(constants)
        self.train_accuracy = MulticlassAccuracy(len(head), average="micro")
        self.validation_accuracy = MulticlassAccuracy(len(head), average="micro")
        self.images_seen = 0  # Counted in this process only: a resumed training starts from 0.
        self._batch: tuple[Tensor, Tensor] | None = None
        self._compiled: nn.Module | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images."""
        return self.encoder(self.preprocess(images))

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        with sdpa_kernel(SDPBackend.MATH) if self._second_order else contextlib.nullcontext():
            encoder = self.encoder if self._compiled is None else self._compiled
            return cross_entropy(encoder, self.head, self.preprocess(images), labels)

    @property
    def _second_order(self) -> bool:
        return self.penalty is not None and self.penalty.second_order

    def on_fit_start(self) -> None:
        """Reject settings that are incompatible with the penalty; compile the encoder if requested.

        Raises:
            UserError: losses are scaled for 16-bit floats, or a compiled encoder is to be differentiated twice.
        """
        if self.settings.compile and self._second_order:
            raise UserError(
                "This penalty needs second derivatives, which torch.compile does not support: remove "
                "training.compile=true, or set reg.penalty.estimator=finite_difference."
            )
        if self.settings.compile:
            # Not registered as a submodule, because the compiled copy would change the names in the checkpoint.
            object.__setattr__(self, "_compiled", torch.compile(self.encoder))
        if self.penalty is not None and str(self.trainer.precision) == "16-mixed":
            raise UserError(
                "Penalties do not support trainer.precision=16-mixed, because this precision scales gradients. Use "
                "bf16-mixed or 32-true."
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the task loss; the penalty is added in `backward`."""
        self._batch = batch
        self.images_seen += len(batch[1])
        loss, logits = self._loss(batch)
        self.train_accuracy(logits, batch[1])
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Log loss and accuracy on held-out training data."""
        loss, logits = cross_entropy(self.encoder, self.head, self.preprocess(batch[0]), batch[1])
        self.validation_accuracy(logits, batch[1])
        size = len(batch[1])
        self.log("validation/loss", loss, batch_size=size)
        self.log("validation/accuracy", self.validation_accuracy, prog_bar=True, batch_size=size)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Accumulate the gradient of the loss and the penalty.

        Implemented here instead of with manual optimisation, which would lose Lightning's clipping and accumulation.
        `loss` is already divided by the number of accumulated micro-batches; penalties receive the undivided loss.
        """
        if self.penalty is None:
            loss.backward(*args, **kwargs)
            return
        share = 1 / self.trainer.accumulate_grad_batches
        values: dict[str, Tensor] = {}
        step = Step(
            loss=loss / share,
            loss_again=self._loss_again,
            parameters=self.trained,
            initial=[self.get_buffer(f"initial_{index}") for index in range(len(self.trained))],
            reduced_precision="16" in str(self.trainer.precision),
            constants={name: self.get_buffer(f"constant/{name}") for name in self._constant_names},
            log=values.__setitem__,
        )
        gradients, values[self.penalty.name] = self.penalty.gradients(step)
        gradients, values = _mean_over_devices(gradients, values)
        # Checked after averaging over devices, so that all devices stop together.
        for name, value in values.items():
            if not torch.isfinite(value):
                self._refuse(f"penalty {name}", value.item())
            self.log(f"penalty/{name}", value)
        # The norm is finite only if all entries are; clipping divides by it, and it takes a tenth of the time of
        # computing the largest entry.
        if not torch.isfinite(get_total_norm(gradients)):
            self._refuse(f"gradient with the penalty {self.penalty.name}", "NaN or Inf")
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            # A multiplication by 1 would only allocate memory of the model's size. But clipping modifies
            # gradients in place, so each needs separate memory, unlike an expanded tensor.
            whole = share == 1 and gradient.is_contiguous()
            gradient = (gradient if whole else gradient * share).to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _refuse(self, what: str, became: float | str) -> NoReturn:
        raise UserError(
            f"The {what} became {became} at step {self.global_step}: choose a smaller reg.lambda or "
            "training.learning_rate."
        )

    def _loss_again(self) -> Tensor:
        assert self._batch is not None
        with self.trainer.precision_plugin.forward_context(), _buffers_kept(self.encoder):
            return self._loss(self._batch)[0]

    def configure_optimizers(self) -> Any:
        """Return the optimiser and a cosine learning-rate schedule, which advances after every optimiser step."""
        settings = self.settings
        # Lightning's count includes accumulation, the last incomplete group and several devices.
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(settings.warmup_steps, math.ceil(settings.warmup_share * total))
        optimizer = _optimizer(self.trained, settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup(step, total, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(parameters: Sequence[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def _mean_over_devices(
    gradients: Sequence[Tensor], values: dict[str, Tensor]
) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
    """All-reduce penalty gradients and logged values: DDP averages only gradients produced by backward()."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return gradients, values
    tensors = [*gradients, *(value.to(gradients[0].dtype) for value in values.values())]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    means = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    return means[: len(gradients)], dict(zip(values, means[len(gradients) :], strict=True))


@contextlib.contextmanager
def _buffers_kept(encoder: nn.Module) -> Iterator[None]:
    """Protect running statistics from a second forward pass of the same images.

    It works on copies, because a backward pass still needs the current values: restoring the former ones in place
    would modify tensors that autograd has saved.
    """
    kept = [
        (module, name, buffer)
        for module in encoder.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
