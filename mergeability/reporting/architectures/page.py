"""The page of a comparison of architectures: the claims first, then the tables that they rest on."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mergeability.prediction.architectures.agreement import KINDS
from mergeability.prediction.architectures.analyses import architectures_of
from mergeability.prediction.architectures.cells import PREDICTORS
from mergeability.prediction.architectures.claims import CONFIRMED, REFUTED, UNDECIDED
from mergeability.prediction.architectures.findings import Findings
from mergeability.prediction.architectures.signs import ALL, stable_metrics_of
from mergeability.prediction.architectures.transfer import KINDS as TRANSFERS
from mergeability.prediction.architectures.transfer import TIERS, WITHIN
from mergeability.reporting import figures
from mergeability.reporting.page import Section, bullet_list, figure_block, page, paragraphs, table

_OVER = "Intervals are 95 % over tasks and seeds: the jackknife, with both standard errors added in squares."
_PARTS = {
    "task_effects": "task effects",
    "metrics_beyond": "metrics beyond task effects",
    "residual": "neither",
}
_MEASURES = {"sign_agreement": "sign agreement", "top5_overlap": "top-5 overlap", "rho": "ρ of outcomes"}


def architectures_page(
    found: Findings, tables: Mapping[str, pd.DataFrame], facts: Sequence[str], missing: Sequence[str]
) -> str:
    """Return the page as HTML.

    Args:
        found: the tables with the analyses they are from.
        tables: name → table, as in the files.
        facts: sentences on what was compared.
        missing: sentences on what is missing.
    """
    sections = [
        _claims(tables["claims"]),
        _outcomes(tables["outcomes"]),
        _fingerprints(found.agreement),
        _signs(found),
        _prerequisites(found.prerequisites),
        _variance(found),
        _within(tables["transfer"]),
        _transfer(tables["transfer"]),
        *_trainings(found),
    ]
    lead = bullet_list([*headline(tables["claims"]), *missing, *facts], lead=True)
    return page("What carries over between architectures", lead, sections)


def headline(claims: pd.DataFrame) -> list[str]:
    """For each verdict, return one sentence that lists the claims with this verdict."""
    sentences = []
    for verdict in (CONFIRMED, REFUTED, UNDECIDED):
        own = claims.loc[claims["verdict"] == verdict, "claim"]
        if len(own):
            sentences.append(f"{verdict.capitalize()} here, {len(own)} of {len(claims)}: {' '.join(own)}")
    return sentences


def _claims(claims: pd.DataFrame) -> Section:
    body = paragraphs(
        "These are the claims and open questions of arXiv 2601.22285, each with the rule that decides its verdict. All "
        f"rules were fixed before any result was seen. {_OVER} With one seed, intervals reflect the variation between "
        "tasks only.",
        note=True,
    )
    body += table(
        claims.set_index("claim"),
        {
            "verdict": "verdict", "figure": "figure", "rule": "rule of the verdict", "source": "source",
            "command": "measured by",
        },
        "claim",
        ["source", "verdict", "figure", "rule", "command"],
        caption="Claims and their verdicts",
        sentences=True,
    )  # fmt: skip
    return Section("claims", "Which claims hold in these analyses?", body)


def _outcomes(outcomes: pd.DataFrame) -> Section:
    means = outcomes.pivot_table(index="method", columns="architecture", values="norm_acc", sort=False)
    body = paragraphs("Mean normalised accuracy over pairs and seeds.", note=True)
    body += table(means, {str(name): str(name) for name in means}, "method", caption="Mean outcome by method")
    body += paragraphs(_OVER, note=True)
    body += table(
        outcomes.set_index("architecture"),
        {
            "method": "method", "norm_acc": "mean normalised", "norm_acc_low": "95 % from", "norm_acc_high": "to",
            "worst": "worst pair", "seeds": "seeds",
        },
        "architecture",
        ["method"],
        caption="Mean outcome by architecture and method, with intervals",
    )  # fmt: skip
    return Section("outcomes", "How well do merges work in each architecture?", body)


def _fingerprints(agreement: pd.DataFrame) -> Section:
    kinds = "; ".join(f"{words} ({kind})" for kind, words in KINDS.items())
    body = paragraphs(
        "The table shows how far the coefficients of two fits agree. Sign agreement is the share of metrics whose "
        "coefficients have the same sign in both fits; by chance, it would be about one half. Top-5 overlap is the "
        "share of the five largest coefficients that belong to the same metrics in both fits; by chance, it would be "
        "about 5 divided by the number of metrics. ρ is the rank correlation of the outcomes themselves. These "
        f"fits are compared: {kinds}. The floor is the agreement of fits that differ in the seed alone. {_OVER}",
        note=True,
    )
    if agreement.empty:
        nothing = paragraphs("One method, one architecture and one seed: there are no two fits to compare.")
        return Section(
            "fingerprints",
            "Do the same metrics matter for every method, architecture and seed?",
            body + nothing,
        )
    plots = {
        f"{measure}|{predictor}": [
            figures.agreement_bars(agreement[agreement["predictor"] == predictor], measure, title)
        ]
        for measure, title in _MEASURES.items()
        for predictor in PREDICTORS
    }
    body += figure_block(
        "fingerprints",
        plots,
        [("measure", list(_MEASURES.items())), ("predictor", [(name, name) for name in PREDICTORS])],
        described="Agreement between methods, architectures and seeds",
    )
    for predictor in PREDICTORS:
        body += table(
            agreement[agreement["predictor"] == predictor].set_index("kind"),
            {
                "group": "architectures", "sign_agreement": "sign agreement", "sign_agreement_low": "95 % from",
                "sign_agreement_high": "to", "top5_overlap": "top-5 overlap", "top5_overlap_low": "95 % from",
                "top5_overlap_high": "to", "rho": "ρ", "rho_low": "95 % from", "rho_high": "to", "n": "pairs of fits",
            },
            "kind",
            ["group"],
            caption=f"Agreement of coefficients of {predictor}, and of outcomes",
        )  # fmt: skip
    return Section(
        "fingerprints", "Do the same metrics matter for every method, architecture and seed?", body
    )


def _signs(found: Findings) -> Section:
    names = architectures_of(found.analyses)
    by_r, by_weight = (stable_metrics_of(found.signs, names, column) for column in ("sign_r", "sign_weight"))
    count, by_chance, p = found.stable
    body = paragraphs(
        f"Of {len(found.cells.metrics)} metrics, {count} correlate with the outcome in the same direction under every "
        f"method, seed and architecture. If task names are permuted, {by_chance:.1f} metrics do so on average "
        f"(p = {p:.3f}). Metrics with the same direction: {', '.join(by_r) or 'none'}.",
        "Metrics whose ridge coefficients have the same sign under every method, seed and architecture: "
        f"{', '.join(by_weight) or 'none'}.",
        "The figure shows the correlation of each metric with normalised accuracy, averaged over seeds. A dot means "
        f"that the 95 % interval excludes 0. {_OVER}",
        note=True,
    )
    body += figure_block(
        "signs",
        {"": [figures.metric_signs(found.of_methods)]},
        described="Correlation of metrics with outcomes",
    )
    shown = found.signs[found.signs["architecture"] == (ALL if len(names) > 1 else names[0])]
    body += table(
        shown.set_index("metric"),
        {
            "family": "category", "r": "mean r", "r_low": "95 % from", "r_high": "to", "positive_r": "share with r > 0",
            "positive_weight": "share with weight > 0", "sign_r": "sign of r", "sign_weight": "sign of weight",
            "n": "methods and seeds",
        },
        "metric",
        ["family"],
        caption="Signs of metrics over all methods, seeds and architectures",
    )  # fmt: skip
    return Section(
        "signs", "Which metrics have the same sign for all methods, architectures and seeds?", body
    )


def _prerequisites(rows: pd.DataFrame) -> Section:
    body = paragraphs(
        "If a metric is a prerequisite of good merges, its correlation with the outcome has the expected sign. The "
        "table counts the methods under which the correlation has this sign (as expected), under which its interval "
        "excludes 0 as well (clear), and under which its interval is on the other side of 0 (against). A metric is "
        "foundational in an architecture if it is clear under every method.",
        note=True,
    )
    body += table(
        rows.assign(foundational=rows["foundational"].map({True: "yes", False: "no"})).set_index("metric"),
        {
            "family": "family", "architecture": "architecture", "expected": "expected sign", "methods": "methods",
            "as_expected": "as expected", "clear": "clear", "against": "against", "foundational": "foundational",
        },
        "metric",
        ["family", "architecture", "foundational"],
        caption="Gradient alignment and subspace overlap under every method",
    )  # fmt: skip
    return Section(
        "prerequisites", "Is gradient alignment or subspace overlap a prerequisite in any architecture?", body
    )


def _variance(found: Findings) -> Section:
    keys = ["architecture", "method"]
    means = found.variance.groupby(keys, sort=False)[["n_pairs", *_PARTS]].mean().reset_index()
    bars = means.assign(
        name=means["architecture"] + ": " + means["method"],
        metrics_beyond=means["metrics_beyond"].clip(lower=0),
    )
    body = paragraphs(
        "The variance of normalised accuracy over pairs is divided into three shares, averaged over seeds: task "
        "effects, which depend on each model alone; what metrics predict in addition for pairs of two new tasks; and "
        "the rest. The second share is below 0 if predictions with metrics have larger errors than predictions from "
        "task effects alone.",
        note=True,
    )
    body += figure_block("variance", {"": [figures.share_bars(bars, _PARTS)]}, described="Shares of variance")
    body += table(
        means.set_index("architecture"),
        {"method": "method", "n_pairs": "pairs", **_PARTS},
        "architecture",
        ["method"],
        caption="Variance split by architecture and method",
    )
    body += paragraphs(
        "Two shares of this variance repeat over seeds: the share due to single tasks, and the share due to the "
        f"combination of two tasks. The rest changes from seed to seed. {_OVER}",
        note=True,
    )
    body += table(
        found.repeated.set_index("architecture"),
        {
            "method": "method", "task": "single tasks", "task_low": "95 % from", "task_high": "to",
            "partner": "combination", "partner_low": "95 % from", "partner_high": "to", "changes": "changes",
            "seeds": "seeds",
        },
        "architecture",
        ["method"],
        caption="What repeats over seeds",
    )  # fmt: skip
    return Section("variance", "What do outcomes depend on?", body)


_TRANSFER_COLUMNS = {
    "rests_on": "rests on", "r": "r", "r_low": "95 % from", "r_high": "to", "bias": "bias", "mae": "error",
    "mae_of_mean": "error of the mean", "n_pairs": "pairs", "seeds": "seeds",
}  # fmt: skip


def _within(transfer: pd.DataFrame) -> Section:
    body = paragraphs(
        "Predictors are fitted and tested on pairs of the same set of models; the fit for a pair uses only pairs that "
        "share no task with it. r is the correlation between predictions and outcomes after each fold's training mean "
        f"is subtracted from both; it is averaged over methods and seeds. Bias is predicted − measured. {_OVER}",
        note=True,
    )
    own = transfer[transfer["models"] == WITHIN]
    body += table(
        own.set_index("predictor"),
        {"predicts": "architecture", **_TRANSFER_COLUMNS},
        "predictor",
        ["predicts", "rests_on"],
        caption="Pairs of two new tasks by kind of evidence",
    )
    return Section(
        "both-new", "Which kind of evidence predicts the outcomes of pairs of two new tasks?", body
    )


def _transfer(transfer: pd.DataFrame) -> Section:
    body = paragraphs(
        "Each pair is predicted by a fit on pairs that share no task with it, so the fit contains no outcome of the "
        "predicted pair's tasks. The pairs of the fit are from another architecture with the same seed, or from "
        "another seed of the same architecture. The diagonal shows the predictions from other seeds, if there are "
        f"several: no better result can be expected from another architecture. {_OVER}",
        note=True,
    )
    other = transfer[transfer["models"] != WITHIN]
    if other.empty:
        return Section(
            "transfer",
            "Do fitted predictors transfer to other seeds and architectures?",
            body + paragraphs("There is no other analysis."),
        )
    plots = {
        name: [figures.transfer_map(other[other["predictor"] == name])]
        for name in dict.fromkeys(other["predictor"])
    }
    body += figure_block(
        "transfer",
        plots,
        [("predictor", [(name, f"{name}: {TIERS[name]}") for name in plots])],
        described="Correlation r when a fit on one architecture predicts another",
    )
    for kind in TRANSFERS:
        own = other[other["models"] == kind]
        if len(own):
            body += table(
                own.set_index("predictor"),
                {"fitted_on": "fitted on", "predicts": "predicts", **_TRANSFER_COLUMNS},
                "predictor",
                ["fitted_on", "predicts", "rests_on"],
                caption=f"Predictions of {kind}",
            )
    return Section("transfer", "Do fitted predictors transfer to other seeds and architectures?", body)


def _trainings(found: Findings) -> list[Section]:
    sections = []
    if len(found.penalties):
        body = paragraphs(
            "The table shows changes relative to plain fine-tuning with the same seed, averaged over methods, pairs "
            "and seeds. The columns `accuracy` and `normalised` show the change of the merged models' accuracy and "
            "normalised accuracy. The column `gradients` shows the change of the distance between two models' "
            f"gradients, divided by the distance after plain fine-tuning. {_OVER}",
            note=True,
        )
        body += table(
            found.penalties.set_index("architecture"),
            {
                "penalty": "penalty", "strength": "λ", "acc": "accuracy", "acc_low": "95 % from", "acc_high": "to",
                "norm_acc": "normalised", "norm_acc_low": "95 % from", "norm_acc_high": "to", "gradient": "gradients",
                "gradient_low": "95 % from", "gradient_high": "to", "seeds": "seeds",
            },
            "architecture",
            ["penalty"],
            caption="Training runs with a penalty against plain fine-tuning",
        )  # fmt: skip
        sections.append(Section("penalties", "Do penalties during fine-tuning improve merges?", body))
    if len(found.sets):
        body = paragraphs(
            "The table shows ρ, the rank correlation between the outcome of merging several models and the mean "
            f"outcome of all pairs of these models. {_OVER}",
            note=True,
        )
        if found.sets["left_out"].any():
            body += paragraphs(
                "Sets are left out if some of their pairs were not merged: choose sets=… at least as large as the "
                "number of pairs.",
                note=True,
            )
        body += table(
            found.sets.set_index("architecture"),
            {
                "method": "method", "arity": "models", "rho": "ρ", "rho_low": "95 % from", "rho_high": "to",
                "n_sets": "sets", "left_out": "left out", "seeds": "seeds",
            },
            "architecture",
            ["method"],
            caption="Merges of more than two models and their pairs",
        )  # fmt: skip
        sections.append(Section("sets", "Do pairs predict merges of more than two models?", body))
    return sections
