"""Build the report's sections on models, merges of pairs, probes, the scale α, merges of larger sets, and metrics."""

from markupsafe import Markup

from mergeability.pipeline.result import Analysis
from mergeability.reporting import figures
from mergeability.reporting.page import Section, figure_block, folded, paragraphs, table
from mergeability.reporting.prediction_parts import target_choice
from mergeability.reporting.summaries import TARGET_NAMES, curve_table, method_table, scale_table, sets_table

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
    "tfidf_accuracy": "TF-IDF",
    "base_accuracy": "base",
    "finetuned_accuracy": "fine-tuned",
}


def models(analysis: Analysis) -> Section | None:
    """Show the accuracies of the models on their own tasks; return None if they are unknown."""
    known = [name for name in _MODEL_COLUMNS if name in analysis.models.columns]
    if analysis.models.empty or not known:
        return None
    body = paragraphs("Test accuracy of each task before any merge.", note=True)
    body += figure_block(
        "models",
        {"": [figures.accuracy_bars(analysis.models)]},
        described="Accuracies of every task before merging",
    )
    accuracies = table(analysis.models, _MODEL_COLUMNS, "task", caption="Accuracies before merging")
    body += folded("Accuracies as a table", accuracies) if len(analysis.models) > _MANY_TASKS else accuracies
    return Section("models", "How good is each model on its own task?", body)


def methods(analysis: Analysis) -> Section | None:
    """Show statistics of every merge method over the pairs; return None if there are no outcomes."""
    if not analysis.targets:
        return None
    summary = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    body = paragraphs(
        "Values of a pair are means over its two tasks. Normalised accuracy is the merged model's accuracy"
        " divided by the accuracy of the task's own fine-tuned model; 1 means that merging cost nothing."
        " Gain kept is the share of the improvement by fine-tuning that the merged model keeps (median over"
        " pairs); 1 means all of it, 0 none.",
        note=True,
    )
    if summary["median_margin"].notna().any():
        body += paragraphs(
            "These values were measured on a random subset of the test images. The column `± 95 %` shows half"
            " the width of the 95 % confidence interval of a pair's normalised accuracy (median over pairs).",
            note=True,
        )
    else:
        summary = summary.drop(columns="median_margin")
    body += table(
        summary, _METHOD_COLUMNS, "method", texts=["worst_pair"], caption="Outcomes by merge method"
    )
    return Section("methods", "How good is each method on average?", body)


def heat_maps(analysis: Analysis) -> Section | None:
    """Draw a task × task heat map of outcomes for each method; return None if there are no outcomes."""
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
        "Grey cells mark pairs that were not measured. Click a cell to show the details of its pair.",
        note=True,
    )
    choices = [
        target_choice(analysis),
        ("method", [(str(m), str(m)) for m in summary.index]),
        ("colours", [("shared", "same for all methods"), ("own", "this method's own range")]),
    ]
    body += figure_block(
        "merges", plots, choices, square=True, described="Heat map of outcomes by pair of tasks"
    )
    return Section("heat-maps", "Which pairs of tasks merge well?", body)


def probes(analysis: Analysis) -> Section | None:
    """Show the results of probes, which estimate the outcomes of merges on unlabelled images."""
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
        tables.append(
            table(
                frame[known].set_axis(rows),
                {name: names[name] for name in known},
                title,
                caption=f"Overlap in the probe of every {title}",
            )
        )
    if not tables:
        return None
    body = paragraphs(
        "In a probe, each merged model classified unlabelled images of its tasks. The overlap between"
        " the class probabilities of the merged model and of the task's own model estimates the normalised"
        " accuracy. Values are means over the tasks of a pair or set.",
        note=True,
    )
    return Section(
        "probes", "How good are the merges, according to unlabelled images?", body + Markup().join(tables)
    )


def scales(analysis: Analysis) -> Section | None:
    """Show outcomes for each α; return None if no α was tuned."""
    if analysis.curves.empty:
        return None
    curves = curve_table(analysis.curves)
    body = paragraphs(
        "The merged weights are θ₀ + α·M. Tuning computes M once per merge, evaluates a grid of α on the"
        " tasks' validation images and selects the α with the best mean normalised accuracy. Without labels,"
        " it selects the α at which the predictions on unlabelled images overlap most with those of the"
        " tasks' own models. All values in the tables are measured on the test images. Without tuning, a"
        " method may look worse only because its default α is unsuitable.",
        note=True,
    )
    both = scale_table(analysis)
    if len(both):
        body += paragraphs(
            "Mean and lowest normalised accuracy over pairs, for each method and each way of choosing α:",
            note=True,
        )
        columns = {name: title for name, title in _SCALE_COLUMNS.items() if name in both}
        body += table(both, columns, "method", caption="Outcomes by kind of α")
    body += figure_block(
        "scales",
        {"": [figures.scale_curves(curves), figures.chosen_scales(curves)]},
        described="Accuracy against α, and the selected values of α",
    )
    return Section("scales", "How does the outcome depend on the scale α?", body)


def sets(analysis: Analysis) -> Section | None:
    """Show merges of more than two models; return None if there are none."""
    summary = sets_table(analysis)
    if summary.empty:
        return None
    body = paragraphs(
        "Each set of more than two models is merged into one model. The value of a set is the mean normalised"
        " accuracy over its tasks; the table shows the mean and the worst value over the sets. The column"
        " `worst task` shows the lowest normalised accuracy of any single task.",
        note=True,
    )
    columns = [f"norm_acc_{method}" for method in analysis.methods]
    body += figure_block(
        "sets",
        {"": [figures.set_outcomes(analysis.sets, columns)]},
        described="Outcomes of sets by number of models",
    )
    body += table(
        summary.set_index("method"),
        _SET_COLUMNS,
        "method",
        texts=["worst_set"],
        caption="Outcomes of sets of models",
    )
    return Section("sets", "How well do more than two models merge?", body)


def metrics(analysis: Analysis) -> Section | None:
    """Draw a task × task heat map of each metric; return None if no metric has a value."""
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
        "Each metric has its own colour scale; grey cells mark undefined values. Click a cell to show"
        " the details of its pair.",
        note=True,
    )
    body += figure_block(
        "metrics",
        plots,
        [("metric", [(m, figures.label(m)) for m in known])],
        square=True,
        described="Heat map of a metric by pair of tasks",
    )
    return Section("metric-maps", "How similar are the models of each pair?", body)
