"""Sections of the report on uncertainty and use: intervals, choice of a method, seeds, sets."""

from mergeability.reporting.page import (
    Section,
    folded,
    paragraphs,
    table,
)
from mergeability.reporting.prediction_parts import study_table
from mergeability.reporting.summaries import (
    BASELINES,
    Analysis,
)


def prediction_intervals(analysis: Analysis) -> Section | None:
    """Show how wide prediction intervals are and how often they cover the outcome."""
    intervals = study_table(analysis, "intervals")
    if intervals.empty:
        return None
    tasks, level = int(intervals["tasks"].max()), float(intervals["level"].max())
    body = paragraphs(
        f"How far a prediction may be off: {level:.0%} of the pairs of new tasks are meant to lie within ± the"
        " half-width. Coverage is measured: on each of"
        f" the {tasks} tasks, with the half-width from the pairs without that task. A half-width beyond the spread of"
        " outcomes (their standard deviation) says little.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "method": "method", "half_width": "± half-width",
        "spread": "spread of outcomes", "coverage": "coverage", "tasks_covered": "tasks covered", "level": "level",
    }  # fmt: skip
    mean = intervals.groupby(["protocol", "predictor"], sort=False)[
        ["half_width", "coverage", "tasks_covered"]
    ]
    shown = mean.mean().reset_index().set_index("predictor")
    means = {
        "protocol": "protocol", "half_width": "± half-width", "coverage": "coverage", "tasks_covered": "tasks covered",
    }  # fmt: skip
    body += table(shown, means, "predictor", ["protocol"], BASELINES, caption="Mean half-widths and coverage")
    every = table(
        intervals.set_index("predictor"),
        columns,
        "predictor",
        ["protocol", "target", "method"],
        BASELINES,
        caption="Half-widths and coverage of every predictor and method",
    )
    body += folded("Every predictor and method", every)
    return Section("intervals", "How certain is a prediction?", body)


def choice_of_method(analysis: Analysis) -> Section | None:
    """Show the gain or loss of choosing the method by prediction."""
    choice = study_table(analysis, "method_choice")
    if choice.empty:
        return None
    body = paragraphs(
        "If each pair is merged by the method with the best predicted outcome: how much worse that is than the best"
        " method for the pair (regret), and how often it is that one. For comparison: always the method with the best"
        " mean in training.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "regret": "regret", "fixed_regret": "regret of one for all",
        "hit_rate": "best method hit", "fixed_hit_rate": "hit by one for all", "n_choices": "choices",
    }  # fmt: skip
    body += table(
        choice.set_index("predictor"),
        columns,
        "predictor",
        ["protocol", "target"],
        BASELINES,
        digits=4,
        caption="Regret of the chosen method",
    )
    return Section("choice", "Does prediction choose a good method?", body)


def seed_spread(analysis: Analysis) -> Section | None:
    """Show how much scores differ across seeds of the predictors."""
    seeds = study_table(analysis, "seeds")
    if seeds.empty:
        return None
    body = paragraphs(
        "Predictors with a random start, fitted from several starts: mean r over left-out tasks, and its standard"
        " deviation over starts.",
        note=True,
    )
    columns = {
        "target": "target", "method": "method", "r_mean": "r", "r_std": "± starts", "r_least": "least",
        "r_most": "most", "seeds": "starts",
    }  # fmt: skip
    body += table(
        seeds.set_index("predictor"),
        columns,
        "predictor",
        ["target", "method"],
        caption="Spread over random starts",
    )
    return Section("seeds", "How much does the random start matter?", body)


def set_scores(analysis: Analysis) -> Section | None:
    """Show how predictions of pairs extend to sets of more models."""
    sets = study_table(analysis, "sets")
    if sets.empty:
        return None
    body = paragraphs(
        "The score of a set is the mean of its pairs' predicted outcomes. ρ is Spearman's rank correlation of scores"
        " and outcomes of sets; `measured pairs` uses the measured outcomes of pairs instead of predictions.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "method": "method", "arity": "models", "rho": "ρ",
        "n_sets": "sets",
    }  # fmt: skip
    body += table(
        sets.set_index("predictor"),
        columns,
        "predictor",
        ["protocol", "target", "method"],
        BASELINES,
        caption="Rank correlation of predicted and measured sets",
    )
    return Section("set-scores", "Do predictions of pairs extend to sets of models?", body)
