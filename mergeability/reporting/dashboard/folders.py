"""Find analyses, trained models and unfinished runs in folders and their subfolders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeability.errors import UserError

_STORE = "store.json"
_ANALYSIS, _PAIRS, _LOG = "run.json", "pairs.csv", "analyze.log"
_CARD, _TRAINING_STATE = "card.json", "unfinished"
# W&B keeps copies of run folders there, as artifacts.
_COPIES = "wandb"


@dataclass
class Found:
    """Hold the paths of the runs that were found, in alphabetical order.

    Attributes:
        analyses: folders with a `run.json`.
        cards: files that describe a checkpoint.
        unfinished: folders of analyses and training runs that have no result, or the remains of a failed run.
        unreadable: folders that could not be listed.
    """

    analyses: list[Path] = field(default_factory=list)
    cards: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def find(folders: Sequence[Path]) -> Found:
    """Find runs in folders and their subfolders; list each run once, even if its folder is given more than once.

    The store, hidden folders, `wandb/` and links to folders are not searched.

    Args:
        folders: where to start.

    Returns:
        The paths.

    Raises:
        UserError: one of the folders does not exist.
    """
    found, seen = Found(), set[Path]()
    for start in folders:
        if not start.is_dir():
            raise UserError(
                f"There is no folder {start}. Give a folder that contains runs, such as outputs/."
            )
        for place, inner, files in os.walk(
            start, onerror=lambda error: found.unreadable.append(Path(str(error.filename)))
        ):
            folder, names = Path(place), set(files)
            real = folder.resolve()
            if real in seen or _STORE in names:
                inner.clear()
                continue
            seen.add(real)
            _classify(folder, names, set(inner), found)
            inner[:] = sorted(one for one in inner if not one.startswith(".") and one != _COPIES)
    for paths in (found.analyses, found.cards, found.unfinished, found.unreadable):
        paths.sort()
    return found


def _classify(folder: Path, files: set[str], inner: set[str], found: Found) -> None:
    if folder.name.endswith(".unfinished") and files & {_ANALYSIS, _LOG}:
        found.unfinished.append(folder)
    elif _ANALYSIS in files:
        found.analyses.append(folder)
    elif _LOG in files or (_TRAINING_STATE in inner and _CARD not in files):
        found.unfinished.append(folder)
    if _CARD in files:
        found.cards.append(folder / _CARD)
