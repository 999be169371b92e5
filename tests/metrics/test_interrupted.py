"""Measurements that are killed, and started twice, on one store: real processes, real signals, the same bytes."""

import json
import random
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

NAMES = "abcdefgh"
LAYERS = 12
PATIENCE = 240


def measure_when_told(models: Path, folder: Path, process: Path) -> None:
    """Do what a person does, but for a stop after the imports: say that it is ready, and wait for a file."""
    store = Store(folder)
    paths = {path.stem: path for path in sorted(models.glob("?.safetensors"))}
    (process / "ready").touch()
    while not (process / "begin").exists():
        time.sleep(0.005)
    vectors = TaskVectors.load(paths, models / "base.safetensors", store=store)
    measure(Profiles(vectors)).to_csv(process / "table.csv")
    (process / "counters.json").write_text(
        json.dumps({"computed": dict(store.computed), "found": dict(store.found)})
    )


@dataclass(frozen=True)
class Ended:
    """What a measurement that ran to its end left."""

    table: bytes
    computed: dict[str, int]
    found: dict[str, int]


class Measurement:
    """A process that measures the models of a folder, on a store, once it is told to begin."""

    def __init__(self, process, store: Path, folder: Path):
        self.process, self.store, self._folder = process, store, folder

    def wait_until_ready(self) -> None:
        """Wait for the start, and the imports of a fresh process."""
        deadline = time.monotonic() + PATIENCE
        while not (self._folder / "ready").exists():
            assert self.process.exitcode is None, self.output
            assert time.monotonic() < deadline
            time.sleep(0.002)

    @property
    def output(self) -> str:
        return (self._folder / "output.txt").read_text()

    def begin(self) -> None:
        (self._folder / "begin").touch()

    def end(self) -> Ended:
        self.begin()
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0, self.output
        counters = json.loads((self._folder / "counters.json").read_text())
        return Ended((self._folder / "table.csv").read_bytes(), counters["computed"], counters["found"])

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE)

    def kill_at_work(self, new_entries: int, delay: float) -> bool:
        """Kill it some time after it has filed so many entries; say whether it was still at work."""
        before = len(entries(self.store, "gram", "singular"))
        deadline = time.monotonic() + PATIENCE
        self.wait_until_ready()
        self.begin()
        while (
            len(entries(self.store, "gram", "singular")) < before + new_entries
            and self.process.exitcode is None
        ):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        working = self.process.exitcode is None
        self.kill()
        return working


@pytest.fixture(scope="module")
def started(forked, fresh, tmp_path_factory):
    """Start measurements, in children of this process or in processes that import everything themselves."""

    def start_one(models: Path, store: Path, imports: bool = False) -> Measurement:
        folder = tmp_path_factory.mktemp("process")
        output, places = folder / "output.txt", (models, store, folder)
        process = fresh(output, __file__, *places) if imports else forked(measure_when_told, output, *places)
        return Measurement(process, store, folder)

    return start_one


def write_models(folder: Path, size: int) -> Path:
    """Write a base and eight models of a dozen matrices, with a vector beside each."""
    generator = np.random.default_rng(11)
    folder.mkdir()
    shapes = {f"layer{layer:02}.weight": (size, size + 8 * layer) for layer in range(LAYERS)}
    shapes |= {f"layer{layer:02}.bias": (size,) for layer in range(LAYERS)}
    base = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(base, folder / "base.safetensors")
    for name in NAMES:
        model = {
            key: value + np.float32(0.05) * generator.normal(size=value.shape).astype(np.float32)
            for key, value in base.items()
        }
        safetensors.numpy.save_file(model, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def undisturbed(started, tmp_path_factory):
    """The models, what one measurement on a store of its own gives, and the entries it leaves."""

    @cache
    def measured(size):
        folder = tmp_path_factory.mktemp("undisturbed")
        models = write_models(folder / "models", size)
        ended = started(models, folder / "store").end()
        return models, ended, entries(folder / "store")

    return measured


def entries(store: Path, *kinds: str) -> set[str]:
    """Name the finished entries of some kinds, of all but the hashes of files when none is named."""
    kinds = kinds or tuple(path.name for path in store.glob("*") if path.name != "file_hash")
    found = (path for kind in kinds for path in store.glob(f"{kind}/*/*"))
    return {path.name for path in found if not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("kills", "size", "most_entries", "imports"),
    # In entries, not in seconds: however fast the machine is, the work outlasts the kills.
    [(3, 256, 25, False), pytest.param(10, 512, 9, True, marks=pytest.mark.slow)],
)
def test_a_measurement_killed_again_and_again_ends_with_the_same_bytes(
    started, undisturbed, tmp_path, kills, size, most_entries, imports
):
    models, alone, expected_entries = undisturbed(size)
    store, moments = tmp_path / "store", random.Random(20)
    killed = [
        started(models, store, imports).kill_at_work(
            moments.randint(1, most_entries), moments.uniform(0, 0.05)
        )
        for _ in range(kills)
    ]
    assert all(killed), "killed at work, not after it"
    survived = {kind: len(entries(store, kind)) for kind in ("gram", "singular")}
    assert entries(store) < expected_entries
    continued = started(models, store, imports).end()
    assert continued.table == alone.table
    assert alone.table.count(b"\n") == 1 + len(NAMES) * (len(NAMES) - 1) // 2
    assert entries(store) == expected_entries
    # What the killed ones had filed was used, and only the rest was computed.
    assert sum(survived.values()) > 0
    for kind, count in survived.items():
        assert continued.found.get(kind, 0) == count, kind
        assert continued.computed.get(kind, 0) == alone.computed[kind] - count, kind


def test_two_measurements_on_one_store_share_the_work(started, undisturbed, tmp_path):
    models, alone, expected_entries = undisturbed(256)
    store = tmp_path / "store"
    together = [started(models, store) for _ in range(2)]
    for one in together:
        one.wait_until_ready()
    for one in together:
        one.begin()
    first, second = (one.end() for one in together)
    assert first.table == second.table == alone.table
    assert entries(store) == expected_entries
    assert first.computed, "both had something to do"
    assert second.computed, "both had something to do"
    computed = sum((*first.computed.values(), *second.computed.values()))
    assert len(expected_entries) <= computed <= 1.3 * len(expected_entries)


if __name__ == "__main__":
    measure_when_told(*map(Path, sys.argv[1:]))
