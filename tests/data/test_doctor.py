"""The data doctor: what it finds in good and in bad datasets, as a command, rendered tasks and copies alike."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mergeability.data.contact_sheet import Cell, contact_sheet
from mergeability.data.doctor import examine
from mergeability.errors import UserError


@pytest.fixture
def copied(real, tmp_path):
    def copy(name, change=lambda tables: tables, *overrides, **damaged):
        change(real.dataset(name, **damaged)).save_to_disk(tmp_path / "copy")
        return real.configured(name, "task.source=disk", f"task.path={tmp_path / 'copy'}", *overrides)

    return copy


def report(folder) -> dict:
    return json.loads((folder / "doctor.json").read_text())


def doctored(command, tmp_path, *arguments):
    ended = command("train", *arguments, "doctor=true", f"hydra.run.dir={tmp_path / 'run'}")
    return ended, tmp_path / "run"


def test_a_rendered_task_is_well(command, tmp_path):
    sizes = ("task.source.train=80", "task.source.validation=16", "task.source.test=24")
    ended, folder = doctored(command, tmp_path, "task=shapes", *sizes)
    assert ended.code == 0, ended.output
    assert "shapes has no problems" in ended.output
    found = report(folder)
    assert found["source"] == "rendered"
    assert found["problems"] == found["notes"] == []
    assert {split: one["images"] for split, one in found["splits"].items()} == {
        "train": 80,
        "validation": 16,
        "test": 24,
    }
    assert found["splits"]["train"]["images_by_class"]["star"] == 10
    assert found["splits"]["test"]["shared_with_train"] == 0
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 500


def test_a_copy_is_well(command, real, tmp_path):
    real.dataset("rendered_sst2").save_to_disk(tmp_path / "copy")
    where = ("task=rendered_sst2", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    ended, folder = doctored(command, tmp_path, *where)
    assert ended.code == 0, ended.output
    found = report(folder)
    assert found["source"] == "disk"
    assert found["columns"] == {split: ["image", "label"] for split in ("train", "test", "validation")}
    assert found["splits"]["train"]["sizes"]["different"] == 3
    assert (folder / "contact_sheet.png").exists()


def test_a_broken_copy_ends_with_one_sentence_and_code_1(command, real, tmp_path):
    real.dataset("mnist", test={3: b"no image"}).save_to_disk(tmp_path / "copy")
    ended, folder = doctored(
        command, tmp_path, "task=mnist", "task.source=disk", f"task.path={tmp_path / 'copy'}"
    )
    assert ended.code == 1
    assert (
        "Task 'mnist' cannot be used for training: 1 of 9 test images cannot be decoded, for example row 3"
        in ended.output
    )
    assert "Traceback" not in ended.output
    assert report(folder)["splits"]["test"]["undecodable"] == 1
    assert (folder / "contact_sheet.png").exists(), "of what does decode"


def test_a_few_broken_images_are_a_note(copied, tmp_path):
    task = copied("pcam", lambda tables: tables, "task.dataset.max_corrupt=0.2", test={3: b"no image"})
    findings = examine(task, tmp_path / "run")
    assert findings.notes == ["1 test images cannot be decoded and are left out."]


def test_a_contaminated_copy(real, copied, tmp_path):
    """As the copies of dtd that give 98 %: stored anew, so other bytes, but the same pixels."""
    first = Image.fromarray(real.pixels("pcam", "train", 4))
    again = io.BytesIO()
    first.save(again, "BMP")
    with pytest.raises(
        UserError, match=r"1 of 9 different test images are also train images, pixel for pixel"
    ):
        examine(copied("pcam", test={2: again.getvalue()}), tmp_path / "run")
    found = report(tmp_path / "run")["splits"]["test"]
    assert (found["shared_with_train"], found["shared_with_validation"]) == (1, 0)


def test_one_shared_image_in_hundreds_is_a_note(real, tmp_path, monkeypatch):
    monkeypatch.setattr("mergeability.data.doctor.MOST_SHARED", 0.2)
    shared = real.encoded(real.pixels("pcam", "valid", 1))
    real.dataset("pcam", test={2: shared}).save_to_disk(tmp_path / "copy")
    task = real.configured("pcam", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    findings = examine(task, tmp_path / "run")
    assert len(findings.notes) == 1
    assert "1 of 9 different test images are also validation images" in findings.notes[0]
    assert findings.splits["test"]["shared_with_validation"] == 1


def test_repeated_images_are_counted(real, copied, tmp_path):
    same = real.encoded(real.pixels("pcam", "train", 0))
    findings = examine(copied("pcam", train={5: same, 6: same}), tmp_path / "run")
    assert findings.splits["train"]["repeated"] == 2


def test_a_class_without_training_images(copied, tmp_path):
    with pytest.raises(UserError, match=r"classes have no train images, such as"):
        examine(copied("dtd"), tmp_path / "run")


def test_unbalanced_classes_are_a_note(copied, tmp_path):
    def unbalanced(tables):
        tables["train"] = tables["train"].map(lambda _example, row: {"label": row == 0}, with_indices=True)
        return tables

    findings = examine(copied("pcam", unbalanced), tmp_path / "run")
    assert findings.notes == ["Classes are unbalanced: 1 to 29 train images."]


def test_several_things_wrong_are_all_named_once(copied, tmp_path):
    import datasets

    def wrong(tables):
        return tables.cast_column("label", datasets.ClassLabel(names=["positive", "negative"]))

    with pytest.raises(UserError, match="expected class 0 to be 'negative'") as raised:
        examine(copied("rendered_sst2", wrong), tmp_path / "run")
    for split in ("train", "validation", "test"):
        assert str(raised.value).count(f"split '{split}'") == 1
    assert str(raised.value).count("Task 'rendered_sst2'") == 1
    assert not (tmp_path / "run/contact_sheet.png").exists()
    assert report(tmp_path / "run")["columns"]


def test_a_dataset_that_is_not_there_is_named_once(real, tmp_path):
    task = real.configured("mnist", "task.source=folder", f"task.path={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"^Task 'mnist': there is no folder"):
        examine(task, tmp_path / "run")
    assert len(report(tmp_path / "run")["problems"]) == 1


def test_a_tree_of_files_is_examined(real, tmp_path):
    real.write_tree(real.dataset("cifar10"), real.schemas["cifar10"], tmp_path / "tree", lambda name: name)
    task = real.configured("cifar10", "task.source=folder", f"task.path={tmp_path / 'tree'}")
    findings = examine(task, tmp_path / "run")
    assert set(findings.columns) == {"train", "test"}
    assert set(findings.columns["train"]) == set(task.class_names)


def test_the_sheet_shows_every_class_with_its_image(real, copied, tmp_path):
    task = copied("pcam")
    examine(task, tmp_path / "run")
    with Image.open(tmp_path / "run/contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # The first image of class 0 lies in the first cell, each of its 24 pixels 4 wide.
    first = next(row for row in range(30) if real.label_of("pcam", row) == 0)
    np.testing.assert_array_equal(pixels[6 : 6 + 96 : 4, 6 : 6 + 96 : 4], real.pixels("pcam", "train", first))


def test_long_captions_are_cut_to_their_picture():
    import torch

    grey = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    sheet = np.asarray(contact_sheet([Cell(grey, "W" * 60), Cell(grey, "b")]))
    gap = sheet[6 + 96 : 6 + 96 + 14, 6 + 96 : 6 + 96 + 6]
    assert (gap == 255).all(), "nothing is written between the pictures"
    assert (sheet[6 + 96 : 6 + 96 + 14, 6 : 6 + 96] < 128).any()


def test_a_split_that_is_wrong_the_same_way_as_another_is_named_once(real, tmp_path):
    """Train and validation are drawn from the same rows."""
    tables = real.dataset("fer2013")
    tables["train"] = tables["train"].map(lambda example: {"cls": example["cls"] + 5})
    tables.save_to_disk(tmp_path / "copy")
    task = real.configured("fer2013", "task.source=disk", f"task.path={tmp_path / 'copy'}")
    with pytest.raises(UserError) as raised:
        examine(task, tmp_path / "run")
    assert str(raised.value).count("expected labels in 0..6") == 1
