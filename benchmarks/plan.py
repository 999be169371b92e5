"""What runs: the parts of the benchmark as lists of steps, and the steps in fresh processes, with the time left."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks import merges
from benchmarks.merge_opponents import MERGES
from benchmarks.models import Suite
from benchmarks.opponents import OPPONENTS

ROOT = Path(__file__).parents[1]
# Of the metrics; the merges are asked for.
PARTS = ("floor", "time", "opponents", "memory")
MERGE = "merge"
MEMORY_BUDGET = 1.0

# Guesses, for the time left only: in thin SVDs of all matrices of a model.
_UNITS = {"reference_like": 14.0, "careful": 2.5, "ours": 0.5, "again": 0.1, "floor": 2.0, "write": 0.2}
_SECONDS_A_UNIT = {"tiny": 0.05, "vit_b16": 8.0, "vit_l14": 38.0}
_SECONDS_A_PROCESS = 4.0
# The same for a merge, a model; all others are reads and sums.
_MERGE_UNITS = {"tsv": 0.6, "iso_c": 0.1, "iso_cts": 1.2}
_PLAIN_UNITS = {"tsv": 1.2, "iso_c": 0.1, "iso_cts": 1.5}
_OTHER_MERGE_UNITS = 0.1
# What two models take is compared with its parts several times, in turn: a machine has slow moments.
_WITH_PARTS = {"tsv": "svd_floor", "iso_c": "svd_floor", "ties": "ties_resident"}
_FROM_STORE = ("tsv", "ties")
# Plain merges end here, and not with the machine.
_SHARE_OF_MEMORY = 0.85
_PLAIN_SECONDS = 1200.0


@dataclass(frozen=True)
class Step:
    """One measurement in a fresh process.

    Attributes:
        part: the part it belongs to.
        labels: what distinguishes its result from the others of its part.
        title: what the progress line says.
        units: expected cost, in thin SVDs of one model.
        job: what `child` is told.
        scratch: folder to remove afterwards.
        seconds: after which it is given up.
    """

    part: str
    labels: dict[str, Any]
    title: str
    units: float
    job: dict[str, Any]
    scratch: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """How much is measured.

    Attributes:
        parts: which parts.
        time_models: numbers of models whose time is taken.
        memory_models: numbers of models whose peak memory is taken.
        pairs: how many pairs the opponents get.
        merge_models: numbers of models that are merged.
        merge_methods: by which methods; by all that need no data when None.
        rounds: how often what two models take is compared with its parts.
        plain_models: numbers of models that are merged the plain way too; all when None.
    """

    parts: Sequence[str] = PARTS
    time_models: Sequence[int] = (2, 4, 8, 16, 20)
    memory_models: Sequence[int] = (2, 4, 8, 16)
    pairs: int = 3
    merge_models: Sequence[int] = (2, 8, 20)
    merge_methods: Sequence[str] | None = None
    rounds: int = 3
    plain_models: Sequence[int] | None = None

    @property
    def models(self) -> int:
        """Number of models that have to be there."""
        counts = [2]
        counts += self.time_models if "time" in self.parts else []
        counts += self.memory_models if "memory" in self.parts else []
        counts += [_models_of_pairs(self.pairs)] if "opponents" in self.parts else []
        counts += self.merge_models if MERGE in self.parts else []
        return max(counts)

    def methods(self, count: int) -> list[str]:
        """Return the chosen methods that merge so many models."""
        return [
            name
            for name in merges.of_count(count)
            if self.merge_methods is None or name in self.merge_methods
        ]


def steps(suite: Suite, choice: Choice) -> list[Step]:
    """List what the chosen parts measure, in the order of `PARTS`, merges last."""
    listed: dict[str, Callable[[Suite, Choice], list[Step]]] = {
        "floor": _floor_steps,
        "time": _time_steps,
        "opponents": _opponent_steps,
        "memory": _memory_steps,
        MERGE: _merge_steps,
    }
    return [step for part in (*PARTS, MERGE) if part in choice.parts for step in listed[part](suite, choice)]


def _floor_steps(suite: Suite, _choice: Choice) -> list[Step]:
    job = {"measure": "floor", **_checkpoints(suite, len(suite.models))}
    labels = {"kind": "floor", "models": len(suite.models)}
    return [Step("floor", labels, "the floor: products, reads, thin SVDs", _UNITS["floor"], job)]


def _time_steps(suite: Suite, choice: Choice) -> list[Step]:
    listed = []
    for count in choice.time_models:
        store = _new_store(suite)
        job = {**_checkpoints(suite, count), "store": str(store)}
        title = f"ours, {count} models"
        first = {"measure": "staged", **job}
        labels = {"kind": "fresh", "models": count}
        listed.append(Step("time", labels, f"{title}, stage by stage", _UNITS["ours"] * count, first))
        again = {"measure": "direct", **job}
        labels = {"kind": "again", "models": count}
        listed.append(Step("time", labels, f"{title}, from the store", _UNITS["again"] * count, again, store))
    return listed


def _opponent_steps(suite: Suite, choice: Choice) -> list[Step]:
    count = _models_of_pairs(choice.pairs)
    chosen = list(combinations(suite.first(count), 2))[: choice.pairs]
    listed = []
    for opponent in OPPONENTS:
        for a, b in chosen:
            files = {"base": str(suite.base), "a": str(suite.models[a]), "b": str(suite.models[b])}
            job = {"measure": "opponent", "name": opponent, **files}
            labels = {"kind": opponent, "pair": [a, b]}
            listed.append(Step("opponents", labels, f"{opponent}, {a} and {b}", _UNITS[opponent], job))
    store = _new_store(suite)
    job = {"measure": "direct", **_checkpoints(suite, count), "store": str(store), "values": True}
    labels = {"kind": "ours", "models": count}
    title = f"ours, the values of the same pairs: {len(chosen)}"
    return [*listed, Step("opponents", labels, title, _UNITS["ours"] * count, job, store)]


def _memory_steps(suite: Suite, choice: Choice) -> list[Step]:
    listed = [Step("memory", {"kind": "import"}, "memory of the imports alone", 0, {"measure": "imported"})]
    budgets: list[tuple[int, float | None]] = [(count, None) for count in choice.memory_models]
    budgets.append((max(choice.memory_models), MEMORY_BUDGET))
    for count, budget in budgets:
        store = _new_store(suite)
        job = {"measure": "direct", **_checkpoints(suite, count), "store": str(store)}
        title = f"memory of ours, {count} models"
        if budget is not None:
            job["memory_budget"] = budget
            title += f", budget {budget:g} GiB"
        labels = {"kind": "ours", "models": count, "memory_budget": budget}
        listed.append(Step("memory", labels, title, _UNITS["ours"] * count, job, store))
    return listed


def _merge_steps(suite: Suite, choice: Choice) -> list[Step]:
    """List the merges: two models against their parts first, then each method against its plain way."""
    listed = []
    compared = [name for name in choice.methods(2) if name in _WITH_PARTS and 2 in choice.merge_models]
    for number in range(choice.rounds):
        for part in dict.fromkeys(_WITH_PARTS[name] for name in compared):
            listed.append(_part_step(suite, part, number))
            for name in compared:
                listed += _our_steps(suite, name, 2, number) if _WITH_PARTS[name] == part else []
    for count in choice.merge_models:
        for name in choice.methods(count):
            listed += [] if count == 2 and name in compared else _our_steps(suite, name, count)
            plain = choice.plain_models is None or count in choice.plain_models
            listed += [_plain_step(suite, name, count)] if plain and name in MERGES else []
    return listed


def _part_step(suite: Suite, part: str, number: int) -> Step:
    titles = {
        "svd_floor": "one thin SVD of each matrix of 2 models",
        "ties_resident": "ties in memory, 2 models",
    }
    units = 2.0 if part == "svd_floor" else 2 * _OTHER_MERGE_UNITS
    job = {"measure": part, **_checkpoints(suite, 2)}
    return Step(MERGE, {"kind": part, "models": 2, "round": number}, titles[part], units, job)


def _our_steps(suite: Suite, name: str, count: int, number: int = 0) -> list[Step]:
    """Merge from an empty store, and again where the store then holds what takes long."""
    store = _new_store(suite)
    job = {"measure": "merge", "method": name, **_checkpoints(suite, count), "store": str(store)}
    units = _MERGE_UNITS.get(name, _OTHER_MERGE_UNITS) * count
    labels = {"kind": "ours", "method": name, "models": count, "round": number}
    title = f"{name}, {count} models"
    if name not in _FROM_STORE:
        return [Step(MERGE, labels, title, units, job, store)]
    again = {**labels, "kind": "from_store"}
    return [
        Step(MERGE, labels, title, units, job),
        Step(MERGE, again, f"{title}, from the store", _OTHER_MERGE_UNITS * count, job, store),
    ]


def _plain_step(suite: Suite, name: str, count: int) -> Step:
    job = {"measure": "plain_merge", "method": name, **_checkpoints(suite, count), "share": _SHARE_OF_MEMORY}
    labels = {"kind": "plain", "method": name, "models": count}
    units = _PLAIN_UNITS.get(name, _OTHER_MERGE_UNITS) * (count + 1)
    title = f"{name} the plain way, {count} models"
    return Step(MERGE, labels, title, units, job, seconds=_PLAIN_SECONDS)


def _checkpoints(suite: Suite, count: int) -> dict[str, Any]:
    models = {name: str(path) for name, path in suite.first(count).items()}
    return {"base": str(suite.base), "models": models}


def _new_store(suite: Suite) -> Path:
    # Beside the models, so that it is removed with them whatever happens.
    return Path(tempfile.mkdtemp(prefix="store-", dir=suite.base.parent))


def _models_of_pairs(pairs: int) -> int:
    """Return the fewest models that have so many pairs."""
    return next(count for count in range(2, pairs + 2) if count * (count - 1) // 2 >= pairs)


@dataclass
class Progress:
    """Lines that say what runs and how long the rest will take, from guesses that what has run corrects."""

    size: str
    total: int
    left: float = 0.0
    done: int = 0
    _guessed: float = field(default=0.0, init=False)
    _taken: float = field(default=0.0, init=False)

    def guess(self, units: float) -> float:
        """Guess how many seconds a step takes."""
        return _SECONDS_A_PROCESS + units * _SECONDS_A_UNIT[self.size]

    def begin(self, title: str) -> None:
        """Say what starts."""
        correction = self._taken / self._guessed if self._guessed else 1.0
        print(
            f"[{self.done + 1}/{self.total}] {title} … ({_duration(self.left * correction)} left)", flush=True
        )

    def end(self, units: float, seconds: float, outcome: str) -> None:
        """Say how it went."""
        self.done += 1
        self.left -= self.guess(units)
        self._guessed += self.guess(units)
        self._taken += seconds
        print(f"    {outcome}", flush=True)


def run(size: str, listed: Sequence[Step], keep: Callable[[Step, dict[str, Any]], None]) -> bool:
    """Run the steps one after the other; hand each result over. Say whether all of them succeeded."""
    progress = Progress(size, len(listed))
    progress.left = sum(progress.guess(step.units) for step in listed)
    succeeded = True
    for step in listed:
        progress.begin(step.title)
        started = time.perf_counter()
        result = in_fresh_process(step.job, step.seconds)
        if step.scratch is not None:
            shutil.rmtree(step.scratch)
        progress.end(step.units, time.perf_counter() - started, _outcome(result))
        succeeded = succeeded and "failed" not in result
        keep(step, result)
    return succeeded


def in_fresh_process(job: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """Run one job in a process of its own; return what it prints, or the last line of its error."""
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(job)]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"skipped": f"given up after {seconds:g} s"}
    if ended.returncode == 0:
        return json.loads(ended.stdout.splitlines()[-1])
    sys.stderr.write(ended.stderr)
    last = (ended.stderr.strip() or f"ended with code {ended.returncode}").splitlines()[-1]
    # The results name no folders of the machine.
    return {"failed": re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", last)}


def write_units(count: int) -> float:
    """Return the expected cost of writing so many models."""
    return _UNITS["write"] * count


def _outcome(result: dict[str, Any]) -> str:
    for word in ("failed", "skipped"):
        if word in result:
            return f"{word}: {result[word]}"
    seconds = f"{result['seconds']:.2f} s, " if "seconds" in result else ""
    peak = result["peak_bytes"]
    return seconds + (f"peak {peak / 2**30:.2f} GiB" if peak else "peak memory unknown")


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
