"""Ways to decompose one delta: time and error of each, on generated ViT-B/16 matrices, on one core.

`python -m benchmarks.decompositions` prints a table: a thin float32 SVD, ours, and a randomised truncated SVD
of rank 110 with more and more power iterations. The witness is a float64 SVD.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.models import SIZES, fine_tuned_state, shapes
from mergeability.profiles.subspaces import decompose

_NAMES = ("attn.out_proj.weight", "attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_VALUES, _VECTORS, _RANK = 100, 10, 110
_ITERATIONS = (1, 2, 4, 8)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| matrix | method | seconds | largest relative error of 100 values | 1 − overlap of 10 right vectors |"
    )
    print("|---|---|---|---|---|")
    with threadpool_limits(1, "blas"):
        for name in _NAMES:
            _compare(name, _delta(f"visual.transformer.resblocks.5.{name}"))


def _delta(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shapes(SIZES["vit_b16"])[name], generator=generator) * 0.03}
    return fine_tuned_state(base, number=1)[name] - base[name]


def _compare(name: str, delta: Tensor) -> None:
    _, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    for method, seconds, found, basis in _candidates(delta):
        error = ((found[:_VALUES].double() - values[:_VALUES]).abs() / values[:_VALUES]).max()
        overlap = (right[:_VECTORS] @ basis[:, :_VECTORS].double()).square().sum() / _VECTORS
        shape = "×".join(map(str, delta.shape))
        print(f"| {name} {shape} | {method} | {seconds:.3f} | {error:.1e} | {1 - overlap:.1e} |", flush=True)


def _candidates(delta: Tensor) -> list[tuple[str, float, Tensor, Tensor]]:
    thin, thin_seconds = _timed(lambda: torch.linalg.svd(delta, full_matrices=False))
    ours, our_seconds = _timed(lambda: decompose(delta.numpy(), _VECTORS))
    rows = [
        ("thin float32 SVD", thin_seconds, thin[1], thin[2].T),
        ("ours", our_seconds, ours["values"], ours["right_top"]),
    ]
    for count in _ITERATIONS:
        # The global generator is PyTorch's own choice here.
        low, seconds = _timed(lambda count=count: torch.svd_lowrank(delta, q=_RANK, niter=count))
        rows.append((f"randomised, {count} power iterations", seconds, low[1], low[2]))
    return rows


def _timed(do: Callable[[], Any]) -> tuple[Any, float]:
    result = do()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


if __name__ == "__main__":
    main()
