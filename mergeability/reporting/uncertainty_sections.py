"""Build the report's sections on prediction intervals, the choice of a method, predictor seeds and sets of models."""

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
        f"For {level:.0%} of a new task's pairs, the outcome should differ from the prediction by at most the"
        f" half-width. Coverage is the measured share of such pairs: for each of the {tasks} tasks, the"
        " half-width is computed from the pairs without that task and tested on the pairs of that task. A"
        " prediction is of little use if its half-width exceeds the spread of outcomes, which is their"
        " standard deviation.",
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
    """Show the regret if predictions select each pair's method, and the regret if all pairs use one method."""
    choice = study_table(analysis, "method_choice")
    if choice.empty:
        return None
    body = paragraphs(
        "Here each pair is merged by the method with the best predicted outcome. The table shows how much"
        " lower the outcome is than with the pair's best method (regret), and how often the two methods are"
        " the same. For comparison, it also shows the results of always using the method with the best"
        " training mean.",
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
        "Predictors with random initialisation were fitted with several seeds. The table shows the mean r"
        " over left-out tasks, and its standard deviation over seeds.",
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
    return Section("seeds", "How much does the random initialisation matter?", body)


def set_scores(analysis: Analysis) -> Section | None:
    """Show how well predictions for pairs predict the outcomes of larger sets of models."""
    sets = study_table(analysis, "sets")
    if sets.empty:
        return None
    body = paragraphs(
        "The score of a set is the mean of the predicted outcomes of its pairs. ρ is Spearman's rank"
        " correlation of the scores and outcomes of sets. The row `measured pairs` uses measured outcomes of"
        " pairs instead of predictions.",
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
    return Section("set-scores", "Do predictions for pairs extend to larger sets of models?", body)
