"""CLIP visual towers from seeds: a base and models fine-tuned from it, as safetensors on disk.

No training: what is measured depends on shapes, and on deltas that look like those of fine-tuning. Each delta
is a low-rank part with a decaying spectrum (of another rank for every model), a part that all models share, and
dense noise; together 1 to 2 % as long as the base.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

# Ranks of the low-rank parts, in turn.
_RANKS = (8, 48, 16, 64, 24, 32)
_SHARED_RANK = 16
# Shares of a delta's squared length.
_LOW_RANK, _SHARED, _DENSE = 0.40, 0.15, 0.45
# Singular values of a low-rank part fall as position to this power.
_DECAY = -0.7
# Relative length of a delta: the smallest, and how much longer the longest is.
_LENGTH, _LENGTH_RANGE = 0.01, 0.01


@dataclass(frozen=True)
class Size:
    """A visual tower's architecture.

    Attributes:
        name: what the size is called on the command line.
        width: of the transformer; the hidden layer of a block is four times as wide.
        blocks: how many there are.
        patch: side of an image patch in pixels.
        positions: patches of an image, and one for the class.
        projection: dimension of the embedding.
    """

    name: str
    width: int
    blocks: int
    patch: int
    positions: int
    projection: int

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in shapes(self).values())


SIZES = {
    "tiny": Size("tiny", width=64, blocks=2, patch=4, positions=17, projection=32),
    "vit_b16": Size("vit_b16", width=768, blocks=12, patch=16, positions=197, projection=512),
    "vit_l14": Size("vit_l14", width=1024, blocks=24, patch=14, positions=257, projection=768),
}


@dataclass(frozen=True)
class Suite:
    """Checkpoints on disk: one base and the models fine-tuned from it.

    Attributes:
        size: their architecture.
        base: file of the base.
        models: name → file, in order.
    """

    size: Size
    base: Path
    models: Mapping[str, Path]

    def first(self, count: int) -> dict[str, Path]:
        """Return the first few models."""
        return dict(list(self.models.items())[:count])


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor, with open_clip's names inside a CLIP."""
    width, hidden = size.width, 4 * size.width
    norms = {f"{place}.{part}": (width,) for place in ("ln_1", "ln_2") for part in ("weight", "bias")}
    block = {
        **norms,
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (width, hidden),
        "mlp.c_proj.bias": (width,),
    }
    tower = {
        "class_embedding": (width,),
        "positional_embedding": (size.positions, width),
        "proj": (width, size.projection),
        "conv1.weight": (width, 3, size.patch, size.patch),
    }
    tower |= {f"{place}.{part}": (width,) for place in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for number in range(size.blocks):
        tower |= {f"transformer.resblocks.{number}.{name}": shape for name, shape in block.items()}
    return {f"visual.{name}": shape for name, shape in tower.items()}


def base_state(size: Size, seed: int = 0) -> dict[str, Tensor]:
    """Draw the base: weights of variance 1/inputs, norms near one, small biases."""
    return {name: _base_tensor(name, shape, seed) for name, shape in shapes(size).items()}


def fine_tuned_state(base: Mapping[str, Tensor], number: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw the model of this number: the base and a delta that is 1 to 2 % as long, tensor by tensor."""
    return {name: tensor + _delta(name, tensor, number, seed) for name, tensor in base.items()}


@contextmanager
def written(
    size: Size,
    count: int,
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _sentence: None,
) -> Iterator[Suite]:
    """Write a base and `count` models, one at a time, and remove them afterwards, also after an error.

    Args:
        size: the architecture.
        count: how many models.
        folder: where a temporary folder is made; the system's place for such when None.
        seed: of everything random.
        progress: is told what was written.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-models-", dir=folder) as name:
        place = Path(name)
        base = base_state(size, seed)
        safetensors.torch.save_file(base, place / "base.safetensors")
        progress(f"wrote the base, {_gigabytes(base):.2f} GB")
        models: dict[str, Path] = {}
        for number in range(count):
            task = f"model{number:02d}"
            models[task] = place / f"{task}.safetensors"
            safetensors.torch.save_file(fine_tuned_state(base, number, seed), models[task])
            progress(f"wrote model {number + 1} of {count}")
        del base
        yield Suite(size, place / "base.safetensors", models)


def _base_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    values = torch.randn(shape, generator=_generator(seed, "base", name))
    if name.endswith("bias"):
        return values.mul_(0.02)
    if ".ln_" in name:
        return values.mul_(0.1).add_(1)
    inputs = shape[0] if name.endswith("visual.proj") else math.prod(shape[1:] or shape)
    return values.mul_(inputs**-0.5)


def _delta(name: str, base: Tensor, number: int, seed: int) -> Tensor:
    own, shared = _generator(seed, number, name), _generator(seed, "shared", name)
    rows = base.shape[0] if base.ndim > 1 else 1
    matrix = (rows, base.numel() // rows)
    rank = _RANKS[number % len(_RANKS)]
    low_rank = _decaying(*matrix, rank, own)
    common = _decaying(*matrix, _SHARED_RANK, shared)
    dense = torch.randn(matrix, generator=own)
    dense /= dense.norm()
    # One length for the whole model, so that the models differ in it.
    length = _LENGTH + _LENGTH_RANGE * float(torch.rand((), generator=_generator(seed, number, "length")))
    delta = low_rank.mul_(_LOW_RANK**0.5).add_(common, alpha=_SHARED**0.5).add_(dense, alpha=_DENSE**0.5)
    return delta.mul_(length * float(base.norm())).reshape(base.shape)


def _decaying(rows: int, columns: int, rank: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix of Frobenius norm 1 whose singular values fall as a power of their position."""
    rank = min(rank, max(min(rows, columns) // 2, 1))
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, columns, generator=generator)
    product = left.mul_(torch.arange(1, rank + 1) ** _DECAY) @ right
    return product.div_(product.norm())


def _generator(*words: object) -> torch.Generator:
    """Return a generator that depends on the words alone, not on what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _gigabytes(tensors: Mapping[str, Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e9
