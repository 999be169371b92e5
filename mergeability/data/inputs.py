"""Define the inputs of models: labelled images, the protocol of image sources, and encoder inputs of any kind."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, Self, TypeVar, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.checkpoints import tensors_hash

T = TypeVar("T")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Samples(Protocol):
    """Labelled samples of one task in the form in which they are stored: images, or the tokens of texts.

    A model turns the rows into the input of its encoder (`Model.preprocess`).
    """

    @property
    def rows(self) -> Tensor:
        """One row per sample."""
        ...

    @property
    def labels(self) -> Int64[Tensor, "N"]:
        """The class index of each sample."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that is equal only for equal rows and labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Tensor | slice) -> Self:
        """Keep the samples of an index tensor, boolean mask or slice, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Images:
    """Hold labelled RGB images of one size, in memory or mapped from a file.

    Attributes:
        images: uint8, shape (N, 3, H, W), values 0 to 255.
        labels: int64, shape (N,).
        known_fingerprint: the value of `fingerprint`, if already known; computed when None.

    Raises:
        UserError: the images are not uint8 of shape (N, 3, H, W), or the labels not int64 of shape (N,).

    Examples:
        >>> import torch
        >>> from mergeability.data import Images
        >>> images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 2]))
        >>> len(images), images[images.labels == 1].images.shape
        (4, torch.Size([2, 3, 8, 8]))
    """

    images: UInt8[Tensor, "N 3 H W"]
    labels: Int64[Tensor, "N"]
    known_fingerprint: str | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                f"Expected RGB images as uint8 of shape (N, 3, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}. Convert grey images to RGB and floats to 0-255 first."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(
                f"Expected one int64 label for each of {len(images)} images, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> "Images":
        """Keep the images of an index tensor, boolean mask or slice, in that order."""
        return Images(self.images[chosen], self.labels[chosen])

    @property
    def rows(self) -> UInt8[Tensor, "N 3 H W"]:
        """The pixels."""
        return self.images

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of shapes, pixels and labels, which is equal only for equal content."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        # Use the arrays' memory directly, because a copy of 75,000 mapped images would not fit in memory.
        digest.update(self.images.contiguous().cpu().numpy().data)
        digest.update(self.labels.contiguous().cpu().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Texts:
    """Hold labelled texts.

    Attributes:
        texts: the texts, each at least one character.
        labels: int64, shape (N,).

    Raises:
        UserError: a text is empty or not a string, or there is not one int64 label per text.

    Examples:
        >>> import torch
        >>> from mergeability.data import Texts
        >>> texts = Texts(["two plus two is four", "two plus two is five"], torch.tensor([1, 0]))
        >>> len(texts), texts.texts[1]
        (2, 'two plus two is five')
    """

    texts: Sequence[str]
    labels: Int64[Tensor, "N"]

    def __post_init__(self) -> None:
        wrong = [text for text in self.texts if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise UserError(
                f"Expected texts that are not empty, got {wrong[0]!r} and {len(wrong) - 1} more. Leave these out."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.texts),):
            raise UserError(
                f"Expected one int64 label for each of {len(self.texts)} texts, got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Hold the tokens of labelled texts, padded at the end to the same length.

    Attributes:
        rows: int64, shape (N, length): numbers of tokens in a vocabulary.
        labels: int64, shape (N,).

    Raises:
        UserError: the tokens or labels are not int64, or there is not one row per label.

    Examples:
        >>> import torch
        >>> from mergeability.data import Tokens
        >>> tokens = Tokens(torch.tensor([[101, 7, 102, 0], [101, 8, 9, 102]]), torch.tensor([0, 1]))
        >>> len(tokens), tokens[tokens.labels == 0].rows.tolist()
        (2, [[101, 7, 102, 0]])
    """

    rows: Int64[Tensor, "N length"]
    labels: Int64[Tensor, "N"]

    def __post_init__(self) -> None:
        if self.rows.dtype != torch.int64 or self.rows.ndim != 2:
            raise UserError(
                f"Expected tokens as int64 of shape (N, length), got {self.rows.dtype} of shape "
                f"{tuple(self.rows.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.rows.shape[:1]:
            raise UserError(
                f"Expected one int64 label for each of {len(self.rows)} texts, got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> "Tokens":
        """Keep the texts of an index tensor, boolean mask or slice, in that order."""
        return Tokens(self.rows[chosen], self.labels[chosen])

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of tokens and labels, which is equal only for equal content."""
        return tensors_hash({"tokens": self.rows, "labels": self.labels})


@dataclass(frozen=True, eq=False)
class Inputs:
    """Hold an encoder's inputs: named tensors with one row per sample, and optional labels.

    Attributes:
        tensors: name → tensor; the encoder is called with them in this order.
        labels: one class index per sample; None if there are no labels.

    Raises:
        UserError: there is no tensor, one is called `labels`, or their lengths differ.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> samples = Inputs({"images": torch.zeros(3, 3, 8, 8)}, torch.tensor([0, 1, 1]))
        >>> len(samples), [len(batch) for batch in samples.batches(2)]
        (3, [2, 1])
    """

    tensors: Mapping[str, Tensor]
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.tensors or "labels" in self.tensors:
            raise UserError(
                "Expected at least one tensor of inputs, under a name other than 'labels', "
                f"got {', '.join(self.tensors) or 'none'}."
            )
        lengths = {name: len(tensor) for name, tensor in self._all.items()}
        if len(set(lengths.values())) > 1:
            named = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise UserError(f"Expected one row per sample in each tensor of inputs: {named}.")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, chosen: Tensor | slice) -> "Inputs":
        """Keep the samples of an index tensor, boolean mask or slice, in that order."""
        return Inputs(
            {name: tensor[chosen] for name, tensor in self.tensors.items()},
            None if self.labels is None else self.labels[chosen],
        )

    def to(self, device: str | torch.device) -> "Inputs":
        """Return the same samples on a device."""
        return Inputs(
            {name: tensor.to(device) for name, tensor in self.tensors.items()},
            None if self.labels is None else self.labels.to(device),
        )

    def batches(self, size: int) -> Iterator["Inputs"]:
        """Yield the samples in order, `size` at a time; the last batch may be smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def without_labels(self) -> "Inputs":
        """Return the same samples without their labels."""
        return Inputs(self.tensors)

    @property
    def fingerprint(self) -> str:
        """A hash of all names, types, shapes and values, including labels."""
        return tensors_hash(self._all)

    @staticmethod
    def joined(parts: Sequence["Inputs"]) -> "Inputs":
        """Concatenate samples of several tasks, without their labels."""
        return Inputs({name: torch.cat([one.tensors[name] for one in parts]) for name in parts[0].tensors})

    @property
    def _all(self) -> dict[str, Tensor]:
        labels = {} if self.labels is None else {"labels": self.labels}
        return {**self.tensors, **labels}


class Source(Protocol):
    """Define the protocol of image sources: every call returns the same images of one split.

    Only `image_cache` loads images from a source. If the source also has `identity(split)`, a JSON-able record of
    everything that determines the images, prepared images are reused without loading them again.

    Examples:
        >>> import torch
        >>> from mergeability.data import Images, Source, Task
        >>> class Black:
        ...     def load(self, split):
        ...         return Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
        >>> source: Source = Black()
        >>> Task("black", source, ["left", "right"], ["a photo of {}"], epochs=1).source is source
        True
    """

    def load(self, split: Split) -> Images | Texts:
        """Return the samples and labels of one split."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """A source of images that do not all fit in memory: `stream` processes images of any size one by one.

    Only `image_cache` loads images from a source.
    """

    def identity(self, split: Split) -> dict[str, Any]:
        """Return a JSON-able record of everything that determines the images of one split."""
        ...

    def labels(self, split: Split) -> Int64[np.ndarray, "N"]:
        """Return the label of each image of a split, including images that cannot be decoded."""
        ...

    def stream(self, split: Split, work: Callable[[Tensor], T]) -> Iterator[tuple[T, int]]:
        """Yield, in order, the result of `work` for each image (uint8, 3×H×W), together with the image's label."""
        ...


def check_split(split: str) -> None:
    """Check that the name of a split is known.

    Raises:
        UserError: the split is not train, validation or test.
    """
    if split not in SPLITS:
        raise UserError(f"Expected a split among {', '.join(SPLITS)}, got {split!r}.")
