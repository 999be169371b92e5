"""Print the verdict and a short table at the end of an analysis."""

from rich.console import Console

from mergeability.errors import printable
from mergeability.pipeline.verdicts import verdict
from mergeability.reporting.headline import counted
from mergeability.reporting.summaries import Analysis, summary_table


def show(analysis: Analysis) -> None:
    """Print the verdict and a table of methods; if there are no merges, print the numbers of pairs and metrics."""
    Console().print(printable(str(verdict(analysis))), markup=False, highlight=False, end="\n\n")
    if analysis.methods:
        Console().print(summary_table(analysis))
    else:
        Console().print(
            f"{counted(len(analysis.pairs), 'pair')}, {counted(len(analysis.metrics), 'metric')} each."
        )
