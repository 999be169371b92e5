"""The report: one HTML file that opens offline and starts with the findings."""

import json
from html import escape
from pathlib import Path

from mergeability.files import atomic_file
from mergeability.pipeline.verdicts import verdict
from mergeability.reporting import figures
from mergeability.reporting import prediction_sections as foresight
from mergeability.reporting.budget_section import predicted_pairs
from mergeability.reporting.headline import headline
from mergeability.reporting.page import (
    Section,
    bullet_list,
    figure_block,
    folded,
    page,
    paragraphs,
    table,
)
from mergeability.reporting.summaries import (
    TARGET_NAMES,
    Analysis,
    curve_table,
    method_table,
    scale_table,
    sets_table,
)

_LONG_LIST = 6
_MANY_TASKS = 12

_METHOD_COLUMNS = {
    "alpha": "α",
    "n_pairs": "pairs",
    "mean_norm_acc": "mean normalised",
    "worst_norm_acc": "worst",
    "worst_pair": "worst pair",
    "mean_acc": "mean accuracy",
    "worst_acc": "worst accuracy",
    "median_kept_gain": "gain kept",
    "median_margin": "± 95 %",
}
_SCALE_COLUMNS = {
    "alpha": "own α",
    "mean": "mean",
    "worst": "worst pair",
    "tuned_alpha": "tuned α",
    "tuned_mean": "tuned mean",
    "tuned_worst": "tuned worst pair",
    "unlabelled_alpha": "α without labels",
    "unlabelled_mean": "mean without labels",
    "unlabelled_worst": "worst pair without labels",
}
_SET_COLUMNS = {
    "arity": "models",
    "sets": "sets",
    "mean": "mean normalised",
    "worst": "worst",
    "worst_set": "worst set",
    "worst_task": "worst task",
}
_MODEL_COLUMNS = {
    "chance": "chance",
    "pixel_accuracy": "pixels",
    "base_accuracy": "base",
    "finetuned_accuracy": "fine-tuned",
}


def write_report(analysis: Analysis, path: Path | str) -> None:
    """Write an analysis as one self-contained HTML file; sections without data are left out.

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
        >>> "<title>Six tasks</title>" in text, 'id="merges"' in text, 'id="models"' in text
        (True, True, False)
    """
    sections = [
        section
        for section in (
            Section("found", "What this run found", bullet_list(headline(analysis), lead=True)),
            _models(analysis),
            _merges(analysis),
            predicted_pairs(analysis),
            _probes(analysis),
            _scales(analysis),
            _sets(analysis),
            _metrics(analysis),
            *foresight.sections(analysis),
            _missing(analysis),
            _run(analysis),
        )
        if section is not None
    ]
    document = page(analysis.title, verdict(analysis).html(), sections)
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(document, encoding="utf-8")


def _models(analysis: Analysis) -> Section | None:
    known = [name for name in _MODEL_COLUMNS if name in analysis.models.columns]
    if analysis.models.empty or not known:
        return None
    body = paragraphs("Test accuracy of each task before any merge.", note=True)
    body += figure_block("models", {"": [figures.accuracy_bars(analysis.models)]})
    accuracies = table(analysis.models, _MODEL_COLUMNS, "task")
    body += folded("Accuracies as a table", accuracies) if len(analysis.models) > _MANY_TASKS else accuracies
    return Section("models", "The models on their own", body)


def _merges(analysis: Analysis) -> Section | None:
    if not analysis.targets:
        return None
    plots = {}
    for target in analysis.targets:
        columns = [f"{target}_{m}" for m in analysis.methods if f"{target}_{m}" in analysis.pairs.columns]
        shared = figures.shared_bounds(analysis.pairs[columns])
        for column in columns:
            matrix = figures.pair_matrix(analysis.pairs, column, analysis.tasks)
            for colours, bounds in (("shared", shared), ("own", None)):
                plots[f"{target}|{column.removeprefix(f'{target}_')}|{colours}"] = [
                    figures.matrix_heat_map(matrix, analysis.tasks, bounds, TARGET_NAMES[target])
                ]
    summary = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    body = paragraphs(
        "Mean over a pair's two tasks. Normalised accuracy is the merged model's accuracy over that of the task's own"
        " fine-tuned model: 1 means that merging cost nothing. Gain kept is the median over pairs of how much of what"
        " fine-tuning gained over the base model survives: 1 all of it, 0 none.",
        note=True,
    )
    if summary["median_margin"].notna().any():
        body += paragraphs(
            "Measured on a random part of the test images: ± 95 % is half the width of a pair's confidence interval"
            " of the normalised accuracy, the median over pairs.",
            note=True,
        )
    else:
        summary = summary.drop(columns="median_margin")
    body += table(summary, _METHOD_COLUMNS, "method", texts=["worst_pair"])
    body += paragraphs("Every pair. Grey cells were not measured.", note=True)
    choices = [
        foresight.target_choice(analysis),
        ("method", [(str(m), str(m)) for m in summary.index]),
        ("colours", [("shared", "same for all methods"), ("own", "this method's own range")]),
    ]
    body += figure_block("merges", plots, choices, square=True)
    return Section("merges", "How well the pairs merge", body)


def _probes(analysis: Analysis) -> Section | None:
    """Show the probes of merges that were not evaluated with labels."""
    names = {f"probe_overlap_{method}": method for method in analysis.merged}
    tables = []
    for frame, title in ((analysis.pairs, "pair"), (analysis.sets, "set")):
        known = [name for name in names if name in frame.columns]
        if not known or frame.empty:
            continue
        if title == "pair":
            rows = [f"{a} + {b}" for a, b in zip(frame["task_a"], frame["task_b"], strict=True)]
        else:
            rows = [str(tasks).replace("+", " + ") for tasks in frame["tasks"]]
        tables.append(table(frame[known].set_axis(rows), {name: names[name] for name in known}, title))
    if not tables:
        return None
    body = paragraphs(
        "Each merge answered unlabelled images of its tasks. The overlap with the answers of the task's own model"
        " estimates the normalised accuracy; mean over the tasks of a pair or set.",
        note=True,
    )
    return Section("probes", "What the merges answer", body + "".join(tables))


def _scales(analysis: Analysis) -> Section | None:
    if analysis.curves.empty:
        return None
    curves = curve_table(analysis.curves)
    body = paragraphs(
        "The merged weights are θ₀ + α·M. Tuning computes M once per merge, tries a grid of α on the tasks' validation"
        " images and keeps the one with the best mean normalised accuracy; without labels, the one whose answers on"
        " unlabelled images overlap most with those of the tasks' own models. What stands in the tables is measured on"
        " the test images. Methods compared at an α that suits only one of them are not compared at all.",
        note=True,
    )
    both = scale_table(analysis)
    if len(both):
        body += paragraphs("Normalised accuracy over pairs, each method at each kind of α:", note=True)
        columns = {name: title for name, title in _SCALE_COLUMNS.items() if name in both}
        body += table(both, columns, "method")
    body += figure_block("scales", {"": [figures.scale_curves(curves), figures.chosen_scales(curves)]})
    return Section("scales", "How far to go: the scale α", body)


def _sets(analysis: Analysis) -> Section | None:
    summary = sets_table(analysis)
    if summary.empty:
        return None
    body = paragraphs(
        "More than two models merged into one. Mean and worst over the sets, of the mean normalised accuracy over a"
        " set's tasks; worst task is the lowest of all single tasks.",
        note=True,
    )
    columns = [f"norm_acc_{method}" for method in analysis.methods]
    body += figure_block("sets", {"": [figures.set_outcomes(analysis.sets, columns)]})
    body += table(summary.set_index("method"), _SET_COLUMNS, "method", texts=["worst_set"])
    return Section("sets", "Many models in one", body)


def _metrics(analysis: Analysis) -> Section | None:
    known = [m for m in analysis.metrics if m in analysis.pairs.columns and analysis.pairs[m].notna().any()]
    if not known:
        return None
    plots = {
        metric: [
            figures.matrix_heat_map(
                figures.pair_matrix(analysis.pairs, metric, analysis.tasks), analysis.tasks, None, ""
            )
        ]
        for metric in known
    }
    body = paragraphs(
        "How every two models relate. Each metric has its own colour scale; grey cells are undefined.",
        note=True,
    )
    body += figure_block("metrics", plots, [("metric", [(m, figures.label(m)) for m in known])], square=True)
    return Section("metrics", "How the models relate", body)


def _missing(analysis: Analysis) -> Section:
    sentences = [*analysis.missing, *(analysis.prediction.notes if analysis.prediction is not None else [])]
    if not sentences:
        return Section(
            "missing", "What is missing", paragraphs("Nothing: every part of this run is complete.")
        )
    body = bullet_list(sentences[:_LONG_LIST])
    if len(sentences) > _LONG_LIST:
        rest = sentences[_LONG_LIST:]
        body += folded(f"{len(rest)} more", bullet_list(rest))
    return Section("missing", "What is missing", body)


def _run(analysis: Analysis) -> Section:
    text = json.dumps(dict(analysis.run), indent=2, default=str, ensure_ascii=False)
    facts = folded("Configuration, versions and hashes", f"<pre>{escape(text)}</pre>")
    return Section(
        "run", "How this was made", facts if analysis.run else paragraphs("No facts were recorded.")
    )
