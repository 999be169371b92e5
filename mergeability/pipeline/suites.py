"""Define the inputs of an analysis: models from `train.py`, checkpoints that share a base, or a table of pairs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from mergeability.checks import Positive, alike_remarks, clean_name, clean_names
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.models.base import WEIGHTS
from mergeability.models.model import Model
from mergeability.pipeline.table_files import PairFile, read_pairs
from mergeability.store import Store
from mergeability.task_vectors.matching import Chosen
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints
from mergeability.weights.hub import open_checkpoint
from mergeability.weights.names import BOTH, VISUAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the tensors of checkpoints are split into the parameters that metrics and merges use.

    Attributes:
        split_qkv: treat the queries, keys and values of a fused attention as three parameters.
        matricize: "conv" treats convolution kernels as matrices, out × (in·height·width).

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.pipeline.suites import Layout
        >>> models = tiny_task_vectors(cars=[[[[1, 0], [0, 2]]]])
        >>> models.shapes, Layout(matricize="conv").of(models).shapes
        ({'weight': (1, 1, 2, 2)}, {'weight': (1, 4)})
    """

    split_qkv: bool = False
    matricize: str | None = None

    def of(self, vectors: TaskVectors) -> TaskVectors:
        """Split or reshape the tensors of task vectors, as this layout defines."""
        return vectors.with_layout(split_qkv=self.split_qkv, matricize=self.matricize)


# Every tensor is one parameter.
_AS_STORED = Layout()


@dataclass(frozen=True)
class TaskSuite:
    """A suite of tasks, and the folders of the models fine-tuned on these tasks.

    Attributes:
        name: name of the suite.
        tasks: name → task.
        model: the model whose encoder was fine-tuned.
        checkpoints: folder of all checkpoints of that model.
        trained: the subfolder with one folder per task: `<penalty>-<λ>/seed-<seed>`.
        train_command: the command that trains missing models, without `task=`.
        pixel_baseline: whether to fit logistic regression on raw pixels for comparison.
        tfidf_baseline: whether to fit logistic regression on the TF-IDF features of texts for comparison.
        warn_above: norm of a task vector, relative to the base's, above which a warning suggests that the base is
            wrong.
        refuse_above: relative norm above which an error is raised.

    Examples:
        >>> from mergeability.examples import tiny_clip, tiny_task
        >>> from mergeability.pipeline.suites import TaskSuite
        >>> options = {"checkpoints": "outputs/tiny", "trained": "none-0/seed-0", "train_command": "python train.py"}
        >>> suite = TaskSuite("mine", {"loops": tiny_task()}, tiny_clip(), **options)
        >>> suite.base.as_posix(), suite.folder("loops").as_posix()
        ('outputs/tiny/base/model.safetensors', 'outputs/tiny/none-0/seed-0/loops')
    """

    name: str
    tasks: Mapping[str, Task]
    model: Model
    checkpoints: str
    trained: str
    train_command: str
    pixel_baseline: bool = False
    tfidf_baseline: bool = False
    warn_above: Positive = 0.5
    refuse_above: Positive = 2.0

    def __post_init__(self) -> None:
        names = clean_names(self.tasks, "tasks")
        say_alike(names, "tasks")
        object.__setattr__(self, "tasks", {name: self.tasks[given] for name, given in names.items()})

    def folder(self, task: str) -> Path:
        """Return the folder of a task's model."""
        return Path(self.checkpoints) / self.trained / task

    @property
    def base(self) -> Path:
        """The base model's weights."""
        return Path(self.checkpoints) / "base" / WEIGHTS

    def load(self, store: Store, layout: Layout = _AS_STORED) -> TaskVectors:
        """Open the models' task vectors, with tensors split into parameters as `layout` describes.

        Raises:
            UserError: models are missing (the message contains the training command), or tasks changed since training.
        """
        found = {task: checkpoints.read_card(self.folder(task)) for task in self.tasks}
        cards = {task: card for task, card in found.items() if card is not None}
        missing = [task for task in self.tasks if task not in cards or not self._files_exist(task)]
        if missing:
            raise UserError(
                f"No checkpoint for {', '.join(repr(task) for task in missing)} with {self.trained}. "
                f"Run: {self.train_command} task={','.join(missing)}"
            )
        models = {task: self.folder(task) / "model.safetensors" for task in self.tasks}
        vectors = TaskVectors.load(
            models, base=self.base, store=store, warn_above=self.warn_above, refuse_above=self.refuse_above
        )
        for task, card in cards.items():
            head = checkpoints.file_hash(self.folder(task) / "head.safetensors")
            names = _class_names(card) or self.tasks[task].class_names
            differing = {
                "the base it was fine-tuned from": card.get("base_sha256") != vectors.base_hash,
                "model.safetensors": card.get("sha256") != vectors.hashes[task],
                "head.safetensors": card.get("head_sha256") != head,
                "the list of class names": _as_a_task_has(names) != list(self.tasks[task].class_names),
            }
            changed = [what for what, differs in differing.items() if differs]
            if changed:
                raise UserError(
                    f"After the model in {self.folder(task)} was trained, {' and '.join(changed)} changed. Train the "
                    f"model again. Run: {self.train_command} task={task} overwrite=true"
                )
        return layout.of(vectors)

    def _files_exist(self, task: str) -> bool:
        return all((self.folder(task) / f"{name}.safetensors").is_file() for name in ("model", "head"))

    def heads(self) -> dict[str, Tensor]:
        """Read the frozen heads stored next to the models."""
        return {name: checkpoints.load(self.folder(name) / "head.safetensors")["head"] for name in self.tasks}


def _class_names(card: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the class names recorded in a model's card; None if the card contains no class names."""
    settings = card.get("settings")
    task = settings.get("task") if isinstance(settings, Mapping) else None
    return task.get("class_names") if isinstance(task, Mapping) else None


@dataclass(frozen=True)
class CheckpointSuite:
    """A suite that consists of models fine-tuned from one base, and has no data.

    Attributes:
        name: name of the suite.
        base: the base's state dict: a file, a folder, or an id on the Hugging Face hub.
        models: name → a fine-tuned state dict, given the same way, or the folder of a LoRA adapter.
        include: regular expressions; only tensors whose names contain a match are used.
        exclude: regular expressions; tensors whose names contain a match are not used.
        towers: "both" to use the text tower of a CLIP as well as the visual one.
        warn_above: norm of a task vector, relative to the base's, above which a warning suggests that the base is
            wrong.
        refuse_above: relative norm above which an error is raised.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.pipeline.suites import CheckpointSuite
        >>> from mergeability.store import Store
        >>> models = tiny_task_vectors()
        >>> files = {task: str(models.model(task).path) for task in models.tasks}
        >>> CheckpointSuite("mine", str(models.base_checkpoint.path), files).load(Store()).tasks
        ('cars', 'dtd', 'svhn')
    """

    name: str
    base: str
    models: Mapping[str, str]
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    towers: Literal["visual", "both"] = VISUAL
    warn_above: Positive = 0.5
    refuse_above: Positive = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping) or not all(
            isinstance(path, str) for path in self.models.values()
        ):
            raise UserError(
                "Expected suite.models to map names to files: 'suite.models={a: a.safetensors, b: b.safetensors}'."
            )
        names = clean_names(self.models, "models")
        say_alike(names, "models")
        object.__setattr__(self, "models", {name: self.models[given] for name, given in names.items()})
        if self.towers not in (VISUAL, BOTH):
            raise UserError(f"Expected suite.towers to be {VISUAL} or {BOTH}, got {self.towers!r}.")
        # Constructed to validate the patterns before any file is opened.
        Chosen.of(self.include, self.exclude)

    def load(self, store: Store, layout: Layout = _AS_STORED) -> TaskVectors:
        """Open the task vectors, and split or reshape their tensors as `layout` defines.

        Raises:
            UserError: a model cannot be found, downloaded or read, or was made from another base.
        """
        vectors = TaskVectors.load(
            {
                str(name): open_checkpoint(source, store, self.base, self.towers)
                for name, source in self.models.items()
            },
            base=open_checkpoint(self.base, store, towers=self.towers),
            store=store,
            include=self.include,
            exclude=self.exclude,
            warn_above=self.warn_above,
            refuse_above=self.refuse_above,
        )
        return layout.of(vectors)


@dataclass(frozen=True)
class TableSuite:
    """A suite that consists of a table of pairs with metrics and outcomes.

    Attributes:
        name: name of the suite.
        table: a CSV, Parquet or xlsx file with `task_a`, `task_b`, metric and outcome columns.
        metrics: columns to use as metrics; those named by `metric=` when None.
        extra_metrics: additional columns to use as metrics.
        methods: merge methods whose outcomes are predicted; all in the table when None.
        rows: `per_method`, or `complete`: only pairs with an outcome for every one of these methods.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> from mergeability.pipeline.suites import TableSuite
        >>> pairs = pd.DataFrame({"task_a": ["cars"], "task_b": ["dtd"], "cosine": [0.1], "norm_acc_ties": [0.9]})
        >>> with TemporaryDirectory() as folder:
        ...     pairs.to_csv(f"{folder}/pairs.csv", index=False)
        ...     print(TableSuite("mine", f"{folder}/pairs.csv").read())
          task_a task_b  cosine  norm_acc_ties
        0   cars    dtd     0.1            0.9
    """

    name: str
    table: str
    metrics: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    rows: Literal["per_method", "complete"] = "per_method"
    extra_metrics: Sequence[str] | None = None

    def file(self) -> PairFile:
        """Read the table, and return it with messages about rows and values that were left out or converted.

        Raises:
            UserError: the file does not exist, or is not a table of pairs.
        """
        return read_pairs(self.table)

    def read(self) -> pd.DataFrame:
        """Read the table, and return only the data frame; the messages that `file` returns are dropped.

        Raises:
            UserError: as `file` does.
        """
        return self.file().frame


def say_alike(names: Iterable[str], what: str) -> None:
    """Log names that differ only in case or white space."""
    for sentence in alike_remarks(names, what):
        logger.warning("%s", sentence)


def _as_a_task_has(names: Sequence[Any]) -> list[str]:
    """Normalise the class names of a card, which contains them as typed."""
    return [clean_name(name, "a class name") for name in names]
