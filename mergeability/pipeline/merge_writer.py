"""Write the weights and the card of every merge of a run; each method and set of models has its own folder."""

import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergeability.checks import check_path_part
from mergeability.evaluation.merge import Merge, describe
from mergeability.files import digest
from mergeability.merging.rounding import Rounding
from mergeability.models.clip import ClipModel
from mergeability.pipeline.saving import (
    check_export,
    check_space,
    encoder_bytes,
    merge_card,
    merge_folder_name,
    save_merge,
    task_accuracies,
)
from mergeability.progress import Progress, no_progress
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints
from mergeability.weights.base_folder import is_transformers

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

# Warn if a smaller share of the squared change survives rounding.
_NOTICEABLE = 0.95


def keep_only(folder: Path, wanted: Collection[tuple[str, str]]) -> None:
    """Delete merges of an earlier run that this run does not create again.

    Args:
        folder: folder of all merges.
        wanted: method and folder name of each planned merge.
    """
    for place in folder.glob("*/*"):
        if (place.parent.name, place.name) not in wanted and (place / "card.json").exists():
            shutil.rmtree(place)
    for method in folder.glob("*"):
        if method.is_dir() and not any(method.iterdir()):
            method.rmdir()


@dataclass(frozen=True)
class MergeWriter:
    """Write each merge to `<folder>/<method>/<a>+<b>/` unless an identical merge exists there.

    Attributes:
        folder: folder of all merges.
        task_vectors: the models that are merged.
        export: "hf" for Hugging Face's names.
        dtype: dtype of all floating-point tensors that are written; None for the base's own.
        model: the architecture of the weights, if known.
        expected: number of planned merges.
        progress: wraps the loop over the tensors of a merge.

    Raises:
        UserError: they do not fit on the disk, or cannot be written under the requested names.
    """

    folder: Path
    task_vectors: TaskVectors
    export: str | None = None
    dtype: torch.dtype | None = None
    model: ClipModel | None = None
    expected: int = field(default=1, kw_only=True)
    progress: Progress = field(default=no_progress, kw_only=True)

    def __post_init__(self) -> None:
        for task in self.task_vectors.tasks:
            check_path_part("name of a model", task)
        configuration = None if self.model is None else self.model.configuration
        check_export(self.task_vectors.base_checkpoint, self.export, configuration)
        size = encoder_bytes(self.task_vectors.base_checkpoint, self.dtype)
        check_space(self.folder, self.expected, size)

    def __call__(
        self, merge: Merge, column: str, alpha: float, alpha_from: str, rows: "pd.DataFrame | None"
    ) -> None:
        """Write one merge.

        Args:
            merge: the merge.
            column: the method's name.
            alpha: the scale.
            alpha_from: how it was chosen.
            rows: its accuracies, one row per task; None if nothing was evaluated.

        Raises:
            UserError: the disk is full, or the encoder cannot be written in the names asked for.
        """
        self.write(
            self.folder / column / merge_folder_name(merge.tasks), merge, column, alpha, alpha_from, rows
        )

    def write(
        self,
        place: Path,
        merge: Merge,
        column: str,
        alpha: float,
        alpha_from: str,
        rows: "pd.DataFrame | None",
    ) -> None:
        """Write one merge into a given folder; other arguments are as for `__call__`."""
        base = self.task_vectors.base_checkpoint
        layout = {"names": "transformers"} if is_transformers(base) else {}
        written = {} if self.dtype is None else {"dtype": str(self.dtype)}
        identity = digest({"weights": merge.weights(alpha), "export": self.export, **layout, **written})
        earlier = checkpoints.read_card(place)
        if earlier is not None and earlier.get("merge_sha256") == identity:
            return
        rounding = Rounding()
        state = merge.lazy_state(alpha, dtype=self.dtype, rounding=rounding)

        # Rounding is known once all weights are computed, which they are while they are written.
        def card() -> dict[str, Any]:
            if rounding.change and rounding.survives < _NOTICEABLE:
                logger.warning(
                    "%s of %s: rounding to %s keeps only %.0f %% of the squared change of the weights; after"
                    " rounding, %d of %d changed values equal the base's values. Set dtype=float32 to keep all"
                    " changes.",
                    *(column, " + ".join(merge.tasks), self._format(), 100 * max(rounding.survives, 0)),
                    *(rounding.unmoved, rounding.moved),
                )
            return merge_card(
                merge.task_vectors,
                describe(merge.method),
                alpha,
                {} if rows is None else task_accuracies(rows),
                alpha_from=alpha_from,
                facts={"merge_sha256": identity, "dtype": self._format(), **_survival(rounding)},
            )

        normalisation = {} if self.model is None else {"mean": self.model.mean, "std": self.model.std}
        save_merge(
            place,
            state,
            card,
            export=self.export,
            configuration=None if self.model is None else self.model.configuration,
            base=base,
            progress=self.progress,
            **normalisation,
        )

    def _format(self) -> str:
        if self.dtype is not None:
            return str(self.dtype).removeprefix("torch.")
        used = {str(one).removeprefix("torch.") for one in self.task_vectors.base_checkpoint.dtypes.values()}
        return ", ".join(sorted(used))


def _survival(rounding: Rounding) -> dict[str, Any]:
    """Describe the rounding error of a merge for the card of the merge; return "" if nothing was rounded."""
    if not rounding.moved:
        return {}
    return {
        "rounding": {
            "squared_change_that_survives": rounding.survives,
            "changed_values": rounding.moved,
            "of_these_equal_to_the_base_again": rounding.unmoved,
        }
    }
