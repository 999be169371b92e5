"""Compare kinds of evidence, and write the tables and the page into the folder of a sweep."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mergeability.files import write_text
from mergeability.prediction.csv_files import csv_text
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.validation.protocols import BOTH_NEW, KNOWN_PARTNER
from mergeability.reporting import figures
from mergeability.reporting.evidence.comparison import (
    IMAGES_OF,
    SAMPLES,
    UNLABELLED,
    EvidenceSummary,
    summarise,
)
from mergeability.reporting.page import Section, bullet_list, figure_block, page, paragraphs, table
from mergeability.reporting.summaries import TARGET_NAMES

_INTERVALS = {
    "r": "r", "r_low": "95 % over tasks, from", "r_high": "to", "seed_low": "over seeds, from", "seed_high": "to",
    "seeds": "seeds",
}  # fmt: skip
_BOTH_NEW = {
    "cost": "cost", "rests_on": "rests on", **_INTERVALS, "bias": "bias", "mae": "error", "half_width": "± interval",
    "coverage": "coverage", "regret": "regret of choice", "fixed_regret": "of the best method", "n_pairs": "pairs",
}  # fmt: skip
_KNOWN_PARTNER = {"rests_on": "rests on", **_INTERVALS, "bias": "bias", "mae": "error", "n_pairs": "pairs"}
_LEAD = ("probe", "functional", "ridge")


def write_summary(folder: Path, run_folders: Sequence[Path], beside: Sequence[Path] = ()) -> Path:
    """Compare kinds of evidence over finished jobs, write the tables and the page, and return the path of the page."""
    return save(summarise(folder, run_folders, beside), folder)


def save(found: EvidenceSummary, folder: Path) -> Path:
    """Write `evidence.html`, `evidence.csv` and `evidence_images.csv`; return the page's path."""
    write_text(folder / "evidence.csv", csv_text(found.kinds))
    write_text(folder / "evidence_images.csv", csv_text(found.images))
    path = folder / "evidence.html"
    write_text(path, evidence_page(found))
    return path


def evidence_page(found: EvidenceSummary) -> str:
    """Return the HTML page, with sections on pairs of two new tasks, pairs with one new task, and numbers of images."""
    sections = [
        _section(
            found,
            "both-new",
            BOTH_NEW,
            "Which kind of evidence predicts the outcomes of pairs of two new tasks?",
            _BOTH_NEW,
        ),
        _section(
            found,
            "known-partner",
            KNOWN_PARTNER,
            "Which kind of evidence predicts the outcomes of pairs with one new task (leave one task out)?",
            _KNOWN_PARTNER,
        ),
        _images(found),
    ]
    return page("What evidence predicts merges", bullet_list(headline(found), lead=True), sections)


def headline(found: EvidenceSummary) -> list[str]:
    """Return one sentence per group on the main kinds of evidence, followed by `found.missing` and `found.facts`."""
    rows = _shown(found, BOTH_NEW)
    rows = rows[rows["target"] == rows["target"].iloc[0]]
    sentences = []
    for group, own in rows.groupby("group", sort=False):
        by = own.set_index("predictor")
        values = [
            f"{by.loc[name, 'r']:.2f} ({by.loc[name, 'r_low']:.2f} to {by.loc[name, 'r_high']:.2f}) for {name}"
            for name in _LEAD
            if name in by.index
        ]
        sentences.append(
            f"Pairs of two new tasks, {group}: r, after each fold's training mean is subtracted, is "
            f"{', '.join(values)}."
        )
    return [*sentences, *found.missing, *found.facts]


def _shown(found: EvidenceSummary, situation: str) -> pd.DataFrame:
    """Keep the rows with the numbers of images that the page shows."""
    kinds = found.kinds
    same = (kinds[UNLABELLED] == found.shown[0]) & (kinds[SAMPLES] == found.shown[1])
    return kinds[same & (kinds["situation"] == situation)]


def _section(
    found: EvidenceSummary, anchor: str, situation: str, heading: str, columns: dict[str, str]
) -> Section:
    unlabelled, samples = found.shown
    measure = (
        "r is the correlation between predictions and outcomes after each fold's training mean is subtracted from both"
        if situation == BOTH_NEW
        else "r is the mean correlation over folds"
    )
    body = paragraphs(
        f"Functional evidence and probes use {unlabelled} unlabelled images of each task, and metrics use {samples}"
        f" calibration images; evidence.csv has the results for other numbers of images. {measure}. Values are averaged"
        " over methods and seeds. Intervals over tasks come from leaving out each task in turn; intervals over seeds"
        " come from Student's t. The bias is predicted − measured; the predictor `probe` is not fitted, so its bias is"
        " the bias of the probe's own estimates.",
        note=True,
    )
    rows = _shown(found, situation)
    for target in (name for name in TARGETS if name in set(rows["target"])):
        for group, own in rows[rows["target"] == target].groupby("group", sort=False):
            body += paragraphs(f"{TARGET_NAMES[target].capitalize()}, {group}:", note=True)
            body += table(
                own.set_index("predictor"),
                columns,
                "predictor",
                ["cost", "rests_on"],
                ["mean"],
                caption=f"{heading} {TARGET_NAMES[target]}, {group}",
            )
    return Section(anchor, heading, body)


def _images(found: EvidenceSummary) -> Section:
    targets = [target for target in TARGETS if target in set(found.images["target"])]
    groups = list(dict.fromkeys(found.images["group"]))
    rows = found.images[found.images["situation"] == BOTH_NEW]
    plots = {
        f"{target}|{group}": [
            figures.r_by_images(rows[(rows["target"] == target) & (rows["group"] == group)], IMAGES_OF)
        ]
        for target in targets
        for group in groups
    }
    body = paragraphs(
        "The figure shows r, for pairs of two new tasks, against the number of images of each task: unlabelled images"
        " for functional evidence and probes, calibration images for metrics. r is the correlation between predictions"
        " and outcomes after each fold's training mean is subtracted from both. Bars are 95 % intervals over tasks.",
        note=True,
    )
    body += figure_block(
        "images",
        plots,
        [
            ("outcome", [(target, TARGET_NAMES[target]) for target in targets]),
            ("group", [(group, group) for group in groups]),
        ],
        described="Correlation r by number of images",
    )
    return Section("images", "How many images are needed?", body)
