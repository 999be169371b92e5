"""The section of the report on pairs that were not evaluated: predictions, apart from everything measured."""

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
    """Show the predictions of pairs that were not evaluated, and how far they can be trusted; None without any."""
    predictions, accuracy = analysis.predicted_pairs, analysis.predicted_accuracy
    if predictions.empty or accuracy.empty:
        return None
    body = paragraphs(*analysis.of_budget)
    body += paragraphs(
        "Models of these pairs are in evaluated ones, too. For each outcome, cross-validation over the evaluated pairs"
        " chose a predictor; its errors there give the interval.",
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
        "Every predicted pair, the best mean first",
        table(ordered, columns, "pair", caption="Predicted pairs"),
    )
    return Section("predicted", "Which outcomes are predicted for pairs that were not measured?", body)
