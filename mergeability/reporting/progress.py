"""What a person sees in the terminal: progress with an estimate of the time left, and the closing table."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mergeability.reporting.tables import Analysis, summary_table


def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show a bar with an ETA on standard error while iterating; nothing where no person is watching."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


def show(analysis: Analysis) -> None:
    """Write an analysis's short table to the terminal; where nothing was merged, how much was measured."""
    if analysis.methods:
        Console().print(summary_table(analysis))
    else:
        Console().print(f"{len(analysis.pairs)} pairs, {len(analysis.metrics)} metrics each.")
