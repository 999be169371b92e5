"""Print the table of a comparison in the terminal."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from mergeability.errors import printable
from mergeability.verbs.comparing import Comparison

# With more pairs, pairs become rows and only some metrics are shown.
_MOST_COLUMNS = 4
_TELLING = (
    "task_vector_cosine_similarity",
    "task_vector_magnitude_ratio",
    "stable_rank",
    "subspace_overlap",
    "singular_value_overlap",
)
_MOST_ROWS = 40
# If the output is not a terminal, its width is unknown and lines are not truncated.
_WIDE = 200


def show_comparison(found: Comparison) -> None:
    """Print the metrics, unusual values, and what could not be measured."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    for sentence in found.stands_out:
        console.print(printable(sentence), markup=False, highlight=False)
    console.print()
    console.print(_table(found))
    for sentence in _cut(found):
        console.print(sentence, markup=False, highlight=False)
    for sentence in found.left_out:
        console.print(f"Note: {printable(sentence)}", markup=False, highlight=False)


def _table(found: Comparison) -> Table:
    metrics = found.table
    pairs = [" + ".join(map(printable, map(str, pair))) for pair in metrics.index]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if len(pairs) <= _MOST_COLUMNS:
        table.add_column("metric", overflow="fold")
        for pair in pairs:
            table.add_column(pair, justify="right", overflow="fold")
        for name in metrics.columns:
            table.add_row(str(name), *(_number(value) for value in metrics[name]))
        return table
    table.add_column("pair", overflow="fold")
    shown = _shown(found)
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for pair, (_, row) in list(zip(pairs, metrics.iterrows(), strict=True))[:_MOST_ROWS]:
        table.add_row(pair, *(_number(row[name]) for name in shown))
    return table


def _shown(found: Comparison) -> list[str]:
    return [name for name in _TELLING if name in found.table] or list(found.table.columns[: len(_TELLING)])


def _cut(found: Comparison) -> list[str]:
    """Say what the table does not show."""
    count, metrics = found.table.shape
    if count <= _MOST_COLUMNS:
        return []
    shown = len(_shown(found))
    rows = f"{_MOST_ROWS} of the {count} pairs and " if count > _MOST_ROWS else ""
    if not rows and shown == metrics:
        return []
    return [f"Shown: {rows}{shown} of the {metrics} metrics. All are in --json and --report DIR."]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"
