"""The dashboard: one HTML file that filters and groups all runs below a folder, without a network."""

from html import escape
from pathlib import Path

from plotly.colors import get_colorscale

from mergeability.files import write_text
from mergeability.progress import Progress, no_progress
from mergeability.reporting.dashboard.content import NUMBERS, content
from mergeability.reporting.dashboard.gather import Gathered
from mergeability.reporting.figures import DIVERGING, PALETTE, SEQUENTIAL
from mergeability.reporting.page import Section, bullet_list, document, embedded_json, folded, paragraphs

_TITLE = "Runs side by side"
# Sentences about what is left out that are shown at once, and those that a click shows.
_NAMED, _MOST_NAMED = 20, 500
_SCRIPTS = (
    "plots.js",
    *(f"dashboard/{name}.js" for name in ("statistics", "data", "parts", "panels", "start")),
)


def write_dashboard(
    gathered: Gathered, path: Path, numbers: int = NUMBERS, progress: Progress = no_progress
) -> list[str]:
    """Write the dashboard as one self-contained HTML file.

    Args:
        gathered: analyses and trainings.
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
    write_text(
        path,
        document(
            _TITLE, _body(embedded_json(held), left_out), ["report.css", "dashboard/dashboard.css"], _SCRIPTS
        ),
    )
    return left_out


def _body(data: str, left_out: list[str]) -> str:
    sections = [*_sections(), Section("left-out", "What is left out", _left_out(left_out))]
    contents = "".join(f'<li><a href="#{one.anchor}">{escape(one.heading)}</a></li>' for one in sections)
    shown = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.heading)}</h2>{s.body}</section>' for s in sections
    )
    return (
        '<div class="page wide"><aside aria-label="Contents and filters">'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>'
        '<details id="filter-box" open><summary>Filters</summary><div id="filters"></div></details></aside>'
        f'<main><h1>{_TITLE}</h1><p id="status" role="status"></p>{shown}</main></div>'
        f'<script type="application/json" id="dashboard-data">{data}</script>'
    )


def _sections() -> list[Section]:
    return [
        Section(
            "merged",
            "Merged accuracy",
            paragraphs(
                "Mean over a pair's two tasks; normalised accuracy is the merged model's accuracy over that of the"
                " task's own fine-tuned model. Each box shows the spread over pairs: quartiles, the worst and the best"
                " pair, and the mean as a dashed line.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "pairs",
            "Every pair",
            _panel(kind="map", table=False),
        ),
        Section(
            "trade-off",
            "Merged against single-task accuracy",
            paragraphs(
                "How good the models are on their own tasks, and how good their merges are; means over the same pairs."
                " The larger points on the dotted line are the Pareto front: no other point is better in one accuracy"
                " without being worse in the other.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "predicted",
            "Predicted against measured",
            paragraphs(
                "On the dotted line a prediction is exact. The table has the correlation of each predictor: for a known"
                " partner the mean over left-out tasks, for two new tasks that beyond the training mean.",
                note=True,
            )
            + _panel(),
        ),
        Section(
            "fingerprints",
            "Fingerprints of the methods",
            paragraphs(
                "Which metrics predict the outcome of each merge method. Two methods with the same fingerprint have the"
                " same five largest coefficients and equal signs.",
                note=True,
            )
            + _panel(plots=3),
        ),
        Section("runs", "Analyses", _panel(plots=0)),
        Section("trainings", "Trainings", _panel(plots=0)),
    ]


def _panel(plots: int = 1, kind: str = "", table: bool = True) -> str:
    """Leave room for controls, a sentence, plots and a table, which the page's scripts fill."""
    boxes = f'<div class="plot {kind}"></div>' * plots
    return (
        '<div class="controls"></div><p class="note said" hidden></p>'
        f'<div class="plots{" three" if plots == 3 else ""}">{boxes}</div>'
        + ('<div class="table"></div>' if table else "")
    )


def _left_out(sentences: list[str]) -> str:
    if not sentences:
        return paragraphs("Nothing: everything that was found is on this page.")
    rest = sentences[_NAMED:]
    if not rest:
        return bullet_list(sentences)
    more = [*rest[:_MOST_NAMED], *([f"{len(rest) - _MOST_NAMED:,} more."] if len(rest) > _MOST_NAMED else [])]
    return bullet_list(sentences[:_NAMED]) + folded(f"{len(rest)} more", bullet_list(more))
