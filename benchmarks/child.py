"""What is measured, each in a fresh process: `python -m benchmarks.child '<JSON job>'` prints one JSON line.

A fresh process, because peak memory is that of a process (VmHWM; `ru_maxrss` would inherit the parent's), and
because nothing may be warm but the page cache.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Bytes that one plain read asks for.
_CHUNK = 2**24
_REPEATS = 5
_PRODUCT_SIZES = {"float64": 2048, "float32": 3072}


def peak_memory() -> int | None:
    """Return this process's largest resident memory so far, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


class Stopwatch:
    """Seconds, peak memory and newly filed entries of one stage after the other."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        self._filed: Counter[str] = Counter()
        self._started = time.perf_counter(), time.process_time()

    def mark(self, stage: str, filed: Mapping[str, int] | None = None) -> None:
        """End a stage; `filed` counts the store's entries by kind up to now."""
        wall, processor = time.perf_counter(), time.process_time()
        counts = Counter(filed or {})
        self.stages[stage] = {
            "seconds": wall - self._started[0],
            "processor_seconds": processor - self._started[1],
            "peak_bytes": peak_memory(),
            "filed": dict(counts - self._filed),
        }
        self._filed = counts
        self._started = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Sum of all stages."""
        return sum(stage["seconds"] for stage in self.stages.values())


def imported() -> dict[str, Any]:
    """Import what the 18 metrics need, and nothing more."""
    watch = Stopwatch()
    import mergeability.metrics.measure
    import mergeability.profiles.profiles
    import mergeability.store
    import mergeability.task_vectors.vectors  # noqa: F401

    watch.mark("import")
    return {"seconds": watch.seconds}


def staged(*, base: str, models: Mapping[str, str], store: str) -> dict[str, Any]:
    """Measure all pairs stage by stage: the last one finds everything that belongs to one model ready."""
    from mergeability.metrics.measure import measure
    from mergeability.profiles.profiles import Profiles
    from mergeability.store import Store
    from mergeability.task_vectors.vectors import TaskVectors

    watch = Stopwatch()
    vectors = TaskVectors.load(models, base=base, store=Store(store))
    # Whether the hashes are made on opening or when asked for, they belong here.
    assert vectors.base_hash
    assert all(vectors.hashes.values())
    watch.mark("opening", vectors.store.computed)
    profiles = Profiles(vectors)
    profiles.layer_grams("task_vector")
    watch.mark("gram", vectors.store.computed)
    profiles.decompose()
    watch.mark("decompositions", vectors.store.computed)
    table = measure(profiles)
    watch.mark("pairs", vectors.store.computed)
    return {"seconds": watch.seconds, "pairs": len(table), "stages": watch.stages}


def direct(
    *,
    base: str,
    models: Mapping[str, str],
    store: str,
    memory_budget: float | None = None,
    values: bool = False,
) -> dict[str, Any]:
    """Measure all pairs by the one call that a user makes; with `values`, tell the values too."""
    import inspect

    from mergeability.metrics.measure import measure
    from mergeability.profiles.profiles import Profiles
    from mergeability.store import Store
    from mergeability.task_vectors.vectors import TaskVectors

    options: dict[str, Any] = {}
    if memory_budget is not None:
        parameters = inspect.signature(Profiles).parameters
        if "run" in parameters:
            from mergeability.context import Run

            options["run"] = Run(memory_budget=memory_budget)
        elif "memory_budget" in parameters:
            # Versions before the context of a run.
            options["memory_budget"] = memory_budget
        else:
            return {"skipped": "this version of Profiles takes no memory_budget"}
    watch = Stopwatch()
    vectors = TaskVectors.load(models, base=base, store=Store(store))
    table = measure(Profiles(vectors, **options))
    watch.mark("all", vectors.store.computed)
    result: dict[str, Any] = {"seconds": watch.seconds, "pairs": len(table), "stages": watch.stages}
    if values:
        rows = zip(table.index.tolist(), table.to_dict("records"), strict=True)
        result["values"] = [[*pair, row] for pair, row in rows]
    return result


def opponent(*, name: str, base: str, a: str, b: str) -> dict[str, Any]:
    """Let an opponent compute the 18 metrics of one pair."""
    from benchmarks.opponents import OPPONENTS

    watch = Stopwatch()
    values = OPPONENTS[name](Path(base), Path(a), Path(b))
    watch.mark("all")
    return {"seconds": watch.seconds, "values": values}


def floor(*, base: str, models: Mapping[str, str]) -> dict[str, Any]:
    """Measure what this machine needs for the unavoidable: products, reads, hashes, thin SVDs of one model."""
    import safetensors.torch
    import torch

    files = [base, *models.values()]
    read, hashed = _seconds_to_read(files)
    start, tuned = (safetensors.torch.load_file(path) for path in files[:2])
    deltas = {name: tuned[name] - start[name] for name in start if start[name].ndim == 2}
    # Matrices of one shape take one time.
    one_of_shape = {tuple(delta.shape): delta for delta in deltas.values()}
    seconds = {
        shape: _best(lambda delta=delta: torch.linalg.svd(delta, full_matrices=False))
        for shape, delta in one_of_shape.items()
    }
    return {
        "gigaflops": {kind: _gigaflops(getattr(torch, kind), size) for kind, size in _PRODUCT_SIZES.items()},
        "bytes": sum(Path(path).stat().st_size for path in files),
        "read_seconds": read,
        "hash_seconds": hashed,
        "svd_seconds_a_model": sum(seconds[tuple(delta.shape)] for delta in deltas.values()),
        "matrices": len(deltas),
        "elements": sum(tensor.numel() for tensor in start.values()),
    }


def merge(*, method: str, base: str, models: Mapping[str, str], store: str) -> dict[str, Any]:
    """Merge by one method of `conf/merge`; opening, which hashes what the store does not know, is apart."""
    from benchmarks.merges import made, sketch
    from mergeability.store import Store
    from mergeability.task_vectors.vectors import TaskVectors

    chosen = made(method)
    _read_once([base, *models.values()])
    watch = Stopwatch()
    vectors = TaskVectors.load(models, base=base, store=Store(store))
    watch.mark("opening", vectors.store.computed)
    merged = chosen(vectors)
    watch.mark("merge", vectors.store.computed)
    # The peak before anything is done to the result.
    return {
        "seconds": watch.seconds,
        "stages": watch.stages,
        "peak_bytes": peak_memory(),
        "sketch": sketch(merged),
    }


def plain_merge(
    *, method: str, base: str, models: Mapping[str, str], share: float | None = None
) -> dict[str, Any]:
    """Merge the plain way, in no more than a share of the memory that is free where one is given."""
    from benchmarks.merge_opponents import MERGES
    from benchmarks.merges import sketch

    _read_once([base, *models.values()])
    limit = None if share is None else _limit_memory(share)
    watch = Stopwatch()
    try:
        merged = MERGES[method](Path(base), [Path(path) for path in models.values()])
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        free = "there is" if limit is None else f"{limit / 2**30:.0f} GiB, most of what is free"
        return {"skipped": f"needs more memory than {free}"}
    watch.mark("all")
    return {"seconds": watch.seconds, "peak_bytes": peak_memory(), "sketch": sketch(merged)}


def svd_floor(*, base: str, models: Mapping[str, str]) -> dict[str, Any]:
    """Measure one thin float32 SVD of every matrix of every model, the deltas in memory."""
    import safetensors.torch
    import torch

    start = safetensors.torch.load_file(base)
    deltas = []
    for path in models.values():
        tuned = safetensors.torch.load_file(path)
        deltas += [tuned[name] - tensor for name, tensor in start.items() if tensor.ndim == 2]
    # The first call sets up threads and libraries.
    torch.linalg.svd(deltas[0], full_matrices=False)
    watch = Stopwatch()
    for delta in deltas:
        torch.linalg.svd(delta, full_matrices=False)
    watch.mark("all")
    return {"seconds": watch.seconds, "matrices": len(deltas)}


def ties_resident(*, base: str, models: Mapping[str, str]) -> dict[str, Any]:
    """Measure the steps of TIES on vectors in memory; the fastest exact selection counts."""
    import safetensors.torch
    import torch

    from benchmarks import merge_opponents as plain
    from benchmarks.merges import made, sketch

    density = made("ties").density
    start = safetensors.torch.load_file(base)
    vectors = torch.empty(len(models), sum(tensor.numel() for tensor in start.values()))
    for row, path in zip(vectors, models.values(), strict=True):
        tuned = safetensors.torch.load_file(path)
        row.copy_(plain.flattened({name: tuned[name] - tensor for name, tensor in start.items()}))
    watch, found = Stopwatch(), {}
    for name, selection in plain.SELECTIONS.items():
        found[name] = plain.thresholds(vectors, density, selection)
        watch.mark(name)
    seconds = {name: watch.stages[name]["seconds"] for name in found}
    fastest = min(seconds, key=lambda name: seconds[name])
    merging = Stopwatch()
    trimmed = plain.trim(vectors, found[fastest])
    signs = plain.elect(trimmed)
    merging.mark("election")
    merged = plain.disjoint_merge(trimmed, signs)
    merging.mark("mean")
    peak = peak_memory()
    assert all(torch.equal(one, found[fastest]) for one in found.values()), found
    return {
        "seconds": seconds[fastest] + merging.seconds,
        "selection": fastest,
        "selections": seconds,
        "stages": merging.stages,
        "peak_bytes": peak,
        "sketch": sketch(plain.unflattened(merged, start)),
    }


def _read_once(files: list[str]) -> None:
    """Read files from beginning to end, so that they are in the page cache if that holds them."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _limit_memory(share: float) -> int | None:
    """Have allocations fail beyond a share of the memory that is free; None where the system does not tell."""
    import resource

    known = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", known.read_text()) if known.exists() else None
    if found is None:
        return None
    limit = int(share * int(found[1]) * 1024)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def _seconds_to_read(files: list[str]) -> tuple[float, float]:
    """Read all files by plain reads, the second time from the page cache; then hash them on top."""
    import hashlib

    def hash_all() -> None:
        for path in files:
            with Path(path).open("rb") as file:
                hashlib.file_digest(file, "sha256")

    _read_once(files)
    watch = Stopwatch()
    _read_once(files)
    watch.mark("read")
    hash_all()
    watch.mark("hash")
    return watch.stages["read"]["seconds"], watch.stages["hash"]["seconds"]


def _gigaflops(dtype: Any, size: int) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator).to(dtype)
    return 2 * size**3 / _best(lambda: matrix @ matrix) / 1e9


def _best(do: Callable[[], object]) -> float:
    """Return the shortest of several times, after one that does not count."""
    do()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "imported": imported,
    "staged": staged,
    "direct": direct,
    "opponent": opponent,
    "floor": floor,
    "merge": merge,
    "plain_merge": plain_merge,
    "svd_floor": svd_floor,
    "ties_resident": ties_resident,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    result = MEASURES[job.pop("measure")](**job)
    print(json.dumps({"peak_bytes": peak_memory(), **result}))


if __name__ == "__main__":
    main()
