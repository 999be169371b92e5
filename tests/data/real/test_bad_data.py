"""What can be wrong with a dataset: one clear sentence each, and an exit code that tells."""

import sys

import numpy as np
import pytest

from mergeability.data.image_cache import prepared
from mergeability.errors import UserError
from mergeability.store import Store

SIZE = 12


def crop(images):
    return images[..., :SIZE, :SIZE]


def read(task, split="test", root=None):
    return prepared(task, split, crop, SIZE, Store(root))


@pytest.fixture
def copied(real, tmp_path):
    """Save a dataset, changed by hand, and return the task that reads the copy."""

    def copy(name, change=lambda tables: tables, **damaged):
        change(real.dataset(name, **damaged)).save_to_disk(tmp_path / "copy")
        return real.configured(name, "task.source=disk", f"task.path={tmp_path / 'copy'}")

    return copy


def test_without_a_network_the_command_says_what_downloads_and_how_to_point_to_a_copy(
    real, command, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = command("train", "task=svhn", "doctor=true", f"paths.root={tmp_path}")
    assert ended.code == 1
    assert "'svhn': the Hugging Face Hub cannot be reached" in ended.output
    assert (
        "datasets.load_dataset('ufldl-stanford/svhn', 'cropped_digits').save_to_disk('svhn')" in ended.output
    )
    assert "task.source=disk task.path=" in ended.output
    assert "Traceback" not in ended.output


def reordered(tables):
    import datasets

    return tables.cast_column("label", datasets.ClassLabel(names=["positive", "negative"]))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (
            "mnist",
            lambda tables: tables.rename_column("image", "picture"),
            "expected the image column 'image'",
        ),
        ("rendered_sst2", reordered, "expected class 0 to be 'negative'"),
        ("mnist", lambda tables: emptied(tables), "its test split is empty"),
        (
            "fer2013",
            lambda tables: tables.map(lambda row: {"cls": row["cls"] + 5}),
            "expected labels in 0..6",
        ),
    ],
    ids=["columns", "order", "empty", "range"],
)
def test_whatever_is_wrong_ends_the_command_with_a_sentence_and_code_1(
    name, change, sentence, real, command, tmp_path
):
    change(real.dataset(name)).save_to_disk(tmp_path / "copy")
    ended = command(
        "train",
        f"task={name}",
        "task.source=disk",
        f"task.path={tmp_path / 'copy'}",
        "doctor=true",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert ended.code == 1
    assert sentence in ended.output
    assert "Traceback" not in ended.output


def test_a_revision_is_asked_for(real, monkeypatch):
    import datasets

    asked = []

    def asking(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", asking)
    with pytest.raises(UserError, match=r"cannot be reached \(no network\)"):
        read(real.configured("svhn", "task.dataset.revision=abc"))
    assert asked == [(("ufldl-stanford/svhn", "cropped_digits"), {"revision": "abc"})]


def test_a_dataset_the_hub_has_not(real, monkeypatch):
    import datasets

    def missing(*_args, **_kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(UserError, match=r"'mnist': the dataset ylecun/mnist cannot be loaded.*dataset\.id"):
        read(real.configured("mnist"))


def test_the_library_is_missing(real, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"uv pip install 'mergeability\[data\]'"):
        read(real.configured("mnist"))


@pytest.mark.parametrize("source", ["disk", "folder"])
def test_a_copy_that_is_not_there(source, real, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere.*task\.path"):
        read(real.configured("mnist", f"task.source={source}", f"task.path={tmp_path / 'nowhere'}"))
    with pytest.raises(Exception, match=rf"task\.source={source} requires task\.path"):
        real.configured("mnist", f"task.source={source}")


def test_a_source_there_is_none_of(real):
    with pytest.raises(Exception, match="hub, disk, folder, got 'cloud'"):
        real.configured("mnist", "task.source=cloud", "task.path=x")


def test_a_copy_that_is_no_dataset(real, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(UserError, match=r"copy cannot be read as a dataset.*save_to_disk"):
        read(real.configured("mnist", "task.source=disk", f"task.path={tmp_path / 'copy'}"))


def test_a_folder_of_other_tasks_copies(real, tmp_path):
    for name in ("mnist", "svhn"):
        real.dataset(name).save_to_disk(tmp_path / "data" / name)
    with pytest.raises(
        UserError, match=r"'kmnist': .*data contains copies of mnist, svhn, but no dataset named kmnist"
    ):
        read(real.configured("kmnist", "paths.source=disk", f"paths.data={tmp_path / 'data'}"))


def test_a_copy_of_one_split(real, tmp_path):
    real.dataset("mnist")["train"].save_to_disk(tmp_path / "copy")
    with pytest.raises(UserError, match="is a single split"):
        read(real.configured("mnist", "task.source=disk", f"task.path={tmp_path / 'copy'}"))


@pytest.mark.parametrize(("ours", "theirs"), [("image", "picture"), ("label", "target")])
def test_another_column(ours, theirs, copied):
    task = copied("mnist", lambda tables: tables.rename_column(ours, theirs))
    with pytest.raises(
        UserError,
        match=rf"'mnist': expected the {ours} column '{ours}' .*has the columns .*{theirs}.*dataset\.{ours}",
    ):
        read(task)


def test_a_column_that_holds_no_images(copied):
    task = copied("oxford_iiit_pet", lambda t: t.remove_columns("image").rename_column("image_id", "image"))
    with pytest.raises(UserError, match=r"'image' in split 'test' .*to contain images, but it is Value"):
        read(task)


def test_a_split_there_is_none_of(copied):
    def without_test(tables):
        del tables["test"]
        return tables

    with pytest.raises(
        UserError, match=r"does not contain the split 'test'. It has: train\. .*dataset\.test"
    ):
        read(copied("mnist", without_test))


def test_other_classes(copied):
    import datasets

    def renamed(tables):
        names = [*"0123456", "8", "7", "9"]
        return tables.cast_column("label", datasets.ClassLabel(names=names))

    with pytest.raises(
        UserError, match=r"'mnist': expected class 7 to be '7', but .* has '8' at this position"
    ):
        read(copied("mnist", renamed))


def test_another_number_of_classes(real, copied):
    import datasets

    def more(tables):
        return tables.cast_column("label", datasets.ClassLabel(names=[str(n) for n in range(47)]))

    with pytest.raises(UserError, match=r"'emnist': expected 10 classes, but .* has 47"):
        read(copied("emnist", more))


def test_codes_sorted_as_text(real, copied):
    """As `ImageFolder` makes them of the sign numbers: "10" before "2"."""
    import datasets

    def sorted_as_text(tables):
        return tables.cast_column("label", datasets.ClassLabel(names=sorted(str(n) for n in range(43))))

    with pytest.raises(
        UserError, match=r"'gtsrb': expected class 2 to be 'red and white circle 50 kph.* has '10'"
    ):
        read(copied("gtsrb", sorted_as_text))


@pytest.mark.parametrize("wrong", [7, -1])
def test_labels_out_of_range(wrong, copied):
    def shifted(tables):
        def change(example, row):
            return {**example, "cls": wrong if row == 4 else example["cls"]}

        return tables.map(change, with_indices=True)

    with pytest.raises(UserError, match=rf"expected labels in 0\.\.6, .*but 1 rows .* such as {wrong}\."):
        read(copied("fer2013", shifted))


def test_labels_that_are_names_the_task_has_not(copied):
    import datasets

    def named(tables):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        return tables.map(lambda _example: {"label": "meh"}, features=features)

    with pytest.raises(UserError, match="has 1 classes that are not listed in class_names, such as 'meh'"):
        read(copied("rendered_sst2", named))


def test_labels_that_are_no_labels(copied):
    import datasets

    def fractions(tables):
        return tables.cast_column("cls", datasets.Value("float32"))

    with pytest.raises(UserError, match=r"expected labels that are whole numbers.*'cls' .* is Value"):
        read(copied("fer2013", fractions))


def test_rows_without_a_label(copied):
    def emptied(tables):
        return tables.map(
            lambda example, row: {**example, "cls": None if row < 2 else example["cls"]}, with_indices=True
        )

    with pytest.raises(UserError, match=r"2 rows of split 'test' .* have no label"):
        read(copied("fer2013", emptied))


def emptied(tables):
    tables["test"] = tables["test"].select([])
    return tables


def test_an_empty_split_on_disk(copied):
    with pytest.raises(UserError, match="'mnist': its test split is empty"):
        read(copied("mnist", emptied))


def test_an_empty_split_of_a_repository(real, tmp_path):
    folder = real.write_repository(emptied(real.dataset("mnist")), tmp_path / "repository", None)
    with pytest.raises(UserError, match=r"'mnist': .*cannot be loaded .*test. corresponds to no data"):
        read(real.configured("mnist", f"task.dataset.id={folder}"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_empty_split_of_a_tree(on_disk, real, tmp_path):
    (tmp_path / "tree" / "test").mkdir(parents=True)
    task = real.configured("mnist", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    with pytest.raises(UserError, match="'mnist': the test split is empty"):
        read(task, root=tmp_path / "store" if on_disk else None)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


BROKEN = {"text": b"not an image", "nothing": b"", "empty": None}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated"])
def test_a_corrupt_image_is_named(kind, real, copied):
    data = BROKEN.get(kind) if kind in BROKEN else real.encoded(real.pixels("mnist", "test", 5))[:-60]
    task = copied("mnist", test={5: data})
    with pytest.raises(
        UserError, match=r"more than 0\.009 images of its test split cannot be decoded: row 5 of split"
    ):
        read(task)


def test_rows_that_cannot_be_read_are_no_full_disk(copied, tmp_path, monkeypatch):
    """The store would take an error of the system for one of its own."""
    import datasets

    task = copied("mnist")
    assert len(task.source.labels("test")) == 9

    def failing(_table, _rows):
        raise OSError("Input/output error")

    monkeypatch.setattr(datasets.Dataset, "__getitem__", failing)
    with pytest.raises(
        UserError, match=r"Rows 0 to 8 of split 'test' .*cannot be read \(Input/output error\)"
    ):
        read(task, root=tmp_path / "store")


def test_few_corrupt_images_are_left_out_counted_and_named(real, tmp_path, caplog):
    real.dataset("mnist", test={5: b"not an image"}).save_to_disk(tmp_path / "copy")
    where = ("task.source=disk", f"task.path={tmp_path / 'copy'}", "task.dataset.max_corrupt=0.2")
    for root in (None, tmp_path / "store"):
        caplog.clear()
        found = read(real.configured("mnist", *where), root=root)
        assert len(found) == 8
        assert found.labels.tolist() == [real.label_of("mnist", row) for row in range(9) if row != 5]
        kept = [real.pixels("mnist", "test", row)[:SIZE, :SIZE] for row in range(9) if row != 5]
        np.testing.assert_array_equal(found.images[:, 0], kept)
        assert (
            "1 images of the test split cannot be decoded and are left out: row 5 of split 'test'"
            in caplog.text
        )
    assert read(real.configured("mnist", *where), root=tmp_path / "store").fingerprint == found.fingerprint


def test_one_more_corrupt_image_than_the_share_allows(real, tmp_path):
    real.dataset("mnist", test={5: b"x", 6: b"y"}).save_to_disk(tmp_path / "copy")
    where = ("task.source=disk", f"task.path={tmp_path / 'copy'}")
    assert len(read(real.configured("mnist", *where, "task.dataset.max_corrupt=0.2223"))) == 7
    with pytest.raises(UserError, match="more than 1 images"):
        read(real.configured("mnist", *where, "task.dataset.max_corrupt=0.11112"))


def test_nothing_is_filed_when_reading_fails(copied, tmp_path):
    task = copied("mnist", test={5: b"not an image"})
    with pytest.raises(UserError, match="cannot be decoded"):
        read(task, root=tmp_path / "store")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_class_folder_the_task_has_not(real, tmp_path):
    real.write_tree(real.dataset("stl10"), real.schemas["stl10"], tmp_path / "tree", lambda name: name)
    (tmp_path / "tree/test/zebra").mkdir()
    (tmp_path / "tree/test/zebra/0.png").write_bytes(real.encoded(real.pixels("stl10", "test", 0)))
    task = real.configured("stl10", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    with pytest.raises(UserError, match=r"has 1 classes that are not listed in class_names, such as 'zebra'"):
        read(task)


def test_two_folders_of_one_class(real, tmp_path):
    real.write_tree(real.dataset("stl10"), real.schemas["stl10"], tmp_path / "tree", lambda name: name)
    (tmp_path / "tree/test/Truck").mkdir()
    (tmp_path / "tree/test/Truck/0.png").write_bytes(real.encoded(real.pixels("stl10", "test", 0)))
    task = real.configured("stl10", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    with pytest.raises(UserError, match="both denote the class 'truck'"):
        read(task)


def test_a_tree_without_the_split(real, tmp_path):
    (tmp_path / "tree").mkdir()
    task = real.configured("stl10", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    with pytest.raises(UserError, match=r"expected a folder .*tree/test with one folder of images per class"):
        read(task)


def test_a_rendered_task_has_no_copy(real):
    with pytest.raises(Exception, match=r"'digits': expected a source of images, got 'disk'"):
        real.configured("digits", "task.source=disk")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("validation_share=1.5", r"validation_share to be a share in \[0, 1\], got 1\.5"),
        ("max_corrupt=-1", r"max_corrupt to be a share in \[0, 1\], got -1"),
        ("validation_most=0", "validation_most to be at least 1, got 0"),
    ],
)
def test_settings_no_dataset_can_have(setting, message, real):
    with pytest.raises(Exception, match=message):
        real.configured("mnist", f"task.dataset.{setting}")
