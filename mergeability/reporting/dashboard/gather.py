"""Collect analyses and training runs in one set of tables, and list those that cannot be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.errors import UserError
from mergeability.files import read_object
from mergeability.progress import Progress, no_progress
from mergeability.reporting.dashboard.folders import find
from mergeability.reporting.dashboard.runs import Run, read_run

TRAININGS = [
    "folder", "task", "model", "penalty", "strength", "seed", "variant", "accuracy", "base_accuracy", "seconds",
    "peak_memory_gib", "finished_at",
]  # fmt: skip
FACTS = ("suite", "model", "penalty", "strength", "seed", "variant")


@dataclass(frozen=True)
class Gathered:
    """Hold the tables of the analyses and training runs that a dashboard shows.

    Attributes:
        runs: finished analyses, the newest first.
        repeated: folder → the methods whose merges a newer run evaluated as well, and "" if it measured the metrics.
        other: folder → the settings in which this run differs from others, as text; empty if it differs in none.
        trainings: one row per checkpoint: its task and settings, test accuracies in [0, 1], seconds, GiB.
        left_out: sentences, each about a file or folder that could not be used.
    """

    runs: tuple[Run, ...]
    repeated: dict[Path, frozenset[str]]
    other: dict[Path, str]
    trainings: pd.DataFrame
    left_out: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The table of analyses: one row per analysis, identified by `folder`, with its settings and properties."""
        rows = [
            {
                "folder": run.folder,
                **{name: run.facts[name] for name in FACTS},
                "other": self.other[run.folder],
                "pairs": len(run.pairs),
                "methods": list(run.methods),
                "finished_at": run.finished_at,
                "repeated": self.is_repeated(run),
            }
            for run in self.runs
        ]
        return pd.DataFrame(rows)

    def is_repeated(self, run: Run) -> bool:
        """Return whether newer runs contain all merges of this run or, for a run without merges, all its metrics."""
        return self.repeated[run.folder] >= set(run.methods or [""])

    @property
    def outcomes(self) -> pd.DataFrame:
        """The table of outcomes: one `value` per run, task pair, `method` and `target`, with the run's settings."""
        rows = [
            (run.folder, *(run.facts[name] for name in FACTS), a, b, method, target, value)
            for run in self.runs
            for method in run.methods
            for target in ("norm_acc", "acc")
            if f"{target}_{method}" in run.pairs
            for a, b, value in zip(
                run.pairs["task_a"], run.pairs["task_b"], run.pairs[f"{target}_{method}"], strict=True
            )
        ]
        return pd.DataFrame(rows, columns=["folder", *FACTS, "task_a", "task_b", "method", "target", "value"])


def gather(folders: Sequence[Path | str], progress: Progress = no_progress) -> Gathered:
    """Read all finished analyses and training runs in the given folders and their subfolders.

    Args:
        folders: where to start.
        progress: wraps the loops over files.

    Returns:
        The runs, and sentences on unusable files.

    Raises:
        UserError: a folder does not exist, or contains neither a finished analysis nor a trained model.
    """
    found = find([Path(folder) for folder in folders])
    left_out = [f"{folder} did not finish." for folder in found.unfinished]
    left_out += [f"{folder} cannot be listed." for folder in found.unreadable]
    runs, cards = [], []
    for folder in progress(found.analyses, "reading analyses", len(found.analyses)):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            left_out.append(f"{folder} is left out: {error}")
    for path in progress(found.cards, "reading cards", len(found.cards)):
        try:
            cards.append(_training(path))
        except UserError as error:
            left_out.append(f"{path.parent} is left out: {error}")
    trainings = pd.DataFrame([card for card in cards if card is not None], columns=TRAININGS)
    if not runs and trainings.empty:
        raise UserError(
            f"No finished analysis or training run was found below {_listed(folders)}: expected a folder that"
            " contains run.json and pairs.csv, or a folder that contains a trained model and card.json."
            f"{_first(left_out)} Run analyze.py or train.py first, or specify another folder."
        )
    # By time, and by path where that is unknown; a stable sort keeps equal times in the order of paths.
    runs.sort(key=lambda run: run.finished_at, reverse=True)
    newest: set[str] = set()
    repeated = {}
    for run in runs:
        repeated[run.folder] = frozenset(
            name for name, identity in run.identities.items() if identity in newest
        )
        newest.update(run.identities.values())
    return Gathered(tuple(runs), repeated, _other(runs), trainings, tuple(left_out))


def _other(runs: Sequence[Run]) -> dict[Path, str]:
    """Write for each run the settings that not all runs share; a method that a run did not use is no difference."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    # Options of the evidence change metrics, not outcomes; both are shown.
    varied = [name for name, different in values.items() if len(different) > 1]
    return {
        run.folder: ", ".join(f"{name}={run.settings[name]}" for name in varied if name in run.settings)
        for run in runs
    }


def _training(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint's card; return None if it describes no training run, like the card of a base model.

    Raises:
        UserError: it is damaged.
    """
    card = read_object(path) or {}
    settings = card.get("settings")
    reg = settings.get("reg") if isinstance(settings, dict) else None
    if "task" not in card or not isinstance(reg, dict):
        return None
    strength = _number(reg.get("lambda"))
    seed_folder, penalty_folder = path.parent.parent, path.parent.parent.parent
    # As in <model>/<penalty>-<λ>[+<variant>]/seed-<n>/<task>.
    variant = penalty_folder.name.partition("+")[2] if seed_folder.name.startswith("seed-") else ""
    values = (
        path.parent, str(card["task"]), str(card.get("model")), "none" if strength == 0 else str(reg.get("name")),
        strength, _number(card.get("seed")), variant or None, _of_test(card.get("accuracy")),
        _of_test(card.get("base_accuracy")), _number(card.get("seconds")), _number(card.get("peak_memory_gib")),
        str(card.get("finished_at") or ""),
    )  # fmt: skip
    return dict(zip(TRAININGS, values, strict=True))


def _of_test(value: Any) -> float | None:
    return _number(value.get("test") if isinstance(value, dict) else value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _listed(folders: Iterable[Path | str]) -> str:
    return ", ".join(map(str, folders))


def _first(sentences: Sequence[str]) -> str:
    """Repeat the first of the sentences, and count the others."""
    if not sentences:
        return ""
    more = f" ({len(sentences) - 1} more)" if len(sentences) > 1 else ""
    return f" {sentences[0]}{more}"
