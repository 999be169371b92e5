"""Write the report, an HTML file that works offline and starts with the verdict."""

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from mergeability.files import atomic_file
from mergeability.reporting import merge_sections as merges
from mergeability.reporting import prediction_sections as prediction
from mergeability.reporting.budget_section import predicted_pairs
from mergeability.reporting.evidence_sections import consistency
from mergeability.reporting.first_screen import first_screen, notes
from mergeability.reporting.headline import findings
from mergeability.reporting.layer_section import layer_section
from mergeability.reporting.page import Group, Section, bullet_list, code, folded, page, paragraphs
from mergeability.reporting.pair_data import pair_section
from mergeability.reporting.summaries import Analysis

_LONG_LIST = 6


def write_report(analysis: Analysis, path: Path | str) -> None:
    """Write the report of an analysis as one HTML file, without the sections that have no data.

    Args:
        analysis: the results to show.
        path: of the file.

    Raises:
        UserError: the file cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting import write_report
        >>> analysis = Analysis("Six tasks", example_pairs(), ["cosine", "distance"], ["ties"])
        >>> with TemporaryDirectory() as folder:
        ...     write_report(analysis, Path(folder) / "report.html")
        ...     text = (Path(folder) / "report.html").read_text(encoding="utf-8")
        >>> "<title>Six tasks</title>" in text, 'id="methods"' in text, 'id="models"' in text
        (True, True, False)
    """
    groups = [group for group in _groups(analysis) if group.sections or group.lead]
    document = page(
        analysis.title,
        first_screen(analysis, groups),
        groups,
        names=_names(analysis),
        scripts=("pair_math.js", "pairs.js", "report.js"),
    )
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(document, encoding="utf-8")


def _groups(analysis: Analysis) -> list[Group]:
    found = findings(analysis)
    measured = bool(analysis.targets or len(analysis.sets) or analysis.prediction)
    return [
        _group(
            "merges",
            "Which pairs merge well, and by which method?",
            [
                merges.methods(analysis),
                merges.heat_maps(analysis),
                pair_section(analysis),
                consistency(analysis),
                predicted_pairs(analysis),
                merges.probes(analysis),
                merges.scales(analysis),
                merges.sets(analysis),
            ],
            [
                *found.budget,
                *found.merges,
                *found.extremes,
                *found.sets,
                *(() if measured else found.prediction),
            ],
        ),
        _group(
            "metrics",
            "How do the models relate, and where do they conflict?",
            [merges.models(analysis), merges.metrics(analysis), layer_section(analysis)],
        ),
        _group(
            "prediction",
            "Can the outcome of a merge be predicted?",
            prediction.sections(analysis),
            found.prediction if measured else (),
        ),
        _group(
            "appendix",
            "Which details are behind these answers?",
            [*prediction.details(analysis), _missing(analysis), _run(analysis)],
            folded=True,
        ),
    ]


def _group(
    anchor: str,
    heading: str,
    sections: Sequence[Section | None],
    sentences: Sequence[str] = (),
    folded: bool = False,
) -> Group:
    lead = bullet_list(sentences, lead=True) if sentences else Markup()
    return Group(anchor, heading, [one for one in sections if one is not None], lead, folded)


def _names(analysis: Analysis) -> list[str]:
    """List the metrics, methods, predictors and protocols of an analysis, for the glossary."""
    records = analysis.prediction.records if analysis.prediction is not None else []
    return [
        *analysis.metrics,
        *analysis.methods,
        *analysis.merged,
        *(str(record[name]) for name in ("predictor", "protocol") for record in records),
    ]


def _missing(analysis: Analysis) -> Section:
    heading, sentences = "What is missing?", notes(analysis)
    if not sentences:
        return Section("missing", heading, paragraphs("Nothing: every part of this run is complete."))
    body = bullet_list(sentences[:_LONG_LIST])
    if len(sentences) > _LONG_LIST:
        rest = sentences[_LONG_LIST:]
        body += folded(f"{len(rest)} more", bullet_list(rest))
    return Section("missing", heading, body)


def _run(analysis: Analysis) -> Section:
    heading = "How were these results produced?"
    if not analysis.run:
        return Section("run", heading, paragraphs("No information about this run was recorded."))
    body = Markup()
    if "command" in analysis.run:
        body += code(str(analysis.run["command"]), "Command of this run")
    text = json.dumps(dict(analysis.run), indent=2, default=str, ensure_ascii=False)
    body += paragraphs("Configuration, versions and hashes:", note=True) + code(text, "Record of this run")
    return Section("run", heading, body)
