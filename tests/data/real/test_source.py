"""Every one of the twenty tasks reads a dataset of its real shape: columns, types, classes, splits, image modes."""

import numpy as np
import pytest
import torch
from PIL import Image

from mergeability.errors import UserError

SIZE = 12


def resize(images: torch.Tensor) -> torch.Tensor:
    """Stand in for the model's: NumPy does the same in one expression."""
    return images[..., :SIZE, :SIZE]


def prepared(task, split, root=None):
    from mergeability.data.image_cache import prepared
    from mergeability.store import Store

    return prepared(task, split, resize, SIZE, Store(root))


def as_rgb(array: np.ndarray, transpose: bool = False) -> np.ndarray:
    rgb = np.repeat(array[..., None], 3, 2) if array.ndim == 2 else array[..., :3]
    return (rgb.swapaxes(0, 1) if transpose else rgb).transpose(2, 0, 1)


def expected(real, name: str, splits, transpose=False) -> dict[bytes, int]:
    """Say which images, cut to the size, have which label."""
    found = {}
    for split in splits:
        for row in range(real.schemas[name].splits[split]):
            array = as_rgb(real.pixels(name, split, row), transpose)[:, :SIZE, :SIZE]
            found[array.tobytes()] = real.label_of(name, row)
    return found


def as_mapping(images) -> dict[bytes, int]:
    return {
        image.numpy().tobytes(): int(label) for image, label in zip(images.images, images.labels, strict=True)
    }


def check(real, name: str, task, root) -> None:
    schema = real.schemas[name]
    transpose = name == "emnist"
    splits = {split: prepared(task, split, root) for split in ("train", "validation", "test")}
    assert as_mapping(splits["test"]) == expected(real, name, [schema.test], transpose)
    train, validation = as_mapping(splits["train"]), as_mapping(splits["validation"])
    learned = expected(real, name, schema.train, transpose)
    if schema.validation is None:
        assert train | validation == learned
        assert not train.keys() & validation.keys()
        assert len(validation) == round(len(learned) / 10)
    else:
        assert train == learned
        assert validation == expected(real, name, [schema.validation], transpose)


def test_there_are_twenty(real):
    assert len(real.schemas) == 20


def test_a_copy_on_disk_is_read_as_the_task_says(real_task, real, tmp_path):
    real.dataset(real_task).save_to_disk(tmp_path / "copy")
    task = real.configured(real_task, "task.source=disk", f"task.path={tmp_path / 'copy'}")
    assert len(task.class_names) == real.schemas[real_task].classes
    check(real, real_task, task, tmp_path / "store")


def test_a_repository_of_the_hub_is_read_as_the_task_says(real_task, real, tmp_path):
    config = real.schemas[real_task].config
    folder = real.write_repository(real.dataset(real_task), tmp_path / "repository", config)
    task = real.configured(real_task, f"task.dataset.id={folder}")
    assert task.source.kind == "hub"
    check(real, real_task, task, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bars_are_shown_in_a_terminal_only(real, tmp_path, monkeypatch, terminal):
    import datasets

    real.dataset("mnist").save_to_disk(tmp_path / "copy")
    hidden = []
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: hidden.append(True))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    real.configured("mnist", "task.source=disk", f"task.path={tmp_path / 'copy'}").source.labels("test")
    assert bool(hidden) is not terminal


def test_no_split_is_read_but_those_of_the_task(real, tmp_path):
    tables = real.dataset("cars")
    tables.save_to_disk(tmp_path / "copy")
    task = real.configured("cars", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    opened = []
    rows = type(task.source.tables).rows

    def watched(self, split):
        opened.append(split)
        return rows(self, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task.source.tables), "rows", watched)
        for split in ("train", "validation", "test"):
            prepared(task, split)
    assert sorted(opened) == ["test", "train"], "each once"


def test_the_order_of_test_images_is_the_datasets(real, tmp_path):
    real.dataset("gtsrb").save_to_disk(tmp_path / "copy")
    task = real.configured("gtsrb", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    assert prepared(task, "test").labels.tolist() == [real.label_of("gtsrb", row) for row in range(9)]


def test_a_web_dataset_is_read(real, tmp_path):
    """As fer2013 is published: numbered files in tar archives."""
    import io
    import tarfile

    for split, count in (("train", 30), ("test", 9)):
        (tmp_path / "repository" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "repository" / split / "0.tar", "w") as archive:
            for row in range(count):
                image = real.encoded(real.pixels("fer2013", split, row), "JPEG")
                for suffix, data in (("jpg", image), ("cls", str(real.label_of("fer2013", row)).encode())):
                    member = tarfile.TarInfo(f"s{row:07}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    task = real.configured("fer2013", f"task.dataset.id={tmp_path / 'repository'}")
    test = prepared(task, "test")
    assert test.labels.tolist() == [real.label_of("fer2013", row) for row in range(9)]
    with Image.open(io.BytesIO(real.encoded(real.pixels("fer2013", "test", 3), "JPEG"))) as image:
        np.testing.assert_array_equal(test.images[3], as_rgb(np.asarray(image))[:, :SIZE, :SIZE])


EUROSAT_FOLDERS = {
    "annual crop land": "AnnualCrop",
    "forest": "Forest",
    "brushland or shrubland": "HerbaceousVegetation",
    "highway or road": "Highway",
    "industrial buildings or commercial buildings": "Industrial",
    "pasture land": "Pasture",
    "permanent crop land": "PermanentCrop",
    "residential buildings or homes or apartments": "Residential",
    "river": "River",
    "lake or sea": "SeaLake",
}


@pytest.mark.parametrize(
    ("name", "spell"),
    [
        ("resisc45", lambda name: name.replace(" ", "_")),
        ("sun397", lambda name: name),
        ("eurosat", EUROSAT_FOLDERS.__getitem__),
        ("stl10", lambda name: name.upper()),
        ("food101", lambda name: name),
    ],
)
def test_a_tree_of_files_is_read_and_its_folders_are_classes_by_name(name, spell, real, tmp_path):
    schema = real.schemas[name]
    real.write_tree(real.dataset(name), schema, tmp_path / "tree", spell)
    task = real.configured(name, "task.source=folder", f"task.path={tmp_path / 'tree'}")
    check(real, name, task, tmp_path / "store")


def test_a_tree_may_call_its_splits_as_people_do(real, tmp_path):
    """Food-101's test images are in `validation` on the Hub, and in `test` in a tree that somebody made."""
    schema = real.schemas["food101"]
    real.write_tree(real.dataset("food101"), schema, tmp_path / "tree", lambda name: name)
    (tmp_path / "tree/validation").rename(tmp_path / "tree/test")
    task = real.configured("food101", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    check(real, "food101", task, None)


def test_numbered_folders_are_classes_by_number_not_by_text(real, tmp_path):
    """ "10" sorts before "2" as text."""
    tables = real.dataset("gtsrb")
    numbers = {name: f"{label:05}" for label, name in enumerate(real.names_of("gtsrb"))}
    real.write_tree(tables, real.schemas["gtsrb"], tmp_path / "tree", numbers.__getitem__)
    task = real.configured("gtsrb", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    check(real, "gtsrb", task, None)


def test_one_path_serves_many_tasks(real, tmp_path):
    for name in ("mnist", "svhn"):
        real.dataset(name).save_to_disk(tmp_path / "data" / name)
    for name in ("mnist", "svhn"):
        task = real.configured(name, "paths.source=disk", f"paths.data={tmp_path / 'data'}")
        assert as_mapping(prepared(task, "test")) == expected(real, name, ["test"])


def test_every_copy_of_a_dataset_has_the_same_validation_images(real, tmp_path):
    tables = real.dataset("resisc45")
    tables.save_to_disk(tmp_path / "disk")
    real.write_repository(tables, tmp_path / "repository", None)
    copies = [
        real.configured("resisc45", "task.source=disk", f"task.path={tmp_path / 'disk'}"),
        real.configured("resisc45", f"task.dataset.id={tmp_path / 'repository'}"),
    ]
    first, second = (as_mapping(prepared(task, "validation")) for task in copies)
    assert first == second
    other = real.configured(
        "resisc45", "task.source=disk", f"task.path={tmp_path / 'disk'}", "task.dataset.validation_seed=1"
    )
    assert as_mapping(prepared(other, "validation")) != first


def test_held_out_images_are_few_enough(real, tmp_path):
    real.dataset("pcam").save_to_disk(tmp_path / "copy")
    where = ("task.source=disk", f"task.path={tmp_path / 'copy'}")
    own = real.configured("pcam", *where, "task.dataset.validation_most=5")
    assert len(prepared(own, "validation")) == 5
    assert len(prepared(own, "train")) == 30
    drawn = real.configured(
        "pcam", *where, "task.dataset.validation=null", "task.dataset.validation_share=0.5"
    )
    assert len(prepared(drawn, "validation")) == 15
    assert len(prepared(drawn, "train")) == 15


def test_labels_may_be_names(real, tmp_path):
    import datasets

    def spelled(example):
        return {"label": f"{'negative' if example['label'] == 0 else 'Positive'}"}

    tables = real.dataset("rendered_sst2")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    tables.map(spelled, features=features).save_to_disk(tmp_path / "copy")
    task = real.configured("rendered_sst2", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    assert as_mapping(prepared(task, "test")) == expected(real, "rendered_sst2", ["test"])


def test_plain_parquet_without_the_librarys_own_description(real, tmp_path):
    """As other tools write it: a record of bytes and path, and whole numbers."""
    import pyarrow.parquet

    real.write_repository(real.dataset("mnist"), tmp_path / "repository", None)
    for file in (tmp_path / "repository").rglob("*.parquet"):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).replace_schema_metadata({}), file)
    task = real.configured("mnist", f"task.dataset.id={tmp_path / 'repository'}")
    check(real, "mnist", task, tmp_path / "store")


def test_a_copy_may_name_files_rather_than_hold_them(real, tmp_path):
    import datasets

    files = []
    for row in range(9):
        files.append(tmp_path / f"{row}.png")
        files[-1].write_bytes(real.encoded(real.pixels("pcam", "test", row)))
    labels = [bool(real.label_of("pcam", row)) for row in range(9)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("bool")})
    columns = {"image": [{"bytes": None, "path": str(file)} for file in files], "label": labels}
    table = datasets.Dataset.from_dict(columns, features=features)
    # save_to_disk would take the files in; Parquet written without embedding them keeps the paths.
    (tmp_path / "repository/data").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            table.data.table, tmp_path / f"repository/data/{split}-00000-of-00001.parquet"
        )
    task = real.configured("pcam", "task.source=disk", f"task.path={tmp_path / 'repository'}")
    assert as_mapping(prepared(task, "test")) == expected(real, "pcam", ["test"])


@pytest.mark.parametrize(("name", "absent"), [("rendered_sst2", "validation"), ("flowers102", "validation")])
def test_a_copy_may_lack_a_split_but_says_so(name, absent, real, tmp_path, caplog):
    tables = real.dataset(name)
    del tables[absent]
    tables.save_to_disk(tmp_path / "copy")
    task = real.configured(name, "task.source=disk", f"task.path={tmp_path / 'copy'}")
    train, validation = prepared(task, "train"), prepared(task, "validation")
    assert as_mapping(train) | as_mapping(validation) == expected(real, name, ["train"])
    assert (len(train), len(validation)) == (27, 3)
    assert caplog.text.count(f"not taken from {absent}") == 1


def test_the_hub_may_not_lack_one(real, tmp_path):
    tables = real.dataset("rendered_sst2")
    del tables["validation"]
    folder = real.write_repository(tables, tmp_path / "repository", None)
    task = real.configured("rendered_sst2", f"task.dataset.id={folder}")
    with pytest.raises(UserError, match="does not contain the split 'validation'"):
        prepared(task, "validation")
