"""Build HTML pages from text, tables and figures; drop-down menus select which figure is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mergeability.errors import printable
from mergeability.reporting.glossary import glossary_section, linked, linked_name
from mergeability.reporting.summaries import number
from mergeability.reporting.templates import macro, render, resources

Choice = tuple[str, Sequence[tuple[str, str]]]
"""A drop-down: its caption, and (value, label) of each option."""

MOST_ROWS = 5000
"""Of a table in the report: browsers are slow with more, and so are readers."""

# A part that several figures of a block have in common is written once if its JSON has at least so many characters.
_SHARED = 60
_PLOTLY = "vendor/plotly.min.js"
# Columns of names that the glossary defines, by their headings.
_DEFINED = ("method", "predictor", "metric")


@dataclass(frozen=True)
class Section:
    """Hold the anchor, the heading and the HTML body of one section of a page."""

    anchor: str
    heading: str
    body: Markup


@dataclass(frozen=True)
class Group:
    """Hold sections under a common heading; if `folded`, the page at first shows only their titles."""

    anchor: str
    heading: str
    sections: Sequence[Section]
    lead: Markup = field(default_factory=Markup)
    folded: bool = False


def paragraphs(*sentences: str, note: bool = False) -> Markup:
    """Format each sentence as an HTML paragraph."""
    return macro("paragraphs", sentences, note)


def bullet_list(sentences: Sequence[str], lead: bool = False) -> Markup:
    """Format sentences as an HTML list."""
    return macro("bullet_list", sentences, lead)


def folded(title: str, body: Markup, opened: bool = False) -> Markup:
    """Hide HTML below a title; a click on the title shows it."""
    return macro("folded", title, body, opened)


def code(text: str, caption: str) -> Markup:
    """Show text unchanged in a box that can be scrolled."""
    return macro("code", text, caption)


def table(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    first: str,
    texts: Sequence[str] = (),
    marked: Sequence[str] = (),
    digits: int = 3,
    caption: str = "",
    links: Mapping[str, Sequence[str]] | None = None,
    sentences: bool = False,
) -> Markup:
    """Format a data frame as an HTML table with links to the glossary; the first column is the index.

    Only the first `MOST_ROWS` rows are shown if there are more, with the number of the others.

    Args:
        frame: the rows.
        columns: column → heading; missing columns are skipped.
        first: heading of the index.
        texts: columns aligned as text.
        marked: index values of the rows to highlight.
        digits: decimals of numbers.
        caption: title of the table for screen readers, unique on the page.
        links: column → the address that each of its cells leads to.
        sentences: whether cells contain sentences, which are broken into lines.

    Returns:
        The HTML.
    """
    left_out, frame = len(frame) - MOST_ROWS, frame.head(MOST_ROWS)
    shown = [name for name in columns if name in frame.columns]
    kinds = [name in texts for name in shown]
    # Only the first row of a name links: a screen reader would list the others as well.
    seen: set[str] = set()
    addresses = [(links or {}).get(name) for name in shown]
    rows = []
    every = zip(frame.index, frame[shown].itertuples(index=False, name=None), strict=True)
    for place, (index, values) in enumerate(every):
        name = str(index)
        cells = [
            (number(value, digits), kind, own[place] if own is not None else "")
            for value, kind, own in zip(values, kinds, addresses, strict=True)
        ]
        rows.append(
            (linked_name(name) if first in _DEFINED and name not in seen else name, index in marked, cells)
        )
        seen.add(name)
    return render(
        "table",
        caption=caption or f"Table by {first}: {', '.join(columns[name] for name in shown[:4])}",
        first=first,
        headings=[(linked(columns[name]), kind) for name, kind in zip(shown, kinds, strict=True)],
        rows=rows,
        left_out=left_out,
        sentences=sentences,
    )


def figure_block(
    anchor: str,
    figures: Mapping[str, Sequence[go.Figure]],
    choices: Sequence[Choice] = (),
    square: bool = False,
    described: str = "",
) -> Markup:
    """Return figures as HTML, with drop-down menus that select the visible one.

    Args:
        anchor: identifier of the block in the page.
        figures: chosen values, joined by "|" → the plots shown next to each other for that choice; the page states
            which combinations are missing.
        choices: the menus.
        square: whether plots are square.
        described: what the figures show, for screen readers.

    Returns:
        The HTML.
    """
    count = max((len(plots) for plots in figures.values()), default=0)
    data = {
        key: [_without_markup(json.loads(str(figure.to_json()))) for figure in plots]
        for key, plots in figures.items()
    }
    return render(
        "figures",
        anchor=anchor,
        choices=choices,
        count=count,
        square=square,
        layout="" if count < 2 else " two even" if square else " two",
        described=described or f"Figure: {anchor}",
        data=embedded_json(shared_parts(data)),
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


def shared_parts(figures: Any) -> dict[str, Any]:
    """Keep only one copy of each list or object that occurs repeatedly in a block of figures.

    Two hundred plots of predictions against the same outcomes would otherwise hold the outcomes, names and colours of
    all pairs two hundred times.

    Args:
        figures: JSON-able.

    Returns:
        `figures`, with `{"shared": place}` for each long part that occurs again, and these parts as `shared`.

    Examples:
        >>> from mergeability.reporting.page import shared_parts
        >>> names = [f"a long name of a pair, {number}" for number in range(3)]
        >>> found = shared_parts({"one": {"x": names, "y": [1, 2]}, "two": {"x": names, "y": [3, 4]}})
        >>> found["figures"]["two"], len(found["shared"])
        ({'x': {'shared': 0}, 'y': [3, 4]}, 1)
    """
    counts: dict[str, int] = {}
    _count_parts(figures, counts)
    places = {text: place for place, text in enumerate(text for text, times in counts.items() if times > 1)}

    def replaced(part: Any, whole: bool = False) -> Any:
        if not isinstance(part, dict | list):
            return part
        place = None if whole else places.get(json.dumps(part))
        if place is not None:
            return {"shared": place}
        if isinstance(part, dict):
            return {key: replaced(inner) for key, inner in part.items()}
        return [replaced(inner) for inner in part]

    # A shared part may hold others.
    return {
        "figures": replaced(figures),
        "shared": [replaced(json.loads(text), whole=True) for text in places],
    }


def _count_parts(part: Any, counts: dict[str, int]) -> None:
    """Count how often each long part occurs, without what is inside a part that was counted before."""
    if not isinstance(part, dict | list):
        return
    text = json.dumps(part)
    if len(text) < _SHARED:
        return
    counts[text] = counts.get(text, 0) + 1
    if counts[text] == 1:
        for inner in part.values() if isinstance(part, dict) else part:
            _count_parts(inner, counts)


def embedded_json(value: Any) -> Markup:
    """Encode data as JSON that is safe inside an HTML script element; undefined values become null."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=str)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def page(
    title: str,
    lead: Markup,
    parts: Sequence[Section | Group],
    names: Sequence[str] = (),
    aside: Markup | None = None,
    after: Markup | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = ("report.js",),
    plotly: bool = True,
) -> str:
    """Combine sections into a page that works offline because it contains all styles, scripts and data.

    A glossary of the names and terms on the page comes last.

    Args:
        title: of the page.
        lead: HTML below the title.
        parts: groups of sections, or single sections; the glossary joins the last group if that is folded.
        names: metrics, methods and predictors that the glossary defines in addition to those with a link.
        aside: HTML next to the contents, such as filters.
        after: HTML behind the sections, such as data.
        styles: style sheets of this package, in addition to that of all pages.
        scripts: scripts of this package that run after Plotly and those of all pages.
        plotly: whether the page has figures.

    Returns:
        The HTML.
    """
    texts = [lead, *(one.body for part in parts for one in _sections(part))]
    last = parts[-1] if parts else None
    folded_last = isinstance(last, Group) and last.folded
    defined = glossary_section("".join(texts), names, 4 if folded_last else 3)
    if defined:
        entry = Section("glossary", "What do the terms mean?", defined)
        if isinstance(last, Group) and last.folded:
            whole = Group(last.anchor, last.heading, [*last.sections, entry], last.lead, last.folded)
            parts = [*parts[:-1], whole]
        else:
            parts = [*parts, entry]
    return render(
        "page",
        title=title,
        lead=lead,
        parts=[{"sections": None, "lead": "", "folded": False, **vars(part)} for part in parts],
        aside=aside or "",
        after=after or "",
        style=resources(("report.css", *styles)),
        before=resources(("theme.js",)),
        scripts=[
            *([resources((_PLOTLY,))] if plotly else []),
            resources(("plots.js", "tools.js", *scripts)),
        ],
    )


def _sections(part: Section | Group) -> list[Section]:
    return list(part.sections) if isinstance(part, Group) else [part]
