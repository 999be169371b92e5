"""Keep the merges of a run: one folder a method and set of models, with weights and a card."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mergeability.evaluation.merge import Merge, describe
from mergeability.files import digest
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
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints
from mergeability.weights.base_folder import is_transformers


@dataclass(frozen=True)
class MergeWriter:
    """Write each merge it is given to `<folder>/<method>/<a>+<b>/`; what is there already is left as it is.

    Attributes:
        folder: of all merges.
        task_vectors: the models that are merged.
        export: "hf" for Hugging Face's names.
        model: what the weights belong to, where it is known.
        expected: how many merges will come.

    Raises:
        UserError: they will not fit on the disk, or cannot be written in the names asked for.
    """

    folder: Path
    task_vectors: TaskVectors
    export: str | None = None
    model: ClipModel | None = None
    expected: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        configuration = None if self.model is None else self.model.configuration
        check_export(self.task_vectors.base_checkpoint, self.export, configuration)
        check_space(self.folder, self.expected, encoder_bytes(self.task_vectors.base_checkpoint))

    def __call__(self, merge: Merge, column: str, alpha: float, alpha_from: str, rows: pd.DataFrame) -> None:
        """Write one merge.

        Args:
            merge: the merge.
            column: the method's name.
            alpha: the scale.
            alpha_from: how it was chosen.
            rows: its accuracies, one row a task; empty where nothing was evaluated.

        Raises:
            UserError: the disk is full, or the encoder cannot be written in the names asked for.
        """
        place = self.folder / column / merge_folder_name(merge.tasks)
        base = self.task_vectors.base_checkpoint
        layout = {"names": "transformers"} if is_transformers(base) else {}
        identity = digest({"weights": merge.weights(alpha), "export": self.export, **layout})
        card = checkpoints.read_card(place)
        if card is not None and card.get("merge_sha256") == identity:
            return
        described = merge_card(
            merge.task_vectors,
            describe(merge.method),
            alpha,
            task_accuracies(rows),
            alpha_from=alpha_from,
            facts={"merge_sha256": identity},
        )
        normalisation = {} if self.model is None else {"mean": self.model.mean, "std": self.model.std}
        save_merge(
            place,
            merge.state(alpha),
            described,
            export=self.export,
            configuration=None if self.model is None else self.model.configuration,
            base=base,
            **normalisation,
        )
