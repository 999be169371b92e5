"""The closing table of an analysis in the terminal."""

from rich.console import Console

from mergeability.reporting.summaries import Analysis, summary_table


def show(analysis: Analysis) -> None:
    """Write an analysis's short table to the terminal; where nothing was merged, how much was measured."""
    if analysis.methods:
        Console().print(summary_table(analysis))
    else:
        Console().print(f"{len(analysis.pairs)} pairs, {len(analysis.metrics)} metrics each.")
