"""Define the context of a run: the objects that all stages of the run use."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mergeability.checks import is_number
from mergeability.context.workers import check_workers, spread
from mergeability.devices import chosen_device
from mergeability.errors import UserError
from mergeability.progress import Progress, no_progress
from mergeability.store import Store
from mergeability.threads import one_blas_thread

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

GIBIBYTE = 2**30


@dataclass
class Clock:
    """Record how long each stage took.

    Attributes:
        seconds: stage → seconds, rounded to hundredths.

    Examples:
        >>> from mergeability.context import Clock
        >>> clock = Clock()
        >>> with clock.stage("merging"):
        ...     total = sum(range(10))
        >>> list(clock.seconds)
        ['merging']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the duration of the `with` block as the stage `name`, and log when the stage starts."""
        logger.info("%s …", name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


@dataclass(frozen=True)
class Run:
    """Hold the objects that all stages of a run use: store, progress, device, memory budget, clock and workers.

    Args:
        store: cache of computed values; in memory by default.
        progress: wraps long loops: (items, description, total) → the items.
        device: `cpu`, `cuda`, `cuda:<number>`, or `auto`: CUDA if available. The attribute holds the resolved device.
        memory_budget: GiB for computed values, above 0; bounds how many items are processed at once.
        folder: where results are written; None if nothing is written.
        clock: records the duration of each stage.
        workers: number of processes that share the expensive units, at least 1, or the address of a Ray cluster; 1 uses
            only this process.

    Raises:
        UserError: the budget is not positive, the device does not exist, or the number of workers is invalid.

    Examples:
        >>> from mergeability.context import Run
        >>> run = Run(memory_budget=0.5)
        >>> run.device, run.memory == 2**29
        ('cpu', True)
        >>> run.map(lambda task: task.upper(), ["cars", "dtd"], description="names")
        ['CARS', 'DTD']
    """

    store: Store = field(default_factory=Store)
    progress: Progress = no_progress
    device: str = "cpu"
    memory_budget: float | int = 4
    folder: Path | None = None
    clock: Clock = field(default_factory=Clock)
    workers: int | str = 1

    def __post_init__(self) -> None:
        if self.workers != 1:
            check_workers(self.workers, cores())
        if not is_number(self.memory_budget) or self.memory_budget <= 0:
            raise UserError(
                f"Expected memory_budget to be a positive number of GiB, got {self.memory_budget!r}."
            )
        object.__setattr__(self, "device", chosen_device(self.device))

    def __getstate__(self) -> dict[str, Any]:
        # Set in worker processes: nested calls of `map` then run in this process, without progress bars.
        return {**self.__dict__, "workers": 1, "progress": no_progress, "clock": Clock()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def memory(self) -> int:
        """The memory budget in bytes."""
        return int(self.memory_budget * GIBIBYTE)

    def map(
        self,
        unit: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        description: str,
        memory: int | None = None,
    ) -> list[Result]:
        """Apply `unit` to every item, and return the results in the same order.

        This is the only loop over expensive units (models, layers, merges), so workers parallelise every stage. Units
        keep large values in the store and return small ones.

        Args:
            unit: function applied to one item.
            items: its arguments.
            description: shown with the progress.
            memory: upper bound on the bytes that one item needs: as many items as fit into the budget run at once, on
                one core each. None if each item uses all cores or the GPU: items then run one after the other.

        Raises:
            UserError: one item alone exceeds the budget.
        """
        if not items:
            return []
        if self.workers != 1 and len(items) > 1:
            return self._spread(unit, items, description, memory)
        if memory is None:
            return [unit(item) for item in self.progress(items, description, len(items))]
        at_once = self._at_once(memory, description)
        # Process items in random order: otherwise processes that start together on one store would compute the same
        # item at the same time. Results do not depend on the order, because each item is independent and uses one core.
        order = list(range(len(items)))
        random.Random(os.urandom(8)).shuffle(order)
        workers = min(at_once, cores(), len(order))
        # One linear-algebra thread per worker, because the threads of several workers would compete for cores.
        with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(unit, items[place]): place for place in order}
            for _ in self.progress(_finished(pool, list(futures)), description, len(order)):
                pass
        return [future.result() for future in sorted(futures, key=futures.__getitem__)]

    def _at_once(self, memory: int, description: str) -> int:
        at_once = self.memory // max(memory, 1)
        if at_once < 1:
            raise UserError(
                f"A memory budget of {self.memory_budget:g} GiB is too small for the {description}: one of"
                f" them takes {memory / GIBIBYTE:.2g} GiB. Raise memory_budget (profile.memory_budget)."
            )
        return at_once

    def _spread(
        self, unit: Callable[[Item], Result], items: Sequence[Item], description: str, memory: int | None
    ) -> list[Result]:
        workers = self.workers
        if isinstance(workers, int) and memory is not None:
            workers = min(workers, self._at_once(memory, description))
        return spread(
            unit,
            items,
            store=self.store,
            workers=workers,
            cores=cores(),
            progress=self.progress,
            description=description,
            gpus=_gpus(self.device),
        )


def _gpus(device: str) -> int:
    """Count the GPUs available to workers; 1 if a device number was given."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return 1 if ":" in device else torch.cuda.device_count()


def cores() -> int:
    """Count the CPU cores available to this process; joblib's LOKY_MAX_CPU_COUNT limits the number.

    Examples:
        >>> from mergeability.context import cores
        >>> cores() >= 1
        True
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("LOKY_MAX_CPU_COUNT", "")
    return min(found, int(limit)) if limit.isdecimal() and int(limit) else found


def _finished(pool: ThreadPoolExecutor, futures: list[Future[Result]]) -> Iterator[None]:
    try:
        for future in as_completed(futures):
            future.result()
            yield
    finally:
        # After an error or an interrupt, no further items start.
        pool.shutdown(wait=False, cancel_futures=True)
