"""Tiny datasets with the real ones' columns, types, splits and class lists, written by the library that reads them."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

CONF = Path(__file__).parents[2] / "conf"
CORRUPTIONS = (
    "contrast",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "spatter",
)


@dataclass(frozen=True)
class Schema:
    """What a real dataset looks like.

    labels: the label feature's names; "bool" or "int" where there is no such feature. splits: name → rows.
    ours: the names of the splits that make train, test and validation.
    """

    labels: list[str] | str
    splits: dict[str, int]
    classes: int
    mode: str = "RGB"
    image: str = "image"
    label: str = "label"
    extra: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    sizes: tuple[tuple[int, int], ...] = ((20, 14), (14, 20), (16, 16))
    test: str = "test"
    train: tuple[str, ...] = ("train",)
    validation: str | None = None


def names_of(task: str) -> list[str]:
    return yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text())["class_names"]


def underscored(task: str) -> list[str]:
    return [name.replace(" ", "_") for name in names_of(task)]


def digits(count: int = 10) -> list[str]:
    return [str(number) for number in range(count)]


def small(**more: int) -> dict[str, int]:
    return {"train": 30, "test": 9, **more}


def corrupted() -> dict[str, int]:
    return small(**dict.fromkeys(CORRUPTIONS, 9))


def flowers() -> list[str]:
    """Spell three flowers as the dataset does: its list is older than CLIP's."""
    theirs = {15: "globe-flower", 59: "pink-yellow dahlia?", 92: "ball moss"}
    return [theirs.get(label, name) for label, name in enumerate(names_of("flowers102"))]


GREY = {"mode": "L", "sizes": ((28, 28),)}
EUROSAT = [
    "annual crop land",
    "forest",
    "brushland or shrubland",
    "highway or road",
    "industrial buildings or commercial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings or homes or apartments",
    "river",
    "lake or sea",
]
CLOTHES = [
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

SCHEMAS = {
    "sun397": Schema([f"{n[0]}/{n}" for n in underscored("sun397")], small(), 397),
    "cars": Schema(names_of("cars"), corrupted(), 196),
    "resisc45": Schema(names_of("resisc45"), corrupted(), 45, sizes=((16, 16),)),
    "eurosat": Schema(EUROSAT, corrupted(), 10, sizes=((16, 16),)),
    "svhn": Schema(digits(), small(extra=12), 10, config="cropped_digits", sizes=((32, 32),)),
    "gtsrb": Schema(names_of("gtsrb"), corrupted(), 43),
    "mnist": Schema(digits(), small(), 10, **GREY),
    "dtd": Schema(names_of("dtd"), small(), 47),
    "flowers102": Schema(flowers(), small(validation=10), 102, train=("train", "validation")),
    "pcam": Schema("bool", small(valid=8), 2, sizes=((24, 24),), validation="valid"),
    "fer2013": Schema(
        "int",
        small(),
        7,
        image="jpg",
        label="cls",
        extra={"__key__": "s0000000", "__url__": "train/0.tar"},
        **GREY,
    ),
    "oxford_iiit_pet": Schema(
        underscored("oxford_iiit_pet"), small(), 37, extra={"image_id": "Abyssinian_201", "label_cat_dog": 0}
    ),
    "stl10": Schema(STL10, small(), 10, sizes=((24, 24),)),
    "cifar100": Schema(
        underscored("cifar100"), small(), 100, label="fine_label", image="img", extra={"coarse_label": 3}
    ),
    "cifar10": Schema(CIFAR10, small(), 10, image="img", sizes=((32, 32),)),
    "food101": Schema(underscored("food101"), {"train": 30, "validation": 9}, 101, test="validation"),
    "fashion_mnist": Schema(CLOTHES, small(), 10, **GREY),
    "emnist": Schema(digits(), small(), 10, config="emnist-mnist", **GREY),
    "kmnist": Schema(list("おきすつなはまやれを"), small(), 10, config="kmnist", **GREY),
    "rendered_sst2": Schema(
        ["negative", "positive"], small(validation=7), 2, mode="RGBA", validation="validation"
    ),
}


def pixels(task: str, split: str, row: int) -> np.ndarray:
    """Draw one image: different for every row of every split."""
    schema = SCHEMAS[task]
    height, width = schema.sizes[row % len(schema.sizes)]
    shape = (height, width) if schema.mode == "L" else (height, width, len(schema.mode))
    generator = np.random.default_rng([row, *split.encode()])
    return generator.integers(0, 256, shape, dtype=np.uint8)


def label_of(task: str, row: int) -> int:
    """Label one row: the first and the last class are there."""
    count = SCHEMAS[task].classes
    return (row * 7 + count - 1) % count


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, kind)
    return written.getvalue()


def features(schema: Schema) -> Any:
    import datasets

    plain = {"bool": datasets.Value("bool"), "int": datasets.Value("int64")}
    named = isinstance(schema.labels, list)
    label = datasets.ClassLabel(names=schema.labels) if named else plain[schema.labels]
    columns = {schema.image: datasets.Image(), schema.label: label}
    for name, value in schema.extra.items():
        columns[name] = datasets.Value("string" if isinstance(value, str) else "int64")
    return datasets.Features(columns)


def dataset(task: str, schema: Schema | None = None, **damaged: dict[int, bytes | None]) -> Any:
    """Write a whole dataset; `damaged` replaces the bytes of some rows of a split."""
    import datasets

    schema = schema or SCHEMAS[task]
    tables = {}
    for split, count in schema.splits.items():
        images: list[bytes | None] = [encoded(pixels(task, split, row)) for row in range(count)]
        for row, data in damaged.get(split, {}).items():
            images[row] = data
        labels: list[Any] = [label_of(task, row) for row in range(count)]
        columns = {
            # A row without an image is written as the library does.
            schema.image: [None if data is None else {"bytes": data, "path": None} for data in images],
            schema.label: [bool(label) for label in labels] if schema.labels == "bool" else labels,
            **{name: [value] * count for name, value in schema.extra.items()},
        }
        tables[split] = datasets.Dataset.from_dict(columns, features=features(schema))
    return datasets.DatasetDict(tables)


def write_repository(tables: Any, folder: Path, config: str | None) -> Path:
    """Write Parquet files as a repository of the Hub has them."""
    inside = folder / (config or "data")
    inside.mkdir(parents=True)
    for split, table in tables.items():
        table.to_parquet(inside / f"{split}-00000-of-00001.parquet")
    files = [{"split": split, "path": f"{inside.name}/{split}-*"} for split in tables]
    card = {"configs": [{"config_name": config or "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder


def write_tree(tables: Any, schema: Schema, folder: Path, spell: Callable[[str], str]) -> Path:
    """Write files of images, one folder a class."""
    for split, table in tables.items():
        names = table.features[schema.label].names
        for row, example in enumerate(table):
            place = folder / split / spell(names[example[schema.label]])
            place.mkdir(parents=True, exist_ok=True)
            example[schema.image].save(place / f"{row:03}.png")
    return folder


def configured(task: str, *overrides: str) -> Any:
    """Make a task as the command line does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"task={task}", *overrides])
    return instantiate(cfg.task, _convert_="all")


@pytest.fixture
def real(tmp_path, monkeypatch) -> Any:
    """Hand the helpers above to the tests, which cannot import them; the library caches in a folder of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    helpers = (Schema, pixels, label_of, encoded, dataset, write_repository, write_tree, configured, names_of)
    return SimpleNamespace(schemas=SCHEMAS, **{helper.__name__: helper for helper in helpers})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `real_task` for each of the twenty."""
    if "real_task" in metafunc.fixturenames:
        metafunc.parametrize("real_task", list(SCHEMAS))
