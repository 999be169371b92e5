"""Build the report's section on predictions for pairs that were not evaluated."""

from mergeability.pipeline.result import Analysis
from mergeability.reporting.page import Section, folded, paragraphs, table
from mergeability.reporting.summaries import pair_name

_ACCURACY_COLUMNS = {
    "target": "target",
    "predictor": "predictor",
    "n_measured": "measured pairs",
    "n_predicted": "predicted pairs",
    "mae": "mean error",
    "mae_of_mean": "of always predicting the mean",
    "r": "r",
    "half_width": "± interval",
    "level": "at level",
}


def predicted_pairs(analysis: Analysis) -> Section | None:
    """Show predictions and intervals for pairs that were not evaluated; return None if nothing was predicted."""
    predictions, accuracy = analysis.predicted_pairs, analysis.predicted_accuracy
    if predictions.empty or accuracy.empty:
        return None
    body = paragraphs(*analysis.of_budget)
    body += paragraphs(
        "These pairs were not evaluated, but their models occur in evaluated pairs. For each outcome, the"
        " predictor was selected by cross-validation on the evaluated pairs; its validation errors determine"
        " the interval.",
        note=True,
    )
    body += table(
        accuracy.set_index("method"),
        _ACCURACY_COLUMNS,
        "method",
        ["target", "predictor"],
        caption="Accuracy of predictions",
    )
    target = str(accuracy["target"].iloc[0])
    methods = accuracy.loc[accuracy["target"] == target, "method"].astype(str)
    columns = {f"predicted_{target}_{method}": method for method in methods}
    order = predictions[list(columns)].mean(axis=1).sort_values(ascending=False, kind="stable").index
    ordered = predictions.loc[order]
    ordered = ordered.set_axis([pair_name(row) for row in ordered[["task_a", "task_b"]].to_dict("records")])
    body += folded(
        "Every predicted pair, sorted by mean prediction",
        table(ordered, columns, "pair", caption="Predicted pairs"),
    )
    return Section("predicted", "Which outcomes are predicted for pairs that were not evaluated?", body)
