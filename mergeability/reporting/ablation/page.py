"""Build the page of an ablation: first the findings, then sections that compare the settings."""

from collections.abc import Sequence

import pandas as pd

from mergeability.prediction.pair_table import TARGETS
from mergeability.reporting import figures
from mergeability.reporting.ablation.comparison import ALL_METHODS, PLAIN, Ablation, winners
from mergeability.reporting.page import Section, bullet_list, figure_block, folded, page, paragraphs, table
from mergeability.reporting.summaries import TARGET_NAMES

_CHANGES = {
    "value": "mean", "change": "change", "low": "95 % over seeds, from", "high": "to", "task_low": "over tasks, from",
    "task_high": "to", "seeds": "seeds",
}  # fmt: skip
_SHOWN_WINNERS = 5


def ablation_page(found: Ablation) -> str:
    """Return the page of an ablation as HTML."""
    sections = [
        _trade_off(found),
        _choice(found),
        _merges(found),
        _models(found),
        _metrics(found),
        _made(found),
    ]
    return page(
        "Fine-tuning for mergeability",
        bullet_list(headline(found), lead=True),
        [section for section in sections if section is not None],
    )


def headline(found: Ablation) -> list[str]:
    """State in sentences whether any setting beats plain fine-tuning, and at what cost in single-task accuracy."""
    compared = found.merges[(found.merges["setting"] != PLAIN) & found.merges["change"].notna()]
    if compared.empty:
        return ["No setting could be compared with plain fine-tuning.", *found.missing]
    sentences = [_count(compared)] if compared["low"].notna().any() else []
    best = winners(compared)
    over_all = best[best["method"] == ALL_METHODS]
    rows = compared[(compared["method"] == ALL_METHODS) & (compared["target"] == "acc")]
    sentences += [
        f"{row['setting']}, averaged over all methods: accuracy {100 * row['acc']:+.1f} points, normalised"
        f" accuracy {100 * row['norm_acc']:+.1f}; single-task accuracy"
        f" {100 * _own_change(found, row['setting']):+.1f}."
        for row in over_all.head(_SHOWN_WINNERS).to_dict("records")
    ]
    if rows.empty:
        sentences.append("No merge method was used with every setting, so there is no mean over methods.")
    elif over_all.empty:
        row = rows.sort_values("change").iloc[-1]
        if pd.isna(row["low"]):
            luck = f", and the largest of {len(rows)} changes" if len(rows) > 1 else ""
            known = f" (one seed{luck}: no interval)"
        else:
            known = f" (95 % interval over seeds {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        if rows["low"].notna().any():
            sentences.append("No setting beats plain fine-tuning in the mean over all methods.")
        sentences.append(
            f"In the mean over all methods, {row['setting']} has the best accuracy:"
            f" {100 * row['change']:+.1f} points{known}."
        )
    return [*sentences, *found.missing]


def _count(compared: pd.DataFrame) -> str:
    """Say how many combinations beat plain fine-tuning, how many were tried, and which beats it most."""
    single = compared[(compared["method"] != ALL_METHODS) & compared["low"].notna()]
    tried = len(single[["setting", "method"]].drop_duplicates())
    best = winners(compared)
    best = best[best["method"] != ALL_METHODS]
    sentence = (
        f"{len(best)} of {tried} combinations of a setting and a merge method beat plain fine-tuning in accuracy"
        f" and in normalised accuracy, both by more than the 95 % interval over seeds. (If nothing helped, about"
        f" {0.025 * tried:.1f} would in one of the two by chance alone, and fewer in both.)"
    )
    if best.empty:
        return sentence
    row = best.iloc[0]
    return (
        f"{sentence} Most of all {row['setting']} with {row['method']}: accuracy {100 * row['acc']:+.1f} points,"
        f" normalised {100 * row['norm_acc']:+.1f}."
    )


def _own_change(found: Ablation, setting: str) -> float:
    return float(found.models.loc[found.models["setting"] == setting, "change"].iloc[0])


def _trade_off(found: Ablation) -> Section | None:
    methods = list(dict.fromkeys(found.merges["method"]))
    targets = [target for target in TARGETS if target in set(found.merges["target"])]
    plots = {
        f"{target}|{method}": [
            figures.trade_off(trade_off_table(found, method, target), TARGET_NAMES[target])
        ]
        for target in targets
        for method in methods
    }
    body = paragraphs(
        "Each point shows one setting of fine-tuning. The horizontal axis shows the accuracy of the setting's"
        " models before merging, and the vertical axis shows the accuracy of the merges of these models. Each"
        " coordinate is the mean accuracy of plain fine-tuning plus the setting's difference from plain"
        " fine-tuning with the same seeds, so that settings with different seeds can be compared. Bars are"
        " 95 % intervals, over seeds, of this difference. A setting is on the Pareto front if no other setting"
        " is better in one accuracy and at least as good in the other; the line connects the settings on the"
        " front. Drag to zoom in; double-click to reset.",
        note=True,
    )
    body += figure_block(
        "trade-off",
        plots,
        [_target_choice(targets), _method_choice(methods)],
        described="Merged accuracy against single-task accuracy",
    )
    return Section("trade-off", "Which settings improve merges at little cost?", body)


def trade_off_table(found: Ablation, method: str, target: str) -> pd.DataFrame:
    """Compare the single-task accuracy of each setting with the accuracy of its merges, and mark the Pareto front.

    Both are the mean of plain fine-tuning plus the setting's change with the same seeds, because means over unequal
    seeds are not comparable.

    Args:
        found: the ablation.
        method: the merge method.
        target: the outcome.

    Returns:
        One row per setting: `setting`, `penalty`, `strength`, `own`, `merged`, half-widths `own_half` and
        `merged_half`, and `front`.
    """
    rows = found.merges[(found.merges["method"] == method) & (found.merges["target"] == target)]
    merged, own = rows.set_index("setting"), found.models.set_index("setting").reindex(rows["setting"])
    both = pd.DataFrame(
        {
            "penalty": merged["penalty"],
            "strength": merged["strength"],
            "own": _beside_plain(own),
            "merged": _beside_plain(merged),
            "own_half": (own["high"] - own["low"]) / 2,
            "merged_half": (merged["high"] - merged["low"]) / 2,
        }
    ).dropna(subset=["own", "merged"])
    both["front"] = [
        not (
            (both["own"] >= own_)
            & (both["merged"] >= merged_)
            & ((both["own"] > own_) | (both["merged"] > merged_))
        ).any()
        for own_, merged_ in zip(both["own"], both["merged"], strict=True)
    ]
    return both.reset_index()


def _beside_plain(rows: pd.DataFrame) -> pd.Series:
    """Return plain's mean plus each setting's change; without plain the means themselves, whatever their seeds."""
    if PLAIN not in rows.index:
        return rows["value"]
    plain = float(rows["value"][PLAIN])
    return (plain + rows["change"]).where(rows.index != PLAIN, plain)


def _choice(found: Ablation) -> Section | None:
    if found.choices.empty:
        return None
    names = {"acc": "merged accuracy", "norm_acc": "normalised", "finetuned_accuracy": "models' own"}
    columns = {"strengths": "λ chosen"}
    for key, name in names.items():
        columns |= {key: name, f"{key}_low": "from", f"{key}_high": "to"}
    body = paragraphs(
        "For each penalty, the strength with the largest sum of merged and single-task accuracy is selected;"
        " plain fine-tuning is one of the candidates. The strength is selected on all seeds except one and"
        " evaluated on the remaining seed; this is repeated for every seed. The table shows the difference"
        " from plain fine-tuning, averaged over seeds and methods, with 95 % intervals over seeds. Selection"
        " and evaluation use the same test images.",
        note=True,
    )
    body += table(
        found.choices.set_index("penalty"),
        columns,
        "penalty",
        ["strengths"],
        digits=4,
        caption="Chosen strengths",
    )
    return Section("choice", "Which strength of each penalty is best?", body)


def _merges(found: Ablation) -> Section:
    methods = list(dict.fromkeys(found.merges["method"]))
    targets = [target for target in TARGETS if target in set(found.merges["target"])]
    body = paragraphs(
        "All changes are differences from plain fine-tuning with the same seed. Error bars in the figure are 95 %"
        " intervals over seeds. The tables also give 95 % intervals over tasks, which are computed from one"
        " difference per task. They show whether the result would also hold for other tasks.",
        note=True,
    )
    compared = found.merges[found.merges["change"].notna()]
    plots = {
        f"{target}|{method}": [
            figures.changes_by_strength(
                compared[(compared["method"] == method) & (compared["target"] == target)],
                TARGET_NAMES[target],
            )
        ]
        for target in targets
        for method in methods
        if len(compared)
    }
    if plots:
        body += figure_block(
            "merges",
            plots,
            [_target_choice(targets), _method_choice(methods)],
            described="Effect of each penalty's strength on merges",
        )
    for target in targets:
        rows = found.merges[found.merges["target"] == target]
        whole = rows[rows["method"] == ALL_METHODS].set_index("setting")
        name = TARGET_NAMES[target]
        body += paragraphs(f"{name[0].upper()}{name[1:]}, mean over methods:", note=True)
        body += table(
            whole, _CHANGES, "setting", marked=[PLAIN], caption=f"Changes of {name}, mean over methods"
        )
        body += folded(
            f"{name[0].upper()}{name[1:]}, every method: difference from plain fine-tuning",
            table(
                rows.pivot_table(index="setting", columns="method", values="change", sort=False, dropna=False)
                .reindex(list(dict.fromkeys(rows["setting"])))
                .drop(index=PLAIN, errors="ignore"),
                {method: method for method in methods},
                "setting",
                caption=f"Changes of {name}, every method",
            ),
        )
    return Section("merges", "How do merges change?", body)


def _models(found: Ablation) -> Section:
    body = paragraphs("Test accuracy of each model on its own task, before any merge.", note=True)
    body += table(
        found.models.set_index("setting"),
        _CHANGES,
        "setting",
        marked=[PLAIN],
        caption="Changes of the models",
    )
    return Section("models", "How do the models themselves change?", body)


def _metrics(found: Ablation) -> Section | None:
    if found.metrics.empty:
        return None
    wide = found.metrics.pivot_table(
        index="metric", columns="setting", values="change", sort=False, dropna=False
    ).reindex(columns=list(dict.fromkeys(found.metrics["setting"])))
    signs = found.metrics.groupby("metric", sort=False)["stable"].first()
    labels = [
        f"{'+ ' if signs[m] > 0 else '− ' if signs[m] < 0 else ''}{figures.label(str(m))}" for m in wide.index
    ]
    body = paragraphs(
        "Change of each metric's mean over pairs, averaged over seeds. The unit is the metric's standard"
        " deviation over the pairs of plain fine-tuning. The colour scale ends at ±5."
        + (
            f" A + or − before a name marks a stable metric: {found.stable_by} gives its coefficient this"
            " sign for normalised accuracy under every merge method and every seed of plain fine-tuning."
            " With +, pairs with larger values merge better; with −, pairs with smaller values do."
            if found.stable_by is not None
            else ""
        ),
        note=True,
    )
    values = wide.to_numpy(dtype=float)
    body += figure_block(
        "metrics",
        {
            "": [
                figures.labelled_heat_map(
                    values, labels, [str(s) for s in wide.columns], {}, "moved by", limit=5.0
                )
            ]
        },
        described="Changes of metrics by setting",
    )
    return Section("metrics", "How do the metrics change?", body)


def _made(found: Ablation) -> Section:
    body = bullet_list(
        [
            *found.facts,
            "All tables are saved next to this page as ablation_*.csv; each analysis has its own report.",
        ]
    )
    return Section("made", "How were these results produced?", body)


def _target_choice(targets: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    ordered = sorted(targets, key=lambda target: target != "acc")
    return ("outcome", [(target, TARGET_NAMES[target]) for target in ordered])


def _method_choice(methods: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    ordered = sorted(methods, key=lambda method: method != ALL_METHODS)
    return ("method", [(method, method) for method in ordered])
