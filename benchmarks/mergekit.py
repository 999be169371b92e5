"""Merging checkpoints beside mergekit: whole processes, wall time and peak memory, in one run.

    python -m benchmarks.mergekit                                     two models, ViT-B/16-shaped
    python -m benchmarks.mergekit --size llama_1b --models 2 --methods linear ties
    python -m benchmarks.mergekit --size tiny                         under a minute, to see that it works
    python -m benchmarks.mergekit --ours analyze                      merges by `analyze.py`, which starts later

mergekit is installed into an environment of its own (`--environment`), with uv, from the default index. Each program
merges the same files and writes a checkpoint; the order of the programs alternates from round to round, and a round
before the first fills the disk's cache. Linear merges and task arithmetic, which leave nothing to choose, must agree.
Results: `benchmarks/results/mergekit_<size>.json`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.machine import load, machine, versions
from benchmarks.models import SIZES, base_state, fine_tuned_state
from mergeability.files import write_text
from mergeability.provenance import git_commit

ROOT = Path(__file__).parent.parent
VERSION = "0.1.4"
# Method → our name and options, and mergekit's. The densities are those of the published defaults; at other densities
# times differ little.
METHODS: dict[str, tuple[str, dict[str, float], str, dict[str, float]]] = {
    "linear": ("average", {}, "linear", {}),
    "task_arithmetic": ("ta", {"alpha": 1}, "task_arithmetic", {"weight": 1.0}),
    "ties": ("ties", {"density": 0.2}, "ties", {"weight": 1.0, "density": 0.2}),
    "dare": ("dare", {}, "dare_linear", {"weight": 1.0, "density": 0.5}),
    "breadcrumbs": ("breadcrumbs", {}, "breadcrumbs", {"weight": 1.0, "density": 0.9, "gamma": 0.01}),
}
# What both programs define in the same way.
EXACT = ("linear", "task_arithmetic")
# TinyLlama's shape, 1.1 billion parameters.
_LLAMA = {"width": 2048, "hidden": 5632, "blocks": 22, "vocabulary": 32000, "keys": 256}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write models, merge them by both programs, and write what was measured."""
    options = _options(arguments)
    binary = _install(options.environment)
    if options.folder is not None:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-mergekit-", dir=options.folder) as name:
        folder = Path(name)
        files = _write_models(options.size, max(options.models), folder)
        rows = [
            row
            for count in options.models
            for method in options.methods
            for row in _compare(method, files, count, folder, binary, options)
        ]
    found = {
        "command": f"python -m benchmarks.mergekit --size {options.size} --rounds {options.rounds} "
        f"--ours {options.ours}",
        "commit": git_commit(),
        "machine": machine(),
        "versions": {**versions(), "mergekit": VERSION},
        "load": load(),
        "rows": rows,
    }
    write_text(options.results / f"mergekit_{options.size}.json", json.dumps(found, indent=1) + "\n")
    print(_table(rows))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=[*SIZES, "llama_1b"], default="vit_b16")
    parser.add_argument("--models", type=int, nargs="+", default=[2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", choices=["merge", "analyze"], default="merge", help="our command")
    parser.add_argument("--folder", type=Path, help="where models are written")
    parser.add_argument("--environment", type=Path, default=ROOT / "outputs" / "mergekit-environment")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


def _install(environment: Path) -> Path:
    """Install mergekit into an environment of its own, once; return its command."""
    binary = environment / "bin" / "mergekit-pytorch"
    if not binary.exists():
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
        python = str(environment / "bin" / "python")
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", python, f"mergekit=={VERSION}"], check=True
        )
    return binary


def _write_models(size: str, count: int, folder: Path) -> list[Path]:
    """Write a base and models; return their files, the base first."""
    files = [folder / "base.safetensors", *(folder / f"model{number}.safetensors" for number in range(count))]
    if size != "llama_1b":
        base = base_state(SIZES[size])
        states = (base if number < 0 else fine_tuned_state(base, number) for number in range(-1, count))
    else:
        states = (_llama(number) for number in range(-1, count))
    for file, state in zip(files, states, strict=True):
        safetensors.torch.save_file(state, file)
    return files


def _llama(number: int) -> dict[str, Tensor]:
    """Draw a causal language model in bfloat16: the base for -1, else the base and noise of 1 % of its spread."""
    width, hidden, keys = _LLAMA["width"], _LLAMA["hidden"], _LLAMA["keys"]
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes = {"model.embed_tokens.weight": (_LLAMA["vocabulary"], width), "model.norm.weight": (width,)}
    for place in range(_LLAMA["blocks"]):
        shapes |= {f"model.layers.{place}.{name}.weight": shape for name, shape in block.items()}
    shapes["lm_head.weight"] = (_LLAMA["vocabulary"], width)
    state = {}
    for place, (name, shape) in enumerate(shapes.items()):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(place)).mul_(width**-0.5)
        if number >= 0:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * (number + 1) + place))
            values.add_(noise, alpha=0.1 * width**-0.5)
        state[name] = values.to(torch.bfloat16)
    return state


def _compare(
    method: str, files: Sequence[Path], count: int, folder: Path, binary: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure one method by both programs."""
    base, models = files[0], files[1 : count + 1]
    programs: dict[str, Callable[[Path], list[str]]] = {
        "ours": lambda out: (_merge if options.ours == "merge" else _analyze)(method, base, models, out),
        "mergekit": lambda out: _theirs(method, base, models, out, binary),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    processor: dict[str, list[float]] = {name: [] for name in programs}
    memory: dict[str, list[float]] = {name: [] for name in programs}
    for round_number in range(options.rounds + 1):
        for name in list(programs)[:: 1 if round_number % 2 else -1]:
            out = folder / name
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            wall, busy, peak = _timed(programs[name](out), folder / f"{name}.log")
            if round_number:
                seconds[name].append(wall)
                processor[name].append(busy)
                memory[name].append(peak)
    difference = _difference(folder / "ours", folder / "mergekit") if method in EXACT else None
    return [
        {
            "method": method,
            "models": count,
            "program": name,
            "seconds": statistics.median(seconds[name]),
            "processor_seconds": round(statistics.median(processor[name]), 2),
            "all_seconds": [round(one, 2) for one in seconds[name]],
            "peak_gib": statistics.median(memory[name]) / 2**30,
            "largest_difference": difference,
        }
        for name in programs
    ]


def _merge(method: str, base: Path, models: Sequence[Path], out: Path) -> list[str]:
    """Return the command `mergeability merge`, with an empty store, so that nothing is known of the files."""
    name, options, _, _ = METHODS[method]
    words = [word for option, value in options.items() for word in _option(option, value)]
    command = [sys.executable, "-m", "mergeability", "merge", str(base), *map(str, models), "--method", name]
    return [*command, *words, "--out", f"{out}/merged", "--store", f"{out}/store"]


def _option(name: str, value: float) -> list[str]:
    return ["--alpha", str(value)] if name == "alpha" else ["--option", f"{name}={value}"]


def _analyze(method: str, base: Path, models: Sequence[Path], out: Path) -> list[str]:
    name, options, _, _ = METHODS[method]
    named = ", ".join(f"m{number}: {path}" for number, path in enumerate(models))
    return [
        *(sys.executable, str(ROOT / "analyze.py"), "suite=checkpoints", f"suite.base={base}"),
        *(
            f"suite.models={{{named}}}",
            f"merge={name}",
            "arity=all",
            "save=true",
            "metric=[]",
            "predictor=none",
        ),
        *(f"merge.{name}.{option}={value}" for option, value in options.items()),
        *("logger=none", f"hydra.run.dir={out}/run", f"paths.store={out}/store"),
    ]


def _theirs(method: str, base: Path, models: Sequence[Path], out: Path, binary: Path) -> list[str]:
    _, _, name, parameters = METHODS[method]
    config: dict[str, Any] = {"merge_method": name, "models": []}
    weight = {"weight": 1.0 / len(models)} if method == "linear" else {}
    # It fails where a parameter is left to its default; those that a method does not use change nothing.
    given = {"density": 1.0, "gamma": 0.01, "epsilon": 0.01, **parameters, **weight}
    config["models"] = [{"model": str(path), "parameters": given} for path in models]
    if method != "linear":
        config["base_model"], config["parameters"] = str(base), {"normalize": False}
    # JSON is YAML too.
    write_text(out / "config.yaml", json.dumps(config))
    return [str(binary), str(out / "config.yaml"), str(out / "merged"), "--quiet"]


# Starts a command from a process without PyTorch: a command's peak memory is never below that of the process that
# starts it.
_STARTER = """
import json, os, subprocess, sys, time
with open(sys.argv[1], "w") as stream:
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:], stdout=stream, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, process.returncode]))
"""


def _timed(command: Sequence[str], log: Path) -> tuple[float, float, int]:
    """Run a command; return seconds, seconds of processor time, and peak resident bytes.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = [sys.executable, "-S", "-E", "-c", _STARTER, str(log), *command]
    found = subprocess.run(starter, env=environment, check=True, capture_output=True, text=True).stdout
    wall, busy, peak, code = json.loads(found)
    if code:
        raise RuntimeError(f"{command[0]} ended with {code}:\n{log.read_text()[-2000:]}")
    # Of Linux in KiB, of macOS in bytes.
    return wall, busy, peak * (1 if sys.platform == "darwin" else 1024)


def _difference(ours: Path, theirs: Path) -> float:
    """Return the largest difference of any value, relative to the largest value of its tensor."""
    first, second = _state(ours), _state(theirs)
    if set(first) != set(second):
        raise RuntimeError(f"The two merges have other tensors: {sorted(set(first) ^ set(second))[:5]}")
    return max(
        float((first[name].float() - second[name].float()).abs().max() / first[name].float().abs().max())
        for name in first
    )


def _state(folder: Path) -> Mapping[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in folder.rglob("model*.safetensors"):
        state |= safetensors.torch.load_file(path)
    return state


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{'method':16s} models  ours s  mergekit s  ratio  ratio of processor time   ours GiB  mergekit GiB"
    ]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            f"{ours['method']:16s} {ours['models']:6d} {ours['seconds']:7.1f} {theirs['seconds']:11.1f} "
            f"{theirs['seconds'] / ours['seconds']:6.1f} "
            f"{theirs['processor_seconds'] / ours['processor_seconds']:24.1f} "
            f"{ours['peak_gib']:10.2f} {theirs['peak_gib']:13.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
