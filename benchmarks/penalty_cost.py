"""What each penalty costs a step of fine-tuning, as a ratio to plain fine-tuning of the same model in the same run.

    python -m benchmarks.penalty_cost                                          both models on the CPU, some minutes
    python -m benchmarks.penalty_cost --sizes vit_b16 --device cuda --batch 128
    python -m benchmarks.penalty_cost --sizes tiny                             the same code in seconds, as a smoke test
    python -m benchmarks.penalty_cost --results benchmarks/results             and keep the numbers as JSON

A step is one as `train.py` takes it, optimiser and clipping included, the median of several after a first one. In each
round every penalty has its turn beside plain fine-tuning; the ratio is the median over rounds. What is done once, such
as decomposing the base's matrices, is listed apart. Weights and images are random: neither changes how long it takes.
Few images a step make penalties on the weights look dear, since their cost does not depend on the images.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks import models
from benchmarks.finetune_throughput import encoder, images, normalise
from benchmarks.machine import load, machine, versions
from mergeability.commands.train import quiet_lightning
from mergeability.files import write_text
from mergeability.finetuning.data import TaskDataModule
from mergeability.finetuning.module import FineTuningModule, TrainingSettings
from mergeability.finetuning.penalties.base import Penalty
from mergeability.finetuning.penalties.grad_magnitude import GradMagnitude
from mergeability.finetuning.penalties.l2_to_init import L2ToInit
from mergeability.finetuning.penalties.singular_alignment import SingularAlignment
from mergeability.finetuning.penalties.subspace import Subspace
from mergeability.finetuning.penalties.weighted_sum import WeightedSum
from mergeability.provenance import git_commit

SIZES = {
    **models.SIZES,
    "clip_mini": models.Size("clip_mini", width=128, blocks=4, patch=8, positions=17, projection=64),
}
PLAIN = "plain"
_STRENGTH = 1e-3
_CLASSES = 10
# Images a step and rounds, where the command line does not say: enough steps to see through the noise, in minutes.
_BATCHES = {"tiny": 4, "clip_mini": 32}
_FEW_IMAGES = 4
_STEPS = {"tiny": 2, "clip_mini": 30}
_FEW_STEPS = 3


def penalties() -> dict[str, Penalty | None]:
    """Make every penalty, each with a strength that leaves the weights where they are for a few steps."""
    terms: dict[str, Penalty] = {
        "grad_magnitude": GradMagnitude(0.25),
        "l2_to_init": L2ToInit(0.25),
        "subspace": Subspace(0.25),
        "singular_alignment": SingularAlignment(0.25),
    }
    return {
        PLAIN: None,
        "l2_to_init": L2ToInit(_STRENGTH),
        "subspace u": Subspace(_STRENGTH, side="u"),
        "subspace v": Subspace(_STRENGTH, side="v"),
        "subspace uv": Subspace(_STRENGTH, side="uv"),
        "singular_alignment": SingularAlignment(_STRENGTH),
        "grad_magnitude finite_difference": GradMagnitude(_STRENGTH),
        "grad_magnitude exact": GradMagnitude(_STRENGTH, estimator="exact"),
        "mergeability": WeightedSum(terms, _STRENGTH),
    }


# What a step may cost, as a ratio: shown beside the measurement, never a reason to fail.
TARGETS = {
    "l2_to_init": 1.10,
    "subspace u": 1.25,
    "subspace v": 1.25,
    "subspace uv": 1.25,
    "singular_alignment": 1.25,
    "grad_magnitude finite_difference": 2.2,
    "grad_magnitude exact": 3.5,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "PyTorch sees no CUDA device here. Leave out --device cuda to measure on the CPU.",
            file=sys.stderr,
        )
        return 1
    quiet_lightning()
    found = {"sizes": {name: measured(SIZES[name], options) for name in options.sizes}}
    for name, size in found["sizes"].items():
        print(table(name, size), flush=True)
    if options.results is not None:
        where = {"commit": git_commit(), "load": load(), "machine": machine(), "versions": versions()}
        write_text(options.results / "penalty_cost.json", json.dumps({**found, **where}, indent=1) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.penalty_cost", description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=["clip_mini", "vit_b16"], help="of the models"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--batch", type=int, help="images a step; 32, or few for large models")
    parser.add_argument("--steps", type=int, help="timed a round; 30, or few for large models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--penalties", nargs="+", choices=penalties(), default=list(penalties()), help="some")
    parser.add_argument("--results", type=Path, help="folder for penalty_cost.json; nowhere unless given")
    options = parser.parse_args(arguments)
    for name in ("batch", "steps", "rounds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is at least 1")
    return options


def measured(size: models.Size, options: argparse.Namespace) -> dict[str, Any]:
    """Time all penalties in turn; return seconds a step, ratios to plain and seconds spent once."""
    batch = options.batch or _BATCHES.get(size.name, _FEW_IMAGES)
    steps = options.steps or _STEPS.get(size.name, _FEW_STEPS)
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name in dict.fromkeys([PLAIN, *options.penalties]):
            penalty = penalties()[name]
            rounds[-1][name] = step_seconds(size, penalty, batch, steps, options.device)
            done = f"{size.name}, round {number + 1} of {options.rounds}: {name}"
            print(f"{done}: {rounds[-1][name][0]:.4f} s a step", file=sys.stderr, flush=True)
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "batch": batch,
        "steps": steps,
        "rounds": options.rounds,
        "penalties": {name: _summary(rounds, name) for name in rounds[0]},
    }


def _summary(rounds: Sequence[Mapping[str, tuple[float, float]]], name: str) -> dict[str, Any]:
    ratios = [one[name][0] / one[PLAIN][0] for one in rounds]
    return {
        "seconds_a_step": round(statistics.median(one[name][0] for one in rounds), 6),
        "ratio": round(statistics.median(ratios), 3),
        "all_ratios": [round(ratio, 3) for ratio in ratios],
        "target": TARGETS.get(name),
        "seconds_once": round(statistics.median(one[name][1] for one in rounds), 3),
    }


class _Clock(pl.Callback):
    """Take the time after every step."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, []

    def on_train_batch_end(self, *_: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def step_seconds(
    size: models.Size, penalty: Penalty | None, batch: int, steps: int, device: str
) -> tuple[float, float]:
    """Return the median seconds of a step after the first, and those that making the module took."""
    tower, clock = encoder(size), _Clock(device)
    head = torch.randn(_CLASSES, size.projection, generator=torch.Generator().manual_seed(2))
    recipe = TrainingSettings(epochs=1, learning_rate=1e-5, batch_size=batch)
    began = time.perf_counter()
    module = FineTuningModule(tower.train(), head, normalise, recipe, penalty)
    once = time.perf_counter() - began
    data = TaskDataModule(images(tower, batch * (1 + steps)), images(tower, 2), batch)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="gpu" if device == "cuda" else "cpu", devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true", gradient_clip_val=1.0, logger=False,
        callbacks=[clock], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return statistics.median(later - earlier for earlier, later in zip(clock.times, clock.times[1:])), once


def table(name: str, size: Mapping[str, Any]) -> str:
    """Show one size: a line a penalty."""
    lines = [
        f"{name}, {size['device']}, {size['batch']} images a step",
        f"{'penalty':<34}{'s a step':>10}{'ratio':>8}{'target':>8}{'once, s':>9}",
    ]
    for penalty, found in size["penalties"].items():
        target = "" if found["target"] is None else f"≤ {found['target']:g}"
        lines.append(
            f"{penalty:<34}{found['seconds_a_step']:>10.4f}{found['ratio']:>8.2f}{target:>8}{found['seconds_once']:>9.2f}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
