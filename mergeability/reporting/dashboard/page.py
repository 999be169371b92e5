"""Build the dashboard: one HTML file that filters and groups all runs in a folder and works offline."""

from pathlib import Path

from markupsafe import Markup
from plotly.colors import get_colorscale

from mergeability.files import write_text
from mergeability.progress import Progress, no_progress
from mergeability.reporting.dashboard.content import NUMBERS, content
from mergeability.reporting.dashboard.gather import Gathered
from mergeability.reporting.figures import DIVERGING, PALETTE, SEQUENTIAL
from mergeability.reporting.page import Section, bullet_list, embedded_json, folded, page, paragraphs
from mergeability.reporting.templates import render

_TITLE = "Runs side by side"
# Sentences about what is left out that are shown at once, and those that a click shows.
_NAMED, _MOST_NAMED = 20, 500
_SCRIPTS = tuple(f"dashboard/{name}.js" for name in ("statistics", "data", "parts", "panels", "start"))


def write_dashboard(
    gathered: Gathered, path: Path, numbers: int = NUMBERS, progress: Progress = no_progress
) -> list[str]:
    """Write the dashboard as one self-contained HTML file.

    Args:
        gathered: analyses and training runs.
        path: where it goes; links to reports are relative to it.
        numbers: the most numbers that are embedded.
        progress: shows how far it is.

    Returns:
        Sentences about everything that is not on the page.

    Raises:
        UserError: the file cannot be written.
    """
    held = content(gathered, path, numbers, progress)
    left_out = held.pop("left_out")
    held["style"] = {
        "palette": PALETTE,
        "sequential": get_colorscale(SEQUENTIAL),
        "diverging": get_colorscale(DIVERGING),
    }
    document = page(
        _TITLE,
        Markup('<p id="status" role="status"></p>'),
        [*_sections(), Section("left-out", "Which runs are not shown?", _left_out(left_out))],
        aside=Markup(
            '<details id="filter-box" open><summary>Filters</summary><div id="filters"></div></details>'
        ),
        after=render("embedded", anchor="dashboard-data", data=embedded_json(held)),
        styles=["dashboard/dashboard.css"],
        scripts=_SCRIPTS,
    )
    write_text(path, document)
    return left_out


def _sections() -> list[Section]:
    return [
        Section(
            "merged",
            "How good are the merges?",
            paragraphs(
                "Values are means over a pair's two tasks. Normalised accuracy is the merged model's"
                " accuracy divided by the accuracy of the task's own fine-tuned model. Each box shows the"
                " distribution over pairs: the quartiles, the worst and the best pair, and the mean as a"
                " dashed line.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "pairs",
            "How well does each pair merge?",
            _panel(kind="map", table=False),
        ),
        Section(
            "trade-off",
            "How much single-task accuracy do good merges cost?",
            paragraphs(
                "The horizontal axis shows the accuracy of the models on their own tasks, the vertical axis"
                " the accuracy of their merges; both are means over the same pairs. The larger points on the"
                " dotted line are the Pareto front: no other point is better in one accuracy and at least as"
                " good in the other.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "predicted",
            "How close are predictions to measured outcomes?",
            paragraphs(
                "On the dotted line, the prediction equals the measured outcome. The table contains the"
                " correlation of each predictor: for pairs with one new task, the mean over the left-out tasks;"
                " for pairs of two new tasks, the correlation between predictions and outcomes after each"
                " fold's training mean is subtracted from both.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "fingerprints",
            "Do methods succeed for the same reasons?",
            paragraphs(
                "The figure shows which metrics predict the outcome of each merge method. Methods have the"
                " same fingerprint if their five largest coefficients belong to the same metrics and all"
                " signs are equal.",
                note=True,
            )
            + _panel(plots=3),
        ),
        Section("runs", "Which analyses are there?", _panel(plots=0)),
        Section("trainings", "Which training runs are there?", _panel(plots=0)),
    ]


def _panel(plots: int = 1, kind: str = "", table: bool = True) -> Markup:
    """Leave room for controls, a sentence, plots and a table, which the page's scripts fill."""
    return render("panel", plots=plots, kind=kind, table=table)


def _left_out(sentences: list[str]) -> Markup:
    if not sentences:
        return paragraphs("None: this page contains all runs that were found.")
    rest = sentences[_NAMED:]
    if not rest:
        return bullet_list(sentences)
    more = [*rest[:_MOST_NAMED], *([f"{len(rest) - _MOST_NAMED:,} more."] if len(rest) > _MOST_NAMED else [])]
    return bullet_list(sentences[:_NAMED]) + folded(f"{len(rest)} more", bullet_list(more))
