"""Build the report's section on layers in which the task vectors of two models conflict."""

import re
from itertools import takewhile

import pandas as pd

from mergeability.pipeline.result import Analysis
from mergeability.reporting import figures
from mergeability.reporting.page import Section, figure_block, folded, paragraphs, table
from mergeability.reporting.summaries import pair_name

_COLUMNS = {"mean": "mean cosine", "conflicts": "pairs in conflict", "lowest": "lowest", "pair": "its pair"}
_SHOWN = 10


def layer_section(analysis: Analysis) -> Section | None:
    """Show the cosine of task vectors in each layer, and list the lowest cosines; return None if no cosine is known."""
    if analysis.layers.empty or analysis.layers["cosine"].isna().all():
        return None
    cosines = _wide(analysis.layers)
    summary = layer_summary(cosines)
    body = paragraphs(
        "Cosine between the task vectors of a pair's two models, for each tensor of the network, in [−1, 1]."
        " If the cosine is negative, fine-tuning changed the two models in opposing directions in this tensor,"
        " so merging cancels part of each change. The card of each pair lists the layers with the lowest"
        " cosine; layers.csv contains all values.",
        note=True,
    )
    body += figure_block(
        "layers", {"": [figures.layer_map(cosines)]}, described="Cosine of the task vectors by layer and pair"
    )
    lowest = summary.sort_values("mean", kind="stable")
    body += paragraphs("Layers with the lowest cosine, averaged over pairs:", note=True)
    body += table(
        lowest.head(_SHOWN), _COLUMNS, "layer", ["pair"], caption="Layers with the lowest mean cosine"
    )
    if len(summary) > _SHOWN:
        every = table(summary, _COLUMNS, "layer", ["pair"], caption="Cosines of all layers")
        body += folded("All layers, by name", every)
    return Section("layers", "In which layers do two models conflict?", body)


def layer_summary(cosines: pd.DataFrame) -> pd.DataFrame:
    """Compute statistics of each layer over pairs.

    Args:
        cosines: one row per layer and one column per pair.

    Returns:
        Indexed by layer: `mean` cosine, share of pairs whose cosine is below 0 as `conflicts`, `lowest` cosine and its
        `pair`.
    """
    known = cosines.notna().any(axis=1)
    cosines = cosines[known]
    return pd.DataFrame(
        {
            "mean": cosines.mean(axis=1),
            "conflicts": (cosines < 0).sum(axis=1) / cosines.notna().sum(axis=1),
            "lowest": cosines.min(axis=1),
            "pair": cosines.idxmin(axis=1),
        }
    )


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _wide(layers: pd.DataFrame) -> pd.DataFrame:
    """Arrange cosines by layer and pair, pairs by their mean, without the common beginning of the layers' names."""
    names = sorted(dict.fromkeys(layers["layer"].astype(str)), key=_by_number)
    parts = [name.split(".") for name in names]
    common = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    start = "".join(f"{column[0]}." for column in common) if len(names) > 1 else ""
    pairs = [pair_name(row) for row in layers[["task_a", "task_b"]].to_dict("records")]
    wide = layers.assign(pair=pairs).pivot_table(
        index="layer", columns="pair", values="cosine", sort=False, dropna=False
    )
    wide = wide.reindex(names)
    wide.index = pd.Index([name.removeprefix(start) for name in names])
    return wide[wide.mean().sort_values(kind="stable").index]
