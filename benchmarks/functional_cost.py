"""What functional evidence and probes cost: measured on the mini suite, and estimated for 20 models of ViT-B/16's size.

    python -m benchmarks.functional_cost                      needs the models of `make demo`; 15 to 30 minutes
    python -m benchmarks.functional_cost --pass-only          the pass of a real-size encoder alone: under a minute

Each tier is the difference between two whole commands on stores of their own, with and without it. A second run of the
command with all tiers, on the same store, must make no pass. The estimate multiplies passes by the measured rate of one
ViT-B/16 on this machine, in float32 and batches of 64; merging comes on top and is in `benchmarks/results/merges.md`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

from benchmarks.machine import load, machine, versions
from mergeability.files import write_text
from mergeability.provenance import git_commit

ROOT = Path(__file__).parent.parent
IMAGES = 64
BARE = ["metric=[task_vector_l2_distance]", "merge=[]"]
FEW = ["metric=[task_vector_l2_distance]", "test_images=1"]
# Tier → the command with it and the one without it.
TIERS = {
    "0: base_agreement, base_overlap": (
        ["metric=[task_vector_l2_distance,base_agreement,base_overlap]", "merge=[]"],
        BARE,
    ),
    "0 and 1: functional": (["metric=[task_vector_l2_distance,functional]", "merge=[]"], BARE),
    "2: probe of the average": ([*FEW, "merge=average", f"probe={IMAGES}"], [*FEW, "merge=average"]),
    "3: probes of six methods": ([*FEW, "merge=paper", f"probe={IMAGES}"], [*FEW, "merge=paper"]),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure passes and seconds, and write `functional_cost.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT / "outputs", help="the folder with the mini suite's models"
    )
    parser.add_argument("--pass-only", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    rate = images_per_second()
    found: dict[str, Any] = {
        "commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        "load": load(),
        "vit_b16_images_per_second": rate,
        "estimate_20_vit_b16": estimate(20, rate),
    }
    if not options.pass_only:
        found["mini_suite"] = measured(options.root)
    write_text(options.results / "functional_cost.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in found if name not in ("machine", "versions")}, indent=1))
    return 0


def passes(models: int) -> dict[str, int]:
    """Count forward passes of single images: n images of each of T tasks, all pairs.

    >>> passes(20)["0 and 1: functional"]
    26880
    """
    pairs = comb(models, 2)
    return {
        # The base and each task's own model.
        "0: base_agreement, base_overlap": 2 * IMAGES * models,
        "0 and 1: functional": (models + 1) * IMAGES * models,
        "2: probe of the average": 2 * IMAGES * pairs,
        "3: probes of six methods": 6 * 2 * IMAGES * pairs,
    }


def estimate(models: int, rate: float) -> dict[str, dict[str, float]]:
    """Estimate minutes from passes and the rate of one model."""
    return {
        tier: {"passes": count, "minutes": round(count / rate / 60, 1)}
        for tier, count in passes(models).items()
    }


def images_per_second(rounds: int = 3) -> float:
    """Measure the visual encoder of ViT-B/16 with random weights: the median of some batches after a first one."""
    import torch

    from mergeability.devices import chosen_device
    from mergeability.models.clip import ClipModel

    device = chosen_device()
    encoder = ClipModel("vit_b16", "ViT-B-16-quickgelu", 1e-5, IMAGES).build().visual.to(device)
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            # Read back, so that a GPU has finished.
            float(encoder(images).sum())
            seconds.append(time.perf_counter() - began)
    return round(IMAGES / statistics.median(seconds[1:]), 2)


def measured(root: Path) -> dict[str, Any]:
    """Run each tier's two commands on the mini suite; return seconds and the passes that the definition asks for."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-functional-") as name:
        folder = Path(name)
        # Test images of the suite are rendered once, before anything is timed.
        _command(root, folder / "images", [*FEW, "merge=average", "pairs=[[digits,letters]]"])
        for number, (tier, (with_it, without)) in enumerate(TIERS.items()):
            seconds = []
            for words in (without, with_it):
                store = folder / f"store-{number}"
                shutil.rmtree(store, ignore_errors=True)
                shutil.copytree(folder / "images", store)
                seconds.append(_command(root, store, words))
            computed = _computed(store)
            again = _command(root, store, with_it)
            rows[tier] = {
                "passes": passes(10)[tier],
                "seconds": round(seconds[1] - seconds[0], 1),
                "whole_command_seconds": round(seconds[1], 1),
                "computed": computed,
                "second_run_seconds": round(again, 1),
                "second_run_computed": _computed(store),
            }
    return rows


def _computed(store: Path) -> dict[str, int]:
    """Return how many entries of each kind the last command on a store computed."""
    return json.loads((store.with_name(f"{store.name}-run") / "run.json").read_text())["computed"]


def _command(root: Path, store: Path, words: Sequence[str]) -> float:
    """Run an analysis of the mini suite; return its wall time in seconds."""
    began = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "analyze.py"), "suite=mini", "model=clip_mini", "predictor=none"),
            *(
                "logger=none",
                f"paths.root={root}",
                f"paths.store={store}",
                f"hydra.run.dir={store}-run",
                *words,
            ),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
