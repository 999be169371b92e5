"""Build the first screen of a report: the verdict, a figure of all merges, three reasons and links."""

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from mergeability.pipeline.result import Analysis
from mergeability.pipeline.verdicts import verdict
from mergeability.prediction.answers import Verdict
from mergeability.reporting import figures
from mergeability.reporting.glossary import entry
from mergeability.reporting.headline import findings
from mergeability.reporting.page import Group, figure_block, table
from mergeability.reporting.summaries import TARGET_NAMES, pair_name
from mergeability.reporting.templates import render

_SENTENCES = 3


def first_screen(analysis: Analysis, groups: Sequence[Group]) -> Markup:
    """Show the main result of the analysis.

    Args:
        analysis: the results.
        groups: the groups of sections that follow, for links.
    """
    answer = verdict(analysis)
    anchors = {one.anchor for group in groups for one in group.sections}
    missing = len(notes(analysis))
    links = [
        ("pairs", "All pairs in a table"),
        ("layers", "Conflicts by layer"),
        ("prediction", "Prediction"),
        ("missing", f"What is missing ({missing})" if missing else "Nothing is missing"),
        ("run", "How this was made"),
        ("glossary", "Glossary"),
    ]
    anchors |= {group.anchor for group in groups}
    # The headings of tables of outcomes are defined there, and so are metrics and methods by their names.
    if analysis.targets or any(entry(name) for name in (*analysis.metrics, *analysis.merged)):
        anchors.add("glossary")
    return render(
        "first_screen",
        compared=findings(analysis).compared,
        verdict=answer,
        figure=_figure(analysis),
        why=why(analysis, answer),
        links=[(anchor, text) for anchor, text in links if anchor in anchors],
        command=str(analysis.run.get("command", "")),
        forecasts=_forecasts(answer),
    )


def notes(analysis: Analysis) -> list[str]:
    """List messages about missing parts of an analysis and of its study of predictors."""
    return [*analysis.missing, *(analysis.prediction.notes if analysis.prediction is not None else [])]


def why(analysis: Analysis, answer: Verdict) -> list[str]:
    """Explain the verdict in up to three sentences about the method, the pairs and the evidence.

    Args:
        analysis: the results.
        answer: its verdict.
    """
    found = findings(analysis)
    # The last sentence of a part that ends with a colon introduces a list.
    sureness = [one for one in answer.sureness if not one.endswith(":")] if not found.prediction else []
    first = [answer.choice[:1], found.extremes[:1], found.new_tasks[:1], answer.reasons[:1], sureness[:1]]
    rest = [answer.choice[1:], answer.reasons[1:], sureness[1:]]
    return list(dict.fromkeys(one for part in [*first, *rest] for one in part))[:_SENTENCES]


def outcome_columns(analysis: Analysis) -> tuple[str, dict[str, str]]:
    """Return the outcome that the first screen shows, and its column for each method.

    Measured outcomes come first, then scores of a fitted predictor, then probes.
    """
    pairs = analysis.pairs
    for target in analysis.targets:
        columns = {m: f"{target}_{m}" for m in analysis.methods if f"{target}_{m}" in pairs.columns}
        if pairs[list(columns.values())].notna().any(axis=None):
            return TARGET_NAMES[target], columns
    if analysis.scorer is not None and len(analysis.scores):
        methods = analysis.scorer.evidence_for(list(pairs.columns)).methods
        columns = {m: f"score_{m}" for m in methods if f"score_{m}" in analysis.scores.columns}
        return f"predicted {TARGET_NAMES[analysis.scorer.target]}", columns
    columns = {m: f"probe_overlap_{m}" for m in analysis.merged if f"probe_overlap_{m}" in pairs.columns}
    return "overlap of the probe", columns


def _figure(analysis: Analysis) -> Markup:
    name, columns = outcome_columns(analysis)
    frame = analysis.scores if name.startswith("predicted") else analysis.pairs
    if not columns or frame.empty:
        return Markup()
    values = frame[list(columns.values())].astype(float).set_axis(list(columns), axis=1)
    ends = frame[["task_a", "task_b"]].astype(str).to_dict("records")
    values.index = pd.Index([pair_name(row) for row in ends])
    plot = figures.outcome_map(values, name)
    described = f"Heat map of the {name} of every pair under every merge method"
    return figure_block("outcomes", {"": [plot]}, described=described)


def _forecasts(answer: Verdict) -> Markup:
    if not answer.forecasts:
        return Markup()
    rows = pd.DataFrame(
        {
            "expected": [
                "–" if one.expected != one.expected else f"{one.expected:.1%}" for one in answer.forecasts
            ],
            "interval": [one.interval for one in answer.forecasts],
            "source": [one.source for one in answer.forecasts],
        },
        index=[one.method for one in answer.forecasts],
    )
    columns = {"expected": f"expected {answer.heading}", "interval": "interval", "source": "rests on"}
    return table(rows, columns, "method", texts=["source"], caption="Expected outcome of every method")
