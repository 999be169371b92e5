"""Compute the Gram matrix XᵀX of the inputs X of each linear layer, on samples of the model's own task.

Linear layers are detected during the forward pass: wherever a weight of the encoder is the right factor of a
matrix product. Module hooks would miss some: attention multiplies by its projection weights without
calling a module, and the last projection of a CLIP is a bare parameter.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.models.features import features, place_mask
from mergeability.profiles.encoders import evaluation_mode, parameter_owners
from mergeability.profiles.evidence import ensure_entries
from mergeability.profiles.gradients import OwnGradients
from mergeability.profiles.subject import Subject
from mergeability.weights.checkpoints import PREFIX

logger = logging.getLogger(__name__)

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1

_OPERATIONS = torch.ops.aten
# Operation → positions of the left and the right factor among its arguments. In inference mode, PyTorch
# dispatches the first two operations; otherwise those into which it decomposes them.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    _OPERATIONS.linear.default: (0, 1),
    _OPERATIONS.matmul.default: (0, 1),
    _OPERATIONS.mm.default: (0, 1),
    _OPERATIONS.bmm.default: (0, 1),
    _OPERATIONS.addmm.default: (1, 2),
}
# Number of rows in float64 at a time.
_ROWS = 4096


@dataclass(frozen=True)
class LinearPart:
    """Describe a linear layer, or a part of an attention projection whose inputs differ from those of other parts.

    Attributes:
        weight: the encoder's name of the weight.
        width: number of inputs.
        inputs_first: whether the weight is stored inputs × outputs; outputs × inputs otherwise.
        first: the first output; 0 if inputs come first.
        last: the one after the last output.
    """

    weight: str
    width: int
    inputs_first: bool
    first: int
    last: int

    @property
    def key(self) -> str:
        """The name of the layer's Gram matrix in the store."""
        return f"{self.weight}[{self.first}:{self.last}]"


# Linear layer → its Gram matrix, in float64
ReadGram = Callable[[LinearPart], Tensor]


@dataclass(frozen=True)
class LinearInputs:
    """Compute and store Gram matrices of the inputs of every model's linear layers."""

    kind: ClassVar[str] = "linear_inputs"
    description: ClassVar[str] = "inputs of linear layers"

    def key(self, subject: Subject, task: str) -> dict[str, Any]:
        """Return all values that determine the inputs of a model's layers, as a JSON-compatible record."""
        return {**OwnGradients().key(subject, task), "of": self.kind, "of_version": _VERSION}

    def compute(self, subject: Subject, task: str) -> dict[str, Tensor]:
        """Compute the Gram matrices of the inputs of one model's layers.

        Raises:
            UserError: one is not finite; names the model.
        """
        samples, state = subject.required_views(self.description).samples(task), subject.state(task)
        batch_size = subject.batch_size(state, samples)
        try:
            found = input_grams(subject.encoder, state, samples, batch_size=batch_size)
        except UserError as error:
            raise UserError(f"The model of '{task}': {error}") from error
        return {part.key: gram for part, gram in found.items()}

    def combine(self, subject: Subject) -> tuple[dict[str, list[LinearPart]], dict[str, ReadGram]]:
        """Return the linear layers that use each tensor, and one function per task that reads a Gram matrix."""
        store, keys = subject.data_store, ensure_entries(self, subject, subject.data_store)

        def reader(task: str) -> ReadGram:
            read = store.reader(self.kind, keys[task])
            return lambda part: (
                torch.from_numpy(read(part.key, 0, part.width**2)).double().reshape(part.width, part.width)
            )

        owners = parameter_owners(subject.encoder)
        of_weight = {name: owners.get(name.removeprefix(PREFIX)) for name in subject.tensors}
        found = _encoder_parts(subject)
        parts = {
            name: [part for part in found if part.weight == weight] for name, weight in of_weight.items()
        }
        return parts, {task: reader(task) for task in subject.tasks}


def _encoder_parts(subject: Subject) -> list[LinearPart]:
    """Find the encoder's linear layers; the result is cached for all models of the architecture."""
    views, task = subject.required_views("inputs of linear layers"), subject.tasks[0]

    def compute() -> dict[str, Any]:
        found = linear_parts(subject.encoder, subject.state(task), views.samples(task)[:1])
        return {"parts": [asdict(part) for part in found]}

    key = {"encoder": views.gradient_key(task)["encoder"], "version": _VERSION}
    record = subject.store.record("linear_parts", key, compute)
    return [LinearPart(**part) for part in record["parts"]]


def input_grams(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    samples: Inputs,
    *,
    batch_size: int = 32,
) -> dict[LinearPart, Float[Tensor, "_ _"]]:
    """Compute G = XᵀX for every linear layer in eval mode; X has one row per token or position of each sample.

    Products are summed in float64 and added up in float32, so the batch size changes nothing but rounding.

    Args:
        encoder: inputs → features; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        samples: the task's own preprocessed calibration samples.
        batch_size: samples per forward pass.

    Returns:
        Linear layer → Gram matrix in float32, on the CPU. Convolutions, and matrices no input is multiplied
        by, are not among them.

    Raises:
        UserError: there is no sample, or an input is not finite.

    Paper: Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849.
    """
    if not len(samples):
        raise UserError(
            "Expected at least one calibration image to compute the inputs of linear layers, got none."
        )
    found: dict[LinearPart, Tensor] = {}

    def add(part: LinearPart, rows: Tensor) -> None:
        gram = _gram(rows)
        found[part] = found[part].add_(gram) if part in found else gram

    _watch(encoder, state, samples, batch_size, add)
    for part, gram in found.items():
        if not torch.isfinite(gram).all():
            raise UserError(
                f"The inputs of layer '{part.weight}' are not finite, because the weights or the values of the"
                " calibration images are too large or not finite. Check both, or leave the model out."
            )
    return {part: gram.cpu() for part, gram in found.items()}


def linear_parts(encoder: nn.Module, state: Mapping[str, Tensor], sample: Inputs) -> list[LinearPart]:
    """Return the linear layers that are called in a forward pass of the encoder."""
    found: dict[LinearPart, None] = {}
    _watch(encoder, state, sample, 1, lambda part, _rows: found.update({part: None}))
    missed = _missed(encoder, {part.weight for part in found})
    if missed:
        logger.warning(
            "RegMean uses plain averages for the weights of %d linear layers such as '%s', because a forward pass"
            " does not call these layers.",
            len(missed),
            missed[0],
        )
    return list(found)


def _missed(encoder: nn.Module, seen: set[str]) -> list[str]:
    weights = {id(parameter): name for name, parameter in encoder.named_parameters() if name in seen}
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in weights
    ]


def _watch(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    samples: Inputs,
    batch_size: int,
    see: Callable[[LinearPart, Tensor], None],
) -> None:
    """Run the encoder and yield every product of rows with a weight: (layer, rows × width)."""
    owners = parameter_owners(encoder)
    used = {
        # Contiguous, because parts of a weight are identified by their offset in its memory.
        name: value.detach().contiguous()
        for name, value in state.items()
        if owners.get(name, name) == name
    }
    weights = {name: used[name] for name in used if name in owners}
    device = next(iter(used.values())).device
    with evaluation_mode(encoder), torch.no_grad(), _separate_attention():
        for batch in _without_padding(encoder, samples.without_labels(), batch_size):
            with _Products(weights, see):
                features(encoder, batch.to(device), used)


def _without_padding(encoder: nn.Module, samples: Inputs, batch_size: int) -> Iterator[Inputs]:
    """Yield batches in which every place counts: sequences one by one, without the tokens that fill them up."""
    for batch in samples.batches(batch_size):
        if place_mask(encoder, batch) is None:
            yield batch
            continue
        for one in batch.batches(1):
            counted = place_mask(encoder, one)
            assert counted is not None
            yield Inputs({name: tensor[:, counted[0]] for name, tensor in one.tensors.items()})


@contextlib.contextmanager
def _separate_attention() -> Iterator[None]:
    """Make attention compute its projections separately, instead of in the fused operation for inference."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


class _Products(TorchDispatchMode):
    """Intercept all operations to find products with one of the weights."""

    def __init__(self, weights: Mapping[str, Tensor], see: Callable[[LinearPart, Tensor], None]) -> None:
        super().__init__()
        self._see = see
        self._weights: dict[int, list[tuple[str, Tensor]]] = {}
        for name, weight in weights.items():
            if weight.ndim == 2 and weight.numel():
                self._weights.setdefault(_place(weight), []).append((name, weight))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            left, right = (args[position] for position in _PRODUCTS[func])
            self._look(left, right.mT if func is _OPERATIONS.linear.default else right)
        return func(*args, **(kwargs or {}))

    def _look(self, rows: Tensor, factor: Tensor) -> None:
        # In a batched product the weight is expanded without a copy.
        if factor.ndim == 3 and factor.stride(0) == 0:
            factor = factor[0]
        if factor.ndim != 2:
            return
        for name, weight in self._weights.get(_place(factor), []):
            part = _part(name, weight, factor)
            if part is not None:
                self._see(part, rows.reshape(-1, part.width))
                return


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _part(name: str, weight: Tensor, factor: Tensor) -> LinearPart | None:
    """Return the contiguous part of a weight that equals an inputs × outputs factor; None if it is not a part of it."""
    width, outputs = factor.shape
    offset = factor.storage_offset() - weight.storage_offset()
    columns = weight.shape[1]
    # For a matrix of width one the strides are ambiguous, but irrelevant.
    if factor.shape == weight.shape and offset == 0 and (outputs == 1 or factor.stride(1) == 1):
        return LinearPart(name, width, True, 0, outputs)
    first, remainder = offset // columns, offset % columns
    by_rows = (width == 1 or factor.stride(0) == 1) and (outputs == 1 or factor.stride(1) == columns)
    if width == columns and by_rows and remainder == 0 and 0 <= first <= len(weight) - outputs:
        return LinearPart(name, width, False, int(first), int(first) + outputs)
    return None


def _gram(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "width width"]:
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in rows.split(_ROWS):
        wide = block.double()
        total.addmm_(wide.mT, wide)
    return ((total + total.mT) / 2).float()
