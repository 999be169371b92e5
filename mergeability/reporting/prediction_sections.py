"""The report's sections on prediction: each draws one table of a study, and is left out where that is empty."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mergeability.prediction.study import beyond_task_effects
from mergeability.reporting.figures import all as figures
from mergeability.reporting.page import (
    Choice,
    Section,
    bullet_list,
    figure_block,
    folded,
    paragraphs,
    table,
)
from mergeability.reporting.summaries import (
    BASELINES,
    BOTH_NEW,
    KNOWN_PARTNER,
    TARGET_NAMES,
    Analysis,
    best_predictor,
    method_table,
    predictor_table,
    record_frame,
)

_PREDICTOR_COLUMNS = {
    "r_mean": "r",
    "r_std": "± folds",
    "rho_mean": "ρ",
    "pooled_r": "pooled r",
    "mae": "error",
    "r2_over_training_mean": "R² over mean",
    "train_r_mean": "r in training",
    "n_undefined": "folds without r",
}
_NEW_COLUMNS = {
    "method": "method",
    "r_beyond_mean": "r beyond mean",
    "r_beyond_mean_low": "95 % from",
    "r_beyond_mean_high": "to",
    "r2_over_training_mean": "R² over mean",
    "mae": "error",
    "pooled_r": "pooled r",
    "n_pairs": "pairs",
}
_CONSISTENCY = ("rho", "rho_low", "rho_high", "rho_beyond", "n_pairs")
_SHOWN_PAIRS = 60
_SHOWN_METRICS = 15


def sections(analysis: Analysis) -> list[Section | None]:
    """Make all sections on prediction, in reading order; None where there is nothing to show."""
    return [
        _scores(analysis),
        _predictors(analysis),
        _both_new(analysis),
        _beyond(analysis),
        _predictions(analysis),
        _single(analysis),
        _ablation(analysis),
        _coefficients(analysis),
        _fingerprints(analysis),
        _consistency(analysis),
        _stable(analysis),
        _intervals(analysis),
        _choice(analysis),
        _seeds(analysis),
        _set_scores(analysis),
    ]


def _scores(analysis: Analysis) -> Section | None:
    if analysis.scorer is None or analysis.scores.empty:
        return None
    scorer, scores = analysis.scorer, analysis.scores
    evidence = scorer.evidence_for(list(analysis.pairs.columns))
    body = paragraphs(
        f"Scored by ridge on {len(evidence.metrics)} metrics, fitted on the pairs of {len(scorer.tasks)}"
        " tasks that were"
        " merged before. The interval is meant to hold 90 % of a new task's pairs; the method with the best"
        " lower end is"
        " recommended. Where a metric lies outside the range the predictor was fitted on, it abstains.",
        note=True,
    )
    skill = pd.DataFrame(
        {
            name: {
                "r_beyond_mean": fit.r_beyond_mean,
                "r_low": fit.r_low,
                "half_width": fit.half_width,
                "level": fit.level,
                "n_pairs": fit.n_pairs,
            }
            for name, fit in evidence.methods.items()
        }
    ).T
    columns = {
        "r_beyond_mean": "r beyond mean, both new",
        "r_low": "95 % from",
        "half_width": "± interval",
        "level": "at level",
    }
    body += paragraphs("How far this predictor can be trusted, on pairs it had not seen:", note=True)
    body += table(skill, columns, "method")
    blind = [name for name, fit in evidence.methods.items() if not (fit.r_low or 0) > 0]
    if blind:
        body += paragraphs(
            f"For {', '.join(blind)} it foresees nothing that the mean of earlier merges does not: a recommendation of"
            " them rests on their mean alone."
        )
    if len(analysis.transfer):
        body += paragraphs("These pairs were merged as well; the scores against what came out:", note=True)
        body += table(
            analysis.transfer.set_index("method"),
            {
                "r": "r",
                "mae": "error",
                "mae_of_mean": "error of the mean",
                "covered": "inside the interval",
                "n_pairs": "pairs",
                "n_abstained": "abstained",
            },
            "method",
        )
    shown = scores.assign(
        pair=[f"{a} + {b}" for a, b in zip(scores["task_a"], scores["task_b"], strict=True)]
    )
    names = {f"score_{name}": name for name in evidence.methods}
    listing = table(
        shown.set_index("pair"),
        {
            "recommended": "recommended",
            **names,
            "driven_by": "driven by",
            "abstains": "abstains: outside the range",
        },
        "pair",
        texts=["recommended", "driven_by", "abstains"],
    )
    body += listing if len(shown) <= _SHOWN_PAIRS else folded("Every pair", listing)
    return Section("scores", "Will these models merge well?", body)


def _predictors(analysis: Analysis) -> Section | None:
    records = _records(analysis, KNOWN_PARTNER)
    if not records:
        return None
    frame = record_frame(records)
    body = paragraphs(
        "Known partner: the pairs of one task were left out of the fit, so that its partners, but not the task itself,"
        " have been merged before. Pearson correlation between predicted and measured outcome on those pairs, averaged"
        " over the tasks. The tinted rows are baselines that look at no metric: mean always says the"
        " training mean and so"
        " has no correlation, additive knows how the partner merges with others, finetuned knows the two models' own"
        " accuracies. Pooled r mixes folds that differ in level, hence it can be negative even for mean; error is the"
        " mean absolute one.",
        note=True,
    )
    plots, tables = {}, ""
    for target in dict.fromkeys(frame["target"]):
        summary = predictor_table(records, target)
        plots[target] = [figures.predictor_comparison(frame[frame["target"] == target], list(summary.index))]
        tables += paragraphs(f"Mean over methods, {TARGET_NAMES.get(target, target)}:", note=True)
        tables += table(summary, _PREDICTOR_COLUMNS, "predictor", marked=BASELINES)
    body += figure_block("predictors", plots, [target_choice(analysis)])
    by_method = frame.set_index("predictor")
    columns = {"method": "method", "target": "target", **_PREDICTOR_COLUMNS, "n_pairs": "pairs"}
    body += tables + folded(
        "Every method on its own", table(by_method, columns, "predictor", ["method", "target"], BASELINES)
    )
    return Section("predictors", "How well merging can be foreseen: known partner", body)


def _both_new(analysis: Analysis) -> Section | None:
    records = _records(analysis, BOTH_NEW)
    if not records:
        return None
    frame = record_frame(records)
    frame = frame[frame["protocol"] == frame["protocol"].iloc[0]]
    body = paragraphs(
        "Both new: neither task of a pair is in any pair of the fit that predicts it, which is what one faces with two"
        " models that nobody has merged. All pairs are pooled. The training mean falls when a good pair is"
        " left out, so"
        " the pooled r of predicting nothing is close to -1 and that of a careful predictor is dragged down with it; r"
        " beyond mean correlates what is predicted beyond the training mean with what is measured beyond it. Its"
        " interval comes from leaving out tasks in turn. A dash: nothing is predicted beyond the mean.",
        note=True,
    )
    first = str(frame["target"].iloc[0])
    for target, rows in frame.groupby("target", sort=False):
        own = rows.sort_values(["method", "predictor"], key=_in_order(rows), kind="stable").set_index(
            "predictor"
        )
        name = TARGET_NAMES.get(str(target), str(target))
        body += folded(
            f"{name[0].upper()}{name[1:]}",
            table(own, _NEW_COLUMNS, "predictor", ["method"], BASELINES),
            opened=target == first,
        )
    return Section("both-new", "How well merging can be foreseen: both new", body)


def _in_order(rows: pd.DataFrame) -> Any:
    """Sort by the order in which names come, baselines first among predictors."""

    def rank(column: pd.Series) -> pd.Series:
        names = list(dict.fromkeys(rows[str(column.name)]))
        names.sort(key=lambda name: name not in BASELINES)
        return column.map({name: i for i, name in enumerate(names)})

    return rank


def _beyond(analysis: Analysis) -> Section | None:
    variance, tested = _table(analysis, "variance"), _table(analysis, "relabelling")
    if variance.empty:
        return None
    body = paragraphs(
        "How much of the differences between pairs is explained by who is in them (task effects), how much more by the"
        " metrics, corrected for their number, and what is left. Below it the test that counts: do metrics cleared of"
        " task effects lower the error on the pairs of a left-out task, and would metrics of wrongly named tasks have"
        " done as well?",
        note=True,
    )
    plots = {
        str(target): [figures.variance_bars(rows)] for target, rows in variance.groupby("target", sort=False)
    }
    body += figure_block("beyond", plots, [target_choice(analysis)])
    if len(tested):
        for target in dict.fromkeys(tested["target"]):
            body += paragraphs(f"{TARGET_NAMES.get(target, target)}:", note=True)
            body += bullet_list(beyond_task_effects(tested, target))
        columns = {
            "target": "target",
            "r": "r of ridge",
            "p": "p, relabelled",
            "gain": "error saved beyond task effects",
            "p_beyond": "p, relabelled",
        }
        body += folded(
            "The tests as a table", table(tested.set_index("method"), columns, "method", ["target"])
        )
    return Section("beyond", "Do the metrics know more than who is in the pair?", body)


def _predictions(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.predictions.empty:
        return None
    found = prediction.of(_first_protocol(analysis, KNOWN_PARTNER))
    if found.predictions.empty:
        return None
    keys = ["target", "method", "predictor"]
    folds = dict(list(found.folds.groupby(keys, sort=False)))
    plots = {
        "|".join(map(str, key)): [
            figures.predicted_against_measured(rows, TARGET_NAMES.get(str(key[0]), str(key[0]))),
            figures.fold_correlations(folds[key]),
        ]
        for key, rows in found.predictions.groupby(keys, sort=False)
    }
    body = paragraphs(
        "Each point is a pair, predicted by a fit that never saw one of its tasks (one colour a left-out task); each"
        " pair appears once for either task. On the dotted line a prediction is exact.",
        note=True,
    )
    body += figure_block("predictions", plots, _fit_choices(analysis, found.predictions))
    return Section("predictions", "Predicted against measured", body)


def _single(analysis: Analysis) -> Section | None:
    single = _table(analysis, "single_metrics")
    if single.empty:
        return None
    plots = {}
    for target, rows in single.groupby("target", sort=False):
        metrics, methods = list(dict.fromkeys(rows["metric"])), list(dict.fromkeys(rows["method"]))
        grids = {
            name: rows.pivot_table(index="metric", columns="method", values=name, dropna=False)
            .reindex(index=metrics, columns=methods)
            .to_numpy(dtype=float)
            for name in ("r", "p", "p_usual")
        }
        plots[str(target)] = [
            figures.labelled_heat_map(
                grids["r"],
                [figures.label(metric) for metric in metrics],
                methods,
                {"p by relabelling": grids["p"], "usual p": grids["p_usual"]},
                "r",
            )
        ]
    body = paragraphs(
        "Correlation of each metric alone with the outcome, over all pairs that have both. The usual p-value"
        " takes pairs"
        " for independent, which those that share a task are not; the other compares with relabelled tasks.",
        note=True,
    )
    body += figure_block("single", plots, [target_choice(analysis)])
    columns = {
        "method": "method", "target": "target", "r": "r", "p_usual": "usual p", "p": "p, relabelled",
        "n_pairs": "pairs",
    }  # fmt: skip
    body += folded("As a table", table(single.set_index("metric"), columns, "metric", ["method", "target"]))
    return Section("single", "Each metric on its own", body)


def _ablation(analysis: Analysis) -> Section | None:
    ablation = _table(analysis, "ablation")
    if ablation.empty:
        return None
    names = {"loto": KNOWN_PARTNER, "l2to": BOTH_NEW}
    plots = {}
    for (protocol, target), rows in ablation.groupby(["protocol", "target"], sort=False):
        categories, methods = list(dict.fromkeys(rows["category"])), list(dict.fromkeys(rows["method"]))
        grids = [
            rows.pivot_table(index="category", columns="method", values=name, dropna=False)
            .reindex(index=categories, columns=methods)
            .to_numpy(dtype=float)
            for name in ("delta", "alone")
        ]
        plots[f"{protocol}|{target}"] = [
            figures.labelled_heat_map(grid, categories, methods, {}, title)
            for grid, title in zip(grids, ("change of r without it", "r with nothing else"), strict=True)
        ]
    body = paragraphs(
        "Ridge refitted without each category of metrics (left: the change of its r; below 0 the category is"
        " missed), and"
        " with nothing else (right). For both new, r is that beyond the training mean.",
        note=True,
    )
    situations: Choice = (
        "situation",
        [(str(one), names.get(str(one), str(one))) for one in dict.fromkeys(ablation["protocol"])],
    )
    body += figure_block("ablation", plots, [situations, target_choice(analysis)])
    return Section("ablation", "What each category of metrics is worth", body)


def _coefficients(analysis: Analysis) -> Section | None:
    prediction = analysis.prediction
    if prediction is None or prediction.coefficients.empty:
        return None
    rows = prediction.coefficients
    rows = rows[rows["protocol"] == rows["protocol"].iloc[0]]
    groups = rows.groupby(["target", "method", "predictor"], sort=False)
    plots = {"|".join(map(str, key)): [figures.coefficient_bars(one)] for key, one in groups}
    body = paragraphs(
        "Coefficients averaged over the fits, one for each left-out task; whiskers show their standard deviation."
        " Metrics are scaled to [-1, 1], so lengths can be compared; correlated metrics share or trade their"
        " weight, so a sign alone proves little. For additive the rows are task effects.",
        note=True,
    )
    body += figure_block("coefficients", plots, _fit_choices(analysis, rows))
    return Section("coefficients", "What the predictors listen to", body)


def _fingerprints(analysis: Analysis) -> Section | None:
    compared = _table(analysis, "fingerprints")
    if compared.empty:
        return None
    plots = {}
    for (target, predictor), rows in compared.groupby(["target", "predictor"], sort=False):
        methods = list(dict.fromkeys([*rows["method_a"], *rows["method_b"]]))
        pairs = rows.rename(columns={"method_a": "task_a", "method_b": "task_b"})
        plots[f"{target}|{predictor}"] = [
            figures.matrix_heat_map(figures.pair_matrix(pairs, column, methods), methods, (0.0, 1.0), "share")
            for column in ("top5_overlap", "sign_agreement")
        ]
    means = compared.groupby(["target", "predictor"], sort=False)[["top5_overlap", "sign_agreement"]].mean()
    body = paragraphs(
        "Do methods succeed for the same reasons? Left: share of the five largest metrics that two methods have in"
        " common. Right: share of metrics with the same sign.",
        note=True,
    )
    body += figure_block(
        "fingerprints", plots, [target_choice(analysis), _predictor_choice(analysis, compared)], square=True
    )
    columns = {"predictor": "predictor", "top5_overlap": "top-5 overlap", "sign_agreement": "sign agreement"}
    body += folded(
        "Means over all pairs of methods",
        table(means.reset_index().set_index("target"), columns, "target", ["predictor"]),
    )
    return Section("fingerprints", "Fingerprints of the methods", body)


def _consistency(analysis: Analysis) -> Section | None:
    compared = _table(analysis, "consistency")
    if compared.empty:
        return None
    plots = {str(target): _consistency_maps(rows) for target, rows in compared.groupby("target", sort=False)}
    body = paragraphs(
        "Is merging well a property of the pair, or of pair and method? Left: Spearman's rank correlation of"
        " two methods' outcomes over the pairs that both have; 1 means that they put the same pairs first."
        " Right: the same of what is left once each task has an effect of its own, since methods may agree"
        " about nothing but which models spoil every merge. Grey cells are undefined.",
        note=True,
    )
    body += figure_block("consistency", plots, [target_choice(analysis)])
    columns = {
        "method_b": "and", "target": "target", "rho": "ρ", "rho_low": "95 % from", "rho_high": "to",
        "rho_beyond": "ρ beyond task effects", "n_pairs": "pairs",
    }  # fmt: skip
    body += folded(
        "As a table, with intervals",
        table(compared.set_index("method_a"), columns, "method", ["method_b", "target"]),
    )
    return Section("consistency", "Do methods agree about pairs?", body)


def _consistency_maps(compared: pd.DataFrame) -> list[Any]:
    """Draw ρ and ρ beyond task effects, method by method."""
    methods = list(dict.fromkeys([*compared["method_a"], *compared["method_b"]]))
    pairs = compared.rename(columns={"method_a": "task_a", "method_b": "task_b"})
    grids = {name: figures.pair_matrix(pairs, name, methods) for name in _CONSISTENCY}
    for name in ("rho", "rho_beyond"):
        # The 1 of a method with itself gives both maps the same colours.
        known = ~np.isnan(grids[name]).all(axis=1)
        grids[name][known, known] = 1.0
    beside = {"95 % from": grids["rho_low"], "to": grids["rho_high"], "pairs": grids["n_pairs"]}
    return [
        figures.labelled_heat_map(grids["rho"], methods, methods, beside, "ρ"),
        figures.labelled_heat_map(
            grids["rho_beyond"], methods, methods, {"pairs": grids["n_pairs"]}, "ρ beyond task effects"
        ),
    ]


def _stable(analysis: Analysis) -> Section | None:
    stable = _table(analysis, "stable_metrics")
    if stable.empty or analysis.prediction is None:
        return None
    body = paragraphs(
        "Metrics whose mean coefficient has one sign under every method; core ones are also selected in at"
        " least 80 % of"
        " every method's folds. Contribution is |mean coefficient| as a share of all, the mean over methods.",
        note=True,
    )
    columns = {
        "sign": "sign", "core": "core", "least_selected": "selected in, at least", "contribution": "contribution",
    }  # fmt: skip
    target = analysis.targets[0] if analysis.targets else str(stable["target"].iloc[0])
    best = best_predictor(_records(analysis, KNOWN_PARTNER), target)
    for predictor, rows in stable[stable["target"] == target].groupby("predictor", sort=False):
        kept = rows[rows["stable"]].head(_SHOWN_METRICS)
        stable_ones, core = int(rows["stable"].sum()), int(rows["core"].sum())
        of = f"{predictor}: {stable_ones} of {len(rows)} metrics are stable, {core} core"
        listing = table(kept.set_index("metric"), columns, "metric")
        body += folded(of, listing, opened=predictor == best)
    return Section("stable", "Stable and core metrics", body)


def _intervals(analysis: Analysis) -> Section | None:
    intervals = _table(analysis, "intervals")
    if intervals.empty:
        return None
    tasks, level = int(intervals["tasks"].max()), float(intervals["level"].max())
    body = paragraphs(
        f"How far a prediction may be off. From {tasks} tasks no interval can be promised at a level above"
        f" {tasks / (tasks + 1):.1%}; these are at {level:.1%}: for that share of new tasks, 90 % of the"
        " pairs are meant"
        " to lie within ± the half-width. Coverage is measured, on each task with the half-width from the others. A"
        " half-width beyond the spread of outcomes (their standard deviation) says little.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "method": "method", "half_width": "± half-width",
        "spread": "spread of outcomes", "coverage": "coverage", "tasks_covered": "tasks covered", "level": "level",
    }  # fmt: skip
    body += folded(
        "Every predictor and method",
        table(
            intervals.set_index("predictor"),
            columns,
            "predictor",
            ["protocol", "target", "method"],
            BASELINES,
        ),
    )
    mean = intervals.groupby(["protocol", "predictor"], sort=False)[
        ["half_width", "coverage", "tasks_covered"]
    ]
    shown = mean.mean().reset_index().set_index("predictor")
    means = {
        "protocol": "protocol", "half_width": "± half-width", "coverage": "coverage", "tasks_covered": "tasks covered",
    }  # fmt: skip
    body = body.replace("<details", table(shown, means, "predictor", ["protocol"], BASELINES) + "<details", 1)
    return Section("intervals", "How sure a prediction is", body)


def _choice(analysis: Analysis) -> Section | None:
    choice = _table(analysis, "method_choice")
    if choice.empty:
        return None
    body = paragraphs(
        "If each pair is merged by the method with the best predicted outcome: how much worse that is than the best"
        " method for the pair (regret), and how often it is that one. Beside it, always taking the method"
        " that was best on"
        " average in training.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "regret": "regret", "fixed_regret": "regret of one for all",
        "hit_rate": "best method hit", "fixed_hit_rate": "hit by one for all", "n_choices": "choices",
    }  # fmt: skip
    body += table(
        choice.set_index("predictor"), columns, "predictor", ["protocol", "target"], BASELINES, digits=4
    )
    return Section("choice", "Choosing a method by prediction", body)


def _seeds(analysis: Analysis) -> Section | None:
    seeds = _table(analysis, "seeds")
    if seeds.empty:
        return None
    body = paragraphs(
        "Predictors that start at random, from several starts: mean r over left-out tasks, and how much of"
        " it is the start.",
        note=True,
    )
    columns = {
        "target": "target", "method": "method", "r_mean": "r", "r_std": "± starts", "r_least": "least",
        "r_most": "most", "seeds": "starts",
    }  # fmt: skip
    body += table(seeds.set_index("predictor"), columns, "predictor", ["target", "method"])
    return Section("seeds", "How much depends on the start", body)


def _set_scores(analysis: Analysis) -> Section | None:
    sets = _table(analysis, "sets")
    if sets.empty:
        return None
    body = paragraphs(
        "The score of a set is the mean of its pairs' predicted outcomes. Spearman's rank correlation with"
        " how well the"
        " sets merged; measured pairs takes the pairs' own merges in the place of predictions.",
        note=True,
    )
    columns = {
        "protocol": "protocol", "target": "target", "method": "method", "arity": "models", "rho": "ρ",
        "n_sets": "sets",
    }  # fmt: skip
    body += table(
        sets.set_index("predictor"), columns, "predictor", ["protocol", "target", "method"], BASELINES
    )
    return Section("set-scores", "From pairs to many models", body)


def target_choice(analysis: Analysis) -> Choice:
    """Offer the outcomes."""
    return ("outcome", [(target, TARGET_NAMES[target]) for target in analysis.targets])


def _table(analysis: Analysis, name: str) -> pd.DataFrame:
    prediction = analysis.prediction
    return pd.DataFrame() if prediction is None else prediction.tables.get(name, pd.DataFrame())


def _records(analysis: Analysis, situation: str) -> list[dict[str, Any]]:
    """Take the records of the first protocol of a situation."""
    prediction = analysis.prediction
    if prediction is None:
        return []
    first = _first_protocol(analysis, situation)
    return [record for record in prediction.records if record["protocol"] == first]


def _first_protocol(analysis: Analysis, situation: str) -> str:
    records = analysis.prediction.records if analysis.prediction is not None else []
    return next((record["protocol"] for record in records if record["situation"] == situation), "")


def _predictor_choice(analysis: Analysis, rows: pd.DataFrame) -> Choice:
    """Offer the best predictor first: what is seen without choosing should be the main result."""
    names: Sequence[str] = list(dict.fromkeys(rows["predictor"].astype(str)))
    shown = [record for record in _records(analysis, KNOWN_PARTNER) if record["predictor"] in names]
    best = best_predictor(shown, str(rows["target"].iloc[0]))
    ordered = sorted(names, key=lambda name: name != best)
    return ("predictor", [(name, name) for name in ordered])


def _fit_choices(analysis: Analysis, rows: pd.DataFrame) -> list[Choice]:
    methods = method_table(analysis.pairs, list(dict.fromkeys(rows["method"])), analysis.alphas).index
    return [
        target_choice(analysis),
        ("method", [(str(m), str(m)) for m in methods]),
        _predictor_choice(analysis, rows),
    ]
