"""Fine-tuning's images/s against the bare model's, and the time of the 28 metrics, on a GPU.

    python -m benchmarks.finetune_throughput                                   ViT-B/16 in bf16, some minutes on one GPU
    python -m benchmarks.finetune_throughput --sizes tiny --device cpu         the same code in seconds, as a smoke test

The bare model is forward and backward on one batch that lies on the device as floats: no loading, no resizing, no
optimiser, no metrics, no log. What fine-tuning reaches of that is its share. Both run in this process, in turn, as
often as `--rounds` says; the medians are compared. Weights and images are random: neither changes how long it takes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import models
from benchmarks.machine import machine, versions
from mergeability.commands.train import quiet_lightning
from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.data.tasks import Images
from mergeability.finetuning.data import TaskDataModule
from mergeability.finetuning.module import FineTuningModule, TrainingSettings
from mergeability.metrics.catalogue import PAPER
from mergeability.metrics.measure import measure
from mergeability.models.clip import CLIP_MEAN, CLIP_STD
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors

_CLASSES = 10
_HEAD_WIDTH = 64
_SAMPLES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "This measures a GPU, and PyTorch sees no CUDA device here. Try it out with --sizes tiny --device cpu.",
            file=sys.stderr,
        )
        return 1
    quiet_lightning()
    size = models.SIZES[options.sizes]
    found: dict[str, Any] = {
        "size": size.name,
        "device": _device_name(options.device),
        "batch": options.batch,
    }
    found |= training(size, options)
    if options.models:
        found |= metrics(size, options.models, options.device)
    print(json.dumps({**found, "machine": machine(), "versions": versions()}, indent=1))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune_throughput", description=__doc__)
    parser.add_argument("--sizes", choices=models.SIZES, default="vit_b16", help="of the model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, help="images a step; 128, or 8 for tiny")
    parser.add_argument("--steps", type=int, help="timed a round; 100, or 5 for tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--models", type=int, help="whose metrics are measured; 20, or 3 for tiny; 0 for none"
    )
    parser.add_argument("--compile", action="store_true", help="compile the encoder of both")
    options = parser.parse_args(arguments)
    for name, full, small in (("batch", 128, 8), ("steps", 100, 5), ("models", 20, 3)):
        if getattr(options, name) is None:
            setattr(options, name, small if options.sizes == "tiny" else full)
    return options


def encoder(size: models.Size) -> VisionTransformer:
    """Build the visual tower of these sizes, weights at random."""
    side = size.patch * round((size.positions - 1) ** 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return VisionTransformer(
            image_size=side, patch_size=size.patch, width=size.width, layers=size.blocks,
            heads=max(1, size.width // _HEAD_WIDTH), mlp_ratio=4.0, output_dim=size.projection,
            act_layer=QuickGELU,
        )  # fmt: skip


def images(tower: VisionTransformer, count: int) -> Images:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, *tower.image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, _CLASSES, (count,), generator=generator))


def normalise(pixels: Tensor) -> Tensor:
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=pixels.device)[:, None, None]
    return (pixels.float() / 255 - mean) / std


def training(size: models.Size, options: argparse.Namespace) -> dict[str, Any]:
    """Time both in turn; return their images/s and the share that fine-tuning reaches."""
    ours, bare = [], []
    for _ in range(options.rounds):
        bare.append(bare_rate(size, options))
        ours.append(fine_tuning_rate(size, options))
    rates = {"bare": statistics.median(bare), "fine_tuning": statistics.median(ours)}
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    return {
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "all_rounds": {"bare": [round(r, 1) for r in bare], "fine_tuning": [round(r, 1) for r in ours]},
        "share": round(rates["fine_tuning"] / rates["bare"], 3),
        "peak_memory_gib": peak and round(peak, 2),
    }


def bare_rate(size: models.Size, options: argparse.Namespace) -> float:
    """Images/s of forward and backward on one batch that stays on the device."""
    tower = encoder(size).to(options.device).train()
    run: Callable[[Tensor], Any] = torch.compile(tower) if options.compile else tower
    head = torch.randn(_CLASSES, size.projection, device=options.device)
    batch = images(tower, options.batch)
    pixels, labels = normalise(batch.images.to(options.device)), batch.labels.to(options.device)

    def step() -> None:
        tower.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16):
            loss = cross_entropy(run(pixels) @ head.T, labels)
        loss.backward()

    for _ in range(3):
        step()
    _finish(options.device)
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    _finish(options.device)
    return options.steps * options.batch / (time.perf_counter() - began)


class _Stamps(pl.Callback):
    """Take the time after the third step and after the last one."""

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps, self.times = device, steps, []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (3, 3 + self.steps):
            _finish(self.device)
            self.times.append(time.perf_counter())


def fine_tuning_rate(size: models.Size, options: argparse.Namespace) -> float:
    """Images/s of a fine-tuning as `train.py` runs it, without its validation and its files."""
    tower, stamps = encoder(size), _Stamps(options.device, options.steps)
    head = torch.randn(_CLASSES, size.projection)
    recipe = TrainingSettings(epochs=1, learning_rate=1e-5, batch_size=options.batch, compile=options.compile)
    module = FineTuningModule(tower.train(), head, normalise, recipe)
    data = TaskDataModule(images(tower, options.batch * (3 + options.steps)), images(tower, 2), options.batch)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, precision="bf16-mixed",
        gradient_clip_val=1.0, logger=False, callbacks=[stamps], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    first, last = stamps.times
    return options.steps * options.batch / (last - first)


def metrics(size: models.Size, count: int, device: str) -> dict[str, Any]:
    """Time all 28 metrics of models on disk with random calibration images, from an empty store."""
    tower = encoder(size)
    with models.written(size, count) as suite:
        generator = torch.Generator().manual_seed(2)
        heads = {task: torch.randn(_CLASSES, size.projection, generator=generator) for task in suite.models}
        one = images(tower, _SAMPLES)
        calibration = {task: Inputs({"images": normalise(one.images)}, one.labels) for task in suite.models}
        views = Views(tower.eval(), heads, calibration)
        began = time.perf_counter()
        vectors = TaskVectors.load(suite.models, suite.base)
        table = measure(Profiles(vectors, views, Run(device=device)), PAPER)
        seconds = time.perf_counter() - began
    return {
        "models": count,
        "pairs": len(table),
        "metrics": table.shape[1],
        "metrics_seconds": round(seconds, 1),
    }


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
