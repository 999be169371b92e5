"""Compare models fine-tuned from the same base by metrics that require no data."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.context import Run
from mergeability.metrics.catalogue import Metric, metrics_called
from mergeability.pipeline.checkpoints import compared
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import CheckpointSuite
from mergeability.progress import Progress, no_progress
from mergeability.provenance import provenance
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.verbs.defaults import profile
from mergeability.verbs.sources import Model, Models, task_vectors
from mergeability.verbs.standing_out import standing_out

PAIR = ["task_a", "task_b"]
_MOST_COLUMNS = 6


@dataclass(frozen=True, repr=False)
class Comparison:
    """Hold the metrics of every pair of models, and messages about unusual values.

    Attributes:
        analysis: the analysis, from which the report is written.
        task_vectors: the models.
        stands_out: sentences about unusual models or pairs.

    Examples:
        >>> from mergeability import compare
        >>> from mergeability.examples import tiny_files
        >>> base, models = tiny_files()
        >>> compare(base, models, metrics=["weight_space_angle"]).table.round(1)
                       weight_space_angle
        task_a task_b
        cars   dtd                   31.9
               svhn                  98.1
        dtd    svhn                 113.6
    """

    analysis: Analysis
    task_vectors: TaskVectors
    stands_out: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The metrics, with one row per pair, indexed by (task_a, task_b), and one column per metric."""
        return self.analysis.pairs.set_index(PAIR)[self.analysis.metrics]

    @property
    def left_out(self) -> list[str]:
        """Messages about unused tensors and missing metric values."""
        return list(self.analysis.missing)

    def save(self, folder: str | Path) -> Path:
        """Write the report, tables and `run.json` to a folder.

        Args:
            folder: created if necessary.

        Returns:
            The path of the report.
        """
        from mergeability.reporting.result_files import save

        return save(self.analysis, Path(folder))

    def to_json(self) -> str:
        """Convert the comparison to JSON; missing metric values are null."""
        rows = [
            {name: None if _is_nan(value) else value for name, value in row.items()}
            for row in self.analysis.pairs.to_dict("records")
        ]
        left_out = [asdict(one) for one in self.task_vectors.left_out]
        record = {
            "models": list(self.task_vectors.tasks),
            "metrics": self.analysis.metrics,
            "pairs": rows,
            "stands_out": list(self.stands_out),
            "left_out": left_out,
            "notes": self.left_out,
        }
        return json.dumps(record, indent=1, default=str)

    def __repr__(self) -> str:
        # Transposed, because eighteen metric columns are wider than a terminal.
        few = len(self.table) <= _MOST_COLUMNS
        table = self.table.T.to_string(float_format="{:.4g}".format) if few else repr(self.table)
        return "\n".join([*self.stands_out, table])

    def _repr_html_(self) -> str:
        """Show the table and unusual findings in a notebook."""
        from html import escape

        remarks = "".join(f"<li>{escape(one)}</li>" for one in self.stands_out)
        return f"{self.table.T.to_html(float_format='{:.4g}'.format)}<ul>{remarks}</ul>"


def compare(
    base: Model,
    models: Models,
    *,
    metrics: Iterable[str] | Mapping[str, Metric] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    towers: str | None = None,
    store: str | Path | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Compute, without data, metrics of every pair of models that were fine-tuned from the same base.

    Args:
        base: a path, an id on the Hugging Face hub, a state dict, or a module.
        models: name → model, each given in the same way or as the folder of a LoRA adapter; or a list of paths and ids.
        metrics: names of metrics, or name → function; by default the 18 metrics of weight space.
        include: regular expressions; only tensors whose names contain a match are used.
        exclude: regular expressions; tensors whose names contain a match are not used.
        towers: "both" to compare the text tower of a CLIP as well.
        store: folder in which computed values are kept for the next call; in memory when None.
        progress: wraps long loops: (items, description, total) → the items.

    Returns:
        The comparison.

    Raises:
        UserError: there are fewer than two models, a model cannot be read or has another base, or a metric is unknown.

    Examples:
        >>> import torch
        >>> from mergeability import compare
        >>> base = {"weight": torch.full((2, 2), 10.0)}
        >>> models = {
        ...     "a": {"weight": base["weight"] + torch.tensor([[1.0, 0.0], [0.0, 0.0]])},
        ...     "b": {"weight": base["weight"] + torch.tensor([[1.0, 1.0], [0.0, 0.0]])},
        ... }
        >>> found = compare(base, models, metrics=["task_vector_cosine_similarity"])
        >>> found.table.round(3)
                       task_vector_cosine_similarity
        task_a task_b
        a      b                               0.707
    """
    kept = Store(None if store is None else str(store))
    vectors = task_vectors(base, models, kept, include=include, exclude=exclude, towers=towers)
    chosen = weight_space() if metrics is None else metrics
    if not isinstance(chosen, Mapping):
        chosen = metrics_called(chosen)
    sources = {name: name for name in vectors.tasks}
    request = Request(
        CheckpointSuite("checkpoints", "base", sources), chosen, profile=profile(), device="cpu"
    )
    run = Run(kept, progress, "cpu", request.profile.memory_budget)
    found = compared(vectors, request, run)
    record = {**found.run, "seconds": run.clock.seconds, **provenance()}
    return Comparison(
        Analysis(**{**vars(found), "run": record}), vectors, tuple(standing_out(vectors, found.pairs))
    )


def weight_space() -> dict[str, Metric]:
    """Return the default metrics: the published metrics that require no data.

    Examples:
        >>> from mergeability.verbs.comparing import weight_space
        >>> len(weight_space())
        18
    """
    from mergeability.metrics.catalogue import WEIGHT_SPACE

    return dict(WEIGHT_SPACE)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
