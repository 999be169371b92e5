"""Show the progress of long loops."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

# Wraps a loop: (items, description, total) → the same items.
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


def no_progress(items: Iterable[Any], _description: str, _total: int) -> Iterable[Any]:
    """Return the items unchanged and show nothing."""
    return items


def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show a progress bar and the remaining time on standard error, or nothing if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    # Imported here, because it takes a tenth of a second, which no one needs without a progress bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)
