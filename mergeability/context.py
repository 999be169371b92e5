"""Independent pieces of work on all cores: in threads, and shared with other processes that use the same store."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from threadpoolctl import threadpool_limits

from mergeability.errors import UserError
from mergeability.progress import Progress, no_progress

Item = TypeVar("Item")

GIBIBYTE = 2**30


def work(
    items: Sequence[Item],
    do: Callable[[Item], object],
    *,
    description: str,
    memory: int,
    memory_budget: float | int,
    progress: Progress = no_progress,
) -> None:
    """Do every item, several at a time; what an item yields it files itself.

    Each item runs on one core, so its numbers depend neither on the cores of the machine nor on what else
    runs. The order is random: processes that start together on one store come to meet, instead of computing
    the same item side by side.

    Args:
        items: what to do.
        do: does one; releases the interpreter's lock where it computes.
        description: of the work, for the progress.
        memory: bytes that one item needs at most.
        memory_budget: GiB that all items at work may need.
        progress: wraps the loop.

    Raises:
        UserError: one item alone exceeds the budget.
    """
    if not items:
        return
    at_once = int(memory_budget * GIBIBYTE) // max(memory, 1)
    if at_once < 1:
        raise UserError(
            f"A memory budget of {memory_budget:g} GiB is too small for the {description}: "
            f"one takes {memory / GIBIBYTE:.2g} GiB. Raise profile.memory_budget."
        )
    order = list(items)
    random.Random(os.urandom(8)).shuffle(order)
    # One thread of linear algebra per worker: with several, the threads of the workers wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(at_once, cores(), len(order))) as pool:
        for _ in progress(_finished(pool, do, order), description, len(order)):
            pass


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finished(pool: ThreadPoolExecutor, do: Callable[[Item], object], order: list[Item]) -> Iterator[None]:
    futures = [pool.submit(do, item) for item in order]
    try:
        for future in as_completed(futures):
            future.result()
            yield
    finally:
        # After an error or an interrupt, nothing that has not begun begins.
        pool.shutdown(wait=False, cancel_futures=True)
