"""Parts of a self-contained HTML page: escaped text, tables, and figures behind drop-down choices."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mergeability.errors import printable
from mergeability.reporting.summaries import number

Choice = tuple[str, Sequence[tuple[str, str]]]
"""A drop-down: its caption, and (value, label) of each option."""


@dataclass(frozen=True)
class Section:
    """Hold one section of the page, its body already HTML."""

    anchor: str
    heading: str
    body: str


MOST_ROWS = 5000
"""Of a table in the report: browsers are slow with more, and so are readers."""


def paragraphs(*sentences: str, note: bool = False) -> str:
    """Format each sentence as an HTML paragraph."""
    kind = ' class="note"' if note else ""
    return "".join(f"<p{kind}>{escape(sentence)}</p>" for sentence in sentences)


def bullet_list(sentences: Sequence[str], lead: bool = False) -> str:
    """Format sentences as an HTML list."""
    kind = ' class="lead"' if lead else ""
    return f"<ul{kind}>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def folded(title: str, body: str, opened: bool = False) -> str:
    """Hide HTML behind a title that opens it."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{body}</details>"


def table(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    first: str,
    texts: Sequence[str] = (),
    marked: Sequence[str] = (),
    digits: int = 3,
) -> str:
    """Format a data frame as an HTML table, its index first.

    Only the first `MOST_ROWS` rows are shown if there are more, with the number of the others.

    Args:
        frame: the rows.
        columns: column → heading; missing columns are skipped.
        first: heading of the index.
        texts: columns aligned as text.
        marked: index values of the rows to highlight.
        digits: decimals of numbers.

    Returns:
        The HTML.
    """
    left_out, frame = len(frame) - MOST_ROWS, frame.head(MOST_ROWS)
    shown = [name for name in columns if name in frame.columns]
    kinds = [' class="text"' if name in texts else "" for name in shown]
    head = "".join(f"<th{kind}>{escape(columns[name])}</th>" for name, kind in zip(shown, kinds, strict=True))
    rows = []
    for index, values in zip(frame.index, frame[shown].itertuples(index=False, name=None), strict=True):
        cells = "".join(
            f"<td{kind}>{escape(number(value, digits))}</td>"
            for value, kind in zip(values, kinds, strict=True)
        )
        tint = ' class="baseline"' if index in marked else ""
        rows.append(f"<tr{tint}><td>{escape(str(index))}</td>{cells}</tr>")
    body = "".join(rows)
    more = f"{left_out} more rows are in the CSV files of the run folder."
    return (
        f'<div class="scroll"><table><thead><tr><th>{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{paragraphs(more, note=True) if left_out > 0 else ''}"
    )


def figure_block(
    anchor: str,
    figures: Mapping[str, Sequence[go.Figure]],
    choices: Sequence[Choice] = (),
    square: bool = False,
) -> str:
    """Show figures with drop-down menus that select one.

    Args:
        anchor: identifier of the block in the page.
        figures: chosen values, joined by "|" → the plots shown next to each other for that choice; the page states
            which combinations are missing.
        choices: the menus.
        square: whether plots are square.

    Returns:
        The HTML.
    """
    controls = "".join(_select(caption, options) for caption, options in choices)
    count = max((len(plots) for plots in figures.values()), default=0)
    boxes = f'<div class="plot{" square" if square else ""}"></div>' * count
    data = {
        key: [_without_markup(json.loads(str(figure.to_json()))) for figure in plots]
        for key, plots in figures.items()
    }
    return (
        f'<div class="block" data-figures="{anchor}-figures">'
        f'<div class="controls">{controls}</div>'
        f'<p class="note empty" hidden>Nothing is known for this choice.</p>'
        f'<div class="plots{_columns(count, square)}">{boxes}</div>'
        f'<script type="application/json" id="{anchor}-figures">{embedded_json(data)}</script></div>'
    )


# Where a figure holds names: Plotly would read them as HTML.
_NAMES = ("x", "y", "text", "customdata", "name", "labels", "hovertext", "ticktext", "categoryarray", "title")


def _without_markup(part: Any, names: bool = False) -> Any:
    """Escape what Plotly takes for HTML in all texts of a figure, except in the templates, which are the program's."""
    if isinstance(part, dict):
        return {key: _without_markup(inner, names or key in _NAMES) for key, inner in part.items()}
    if isinstance(part, list):
        return [_without_markup(inner, names) for inner in part]
    if names and isinstance(part, str):
        return printable(part).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return part


def embedded_json(value: Any) -> str:
    """Write JSON that cannot close its script element; undefined values become null."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Combine sections into one page that needs no network: styles, scripts and data are inside."""
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.heading)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.heading)}</h2>{s.body}</section>' for s in sections
    )
    return document(
        title,
        f'<div class="page"><nav aria-label="Contents"><ol>{contents}</ol></nav>'
        f"<main><h1>{escape(title)}</h1>{lead}{body}</main></div>",
        styles=["report.css"],
        scripts=["plots.js", "report.js"],
    )


def document(title: str, body: str, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Create an HTML document with Plotly inside.

    Args:
        title: of the document.
        body: its content, already HTML.
        styles: style sheets of this package, by their paths in it.
        scripts: scripts of this package, which run in this order after Plotly.

    Returns:
        The HTML.
    """
    style, script = (_resources(names) for names in (styles, scripts))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{body}"
        f"<script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n"
    )


def _resources(names: Sequence[str]) -> str:
    package = files("mergeability.reporting")
    return "\n".join(package.joinpath(name).read_text(encoding="utf-8") for name in names)


def _columns(count: int, square: bool) -> str:
    if count < 2:
        return ""
    return " two even" if square else " two"


def _select(caption: str, options: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f"<label>{escape(caption)} <select>{items}</select></label>"
