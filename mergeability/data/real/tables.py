"""Read the splits of a dataset as rows, with the Hugging Face library `datasets`."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int64

from mergeability.data.real.class_names import ClassNames
from mergeability.data.real.decoding import Encoded
from mergeability.data.real.layouts import Layout, several
from mergeability.data.real.trees import Rows, copy_folder, file_stamp
from mergeability.errors import UserError
from mergeability.files import read_object

if TYPE_CHECKING:
    import datasets

# Number of rows whose encoded images are in memory at a time.
_READ_AT_A_TIME = 64


class Tables(Protocol):
    """Define the interface of an opened dataset."""

    @property
    def columns(self) -> Mapping[str, Sequence[str]]:
        """The columns or class folders of each split; the keys are the names of the splits."""
        ...

    def rows(self, split: str) -> Rows:
        """Check the columns and classes of a split, and return the split."""
        ...


@dataclass(frozen=True)
class ArrowRows:
    """Hold a split that the `datasets` library reads."""

    labels: Int64[np.ndarray, "N"]
    stamp: str
    name: str
    images: "datasets.Dataset"
    column: str

    def read(self, chosen: Sequence[int]) -> Iterator[Encoded]:
        """Yield the encoded images of the given rows, or the paths of the images if the rows contain paths."""
        for start in range(0, len(chosen), _READ_AT_A_TIME):
            positions = [int(position) for position in chosen[start : start + _READ_AT_A_TIME]]
            try:
                images = self.images[positions][self.column]
            except (OSError, ValueError) as error:
                raise UserError(
                    f"Rows {positions[0]} to {positions[-1]} of {self.name} cannot be read ({_first_line(error)}). "
                    "Copy or download the dataset again."
                ) from error
            for position, image in zip(positions, images, strict=True):
                data = (image or {}).get("bytes")
                if data is None:
                    data = Path((image or {}).get("path") or "no file")
                yield Encoded(f"row {position} of {self.name}", int(self.labels[position]), data)


@dataclass(frozen=True)
class ArrowTables:
    """Hold a dataset that the `datasets` library opened from the Hub or from a local copy.

    Attributes:
        opened: split → dataset.
        layout: the columns and splits to read.
        classes: the task's.
        where: the id or the folder, for messages.
    """

    opened: Mapping[str, "datasets.Dataset"]
    layout: Layout
    classes: ClassNames
    where: str

    @property
    def columns(self) -> dict[str, list[str]]:
        """Return the columns of each split."""
        return {name: list(table.column_names) for name, table in self.opened.items()}

    def rows(self, split: str) -> ArrowRows:
        """Return one split.

        Raises:
            UserError: a split or column does not exist, the image column contains no images, or the classes differ.
        """
        table = self._table(split)
        image = self._column(table, self.layout.image, "image", split)
        label = self._column(table, self.layout.label, "label", split)
        return ArrowRows(
            labels=self._labels(table, label, split),
            # Include the library's fingerprint, because a table in memory has no files.
            stamp=f"{file_stamp([Path(file['filename']) for file in table.cache_files])}:{table._fingerprint}",
            name=f"split {split!r} of {self.where}",
            images=self._undecoded(table, image, split),
            column=image,
        )

    def _table(self, split: str) -> "datasets.Dataset":
        if split not in self.opened:
            raise UserError(
                f"Task {self.classes.task!r}: {self.where} does not contain the split {split!r}. It has: "
                f"{', '.join(self.opened) or 'none'}. Set dataset.train and dataset.test to existing splits."
            )
        return self.opened[split]

    def _column(self, table: "datasets.Dataset", names: str | Sequence[str], what: str, split: str) -> str:
        for name in several(names):
            if name in table.column_names:
                return name
        raise UserError(
            f"Task {self.classes.task!r}: expected the {what} column {' or '.join(map(repr, several(names)))} in "
            f"split {split!r} of {self.where}, which has the columns {', '.join(table.column_names)}. "
            f"Set dataset.{what} to the right column."
        )

    def _undecoded(self, table: "datasets.Dataset", column: str, split: str) -> "datasets.Dataset":
        import datasets

        feature: Any = table.features[column]
        if isinstance(feature, datasets.Image):
            return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        # In Parquet files without the library's metadata, images are plain records.
        if isinstance(feature, dict) and {"bytes", "path"} <= set(feature):
            return table.select_columns([column])
        raise UserError(
            f"Task {self.classes.task!r}: expected the column {column!r} in split {split!r} of {self.where}"
            f" to contain images, but it is {feature}. Set dataset.image to an image column."
        )

    def _labels(self, table: "datasets.Dataset", column: str, split: str) -> Int64[np.ndarray, "N"]:
        import datasets

        feature, where = table.features[column], f"split {split!r} of {self.where}"
        if isinstance(feature, datasets.ClassLabel):
            self.classes.check_order(feature.names, where)
        values = table.select_columns([column]).with_format("arrow")[:][column]
        missing = values.null_count
        if missing:
            raise UserError(f"Task {self.classes.task!r}: {missing} rows of {where} have no label.")
        found = values.to_numpy()
        if found.dtype.kind in "biu":
            return self._in_range(found.astype(np.int64), where)
        if found.dtype.kind == "O" and all(isinstance(value, str) for value in found):
            named = self.classes.labels(sorted(set(found)), where)
            return np.array([named[name] for name in found], dtype=np.int64)
        raise UserError(
            f"Task {self.classes.task!r}: expected labels that are whole numbers, true and false, or class names, "
            f"but the column {column!r} of {where} is {feature}. Set dataset.label to a label column."
        )

    def _in_range(self, labels: Int64[np.ndarray, "N"], where: str) -> Int64[np.ndarray, "N"]:
        wrong = labels[(labels < 0) | (labels >= len(self.classes.names))]
        if len(wrong):
            raise UserError(
                f"Task {self.classes.task!r}: expected labels in 0..{len(self.classes.names) - 1}, because "
                f"class_names lists {len(self.classes.names)} classes, but {len(wrong)} rows of {where} have other "
                f"labels, such as {int(wrong[0])}. Check dataset.label."
            )
        return labels


def open_hub(layout: Layout, classes: ClassNames) -> ArrowTables:
    """Open a dataset of the Hugging Face Hub; download it if necessary.

    Raises:
        UserError: the library or the dataset does not exist, there is no network, or the dataset requires running code.
    """
    assert layout.id is not None, "`ImageSource` refuses the Hub without an id"
    with _explained(layout, classes):
        opened = _datasets(classes.task).load_dataset(layout.id, layout.config, revision=layout.revision)
    return ArrowTables(_by_split(opened, layout.id, classes), layout, classes, layout.id)


def open_disk(path: Path, layout: Layout, classes: ClassNames) -> ArrowTables:
    """Open a copy written by `save_to_disk`, or a downloaded repository of Parquet or WebDataset files.

    Raises:
        UserError: the library is missing, or there is no such copy.
    """
    library, folder = _datasets(classes.task), copy_folder(path, classes.task)
    others = sorted(path.parent.name for path in folder.glob("*/dataset_dict.json"))
    if others:
        raise UserError(
            f"Task {classes.task!r}: {folder} contains copies of {', '.join(others[:5])}, but no dataset "
            f"named {classes.task}. Copy the missing dataset too, or point task.path to the folder that contains it."
        )
    for state in sorted(folder.glob("*/state.json")):
        # The library can write a split without rows, but fails to read it.
        if (read_object(state) or {}).get("_data_files") == []:
            raise UserError(
                f"Task {classes.task!r}: its {state.parent.name} split is empty in {folder}. Copy the dataset again."
            )
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            opened = library.load_from_disk(str(folder))
        else:
            opened = library.load_dataset(str(folder), layout.config)
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise UserError(
            f"Task {classes.task!r}: {folder} cannot be read as a dataset ({_first_line(error)}). Expected a"
            " folder written by save_to_disk, or Parquet files. For folders of image files, set"
            " task.source=folder."
        ) from error
    return ArrowTables(_by_split(opened, str(folder), classes), layout, classes, str(folder))


def _datasets(task: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Task {task!r} requires the `datasets` library, which is not installed. "
            "Run: uv pip install 'mergeability[data]'"
        ) from error
    if not sys.stderr.isatty():
        # Show the library's progress bars only in a terminal.
        datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _explained(layout: Layout, classes: ClassNames) -> Iterator[None]:
    library = _datasets(classes.task)
    elsewhere = (
        "point to a copy with task.source=disk task.path=…, or to a tree of images with task.source=folder"
    )
    try:
        yield
    except ConnectionError as error:
        configured = f", '{layout.config}'" if layout.config else ""
        raise UserError(
            f"Task {classes.task!r}: the Hugging Face Hub cannot be reached ({_first_line(error)}). On a machine "
            f"with network access, run: python -c \"import datasets; datasets.load_dataset('{layout.id}'{configured})"
            f".save_to_disk('{classes.task}')\"; then {elsewhere}."
        ) from error
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(
            f"Task {classes.task!r}: the dataset {layout.id} cannot be loaded ({_first_line(error)}). Check "
            f"dataset.id and dataset.config, or {elsewhere}."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _by_split(opened: Any, where: str, classes: ClassNames) -> Mapping[str, "datasets.Dataset"]:
    if not isinstance(opened, Mapping):
        raise UserError(
            f"Task {classes.task!r}: expected a dataset with a train and a test split, but {where} is "
            "a single split. Save the whole dataset: load_dataset(…).save_to_disk(…)."
        )
    return opened
