"""Which files of a folder are images: endings, contents, hidden files, links; and that whatever is left out is named."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mergeability.data.doctor import examine
from mergeability.data.image_cache import prepared, remarks
from mergeability.data.real.decoding import decode
from mergeability.data.real.held_out import held_out_by_class
from mergeability.data.real.image_files import endings, formats, list_images, shown, top_folders
from mergeability.data.real.layouts import Layout
from mergeability.data.real.source import image_task
from mergeability.data.unlabelled import draw_images
from mergeability.data.unlabelled import remarks as remarks_on
from mergeability.errors import UserError
from mergeability.store import Store

SIZE = 8


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def write(path: Path, seed: int = 0, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, kind)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes of eight images, in train and in test."""
    seed = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(8):
                write(tmp_path / "pets" / split / name / f"{number}.png", seed)
                seed += 1
    return tmp_path / "pets"


def task_of(folder: Path, classes=("cat", "dog"), **options):
    return image_task("pets", "folder", str(folder), Layout(**options), list(classes), ["a {}"], 1)


def corner(images: torch.Tensor) -> torch.Tensor:
    return images[..., :SIZE, :SIZE]


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder).files]


def draw(folder: Path, count: int = 64):
    return draw_images(folder, count, "pets", 0, corner)


# The kind of image that each ending promises, for all that Pillow can also write.
WRITTEN = {
    ".jpe": "JPEG", ".jfif": "JPEG", ".JPG": "JPEG", ".apng": "PNG", ".tif": "TIFF", ".webp": "WEBP", ".pbm": "PPM", ".pnm": "PPM",
    ".tga": "TGA", ".dib": "DIB", ".bmp": "BMP", ".pcx": "PCX", ".sgi": "SGI", ".rgb": "SGI", ".j2k": "JPEG2000", ".jp2": "JPEG2000",
    ".avif": "AVIF", ".ico": "ICO", ".gif": "GIF", ".mpo": "MPO", ".dds": "DDS", ".png ": "PNG",
}  # fmt: skip


@pytest.mark.parametrize(("ending", "kind"), WRITTEN.items())
def test_what_pillow_reads_is_read_at_both_doors(ending, kind, tmp_path):
    file = write(tmp_path / f"a{ending}", kind=kind)
    assert names(tmp_path) == [file.name]
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(file), expected)
    drawn = draw(tmp_path)
    np.testing.assert_array_equal(drawn.images[0], expected)
    assert drawn.left_out == ()


def test_nothing_is_read_that_starts_another_program_or_has_no_decoder():
    assert not {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG"} & set(formats())
    assert not {".eps", ".ps", ".emf", ".h5", ".mpg", ".pdf", ".mp4", ".txt", ""} & endings()


def test_other_endings_are_counted_by_ending_and_named(tmp_path):
    for name in ("notes.txt", "b.heic", "a.heic", "c.HEIC", "d.heic", "labels.csv"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    write(tmp_path / "photos/a.png")
    (remark,) = list_images(tmp_path).remarks
    assert "files ending in .heic are left out: 4 (photos/a.heic, photos/b.heic, photos/c.HEIC, …)" in remark
    assert "files ending in .txt are left out: 1 (photos/notes.txt)" in remark
    assert "files ending in .csv are left out: 1 (photos/labels.csv)" in remark


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_without_an_ending_is_an_image_by_its_content(kind, tmp_path):
    write(tmp_path / "photo", kind=kind)
    for name, text in {"README": b"BMW and PNG\n", "LICENSE": b"", "P5 6": b"P5 6 7"}.items():
        (tmp_path / name).write_bytes(text)
    assert names(tmp_path) == ["photo"]
    assert (
        "without an ending that are no images are left out: 3 (LICENSE, P5 6, README)"
        in list_images(tmp_path).remarks[0]
    )


HIDDEN = (
    "._0.png", ".DS_Store", ".ipynb_checkpoints/a-checkpoint.png", "Thumbs.db", "desktop.ini", "__MACOSX/._0.png",
    ".hidden/0.png", "@eaDir/0.png",
)  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("place", ["", "train", "train/cat", "test/dog"])
def test_hidden_files_change_nothing_but_are_counted(name, place, tree, tmp_path):
    before = {split: task_of(tree).source.identity(split) for split in ("train", "test")}
    target = tree / place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"\0\5\x16\7Mac OS X")
    task = task_of(tree)
    assert {split: task.source.identity(split) for split in ("train", "test")} == before
    findings = examine(task, tmp_path / "report")
    assert findings.problems == []
    said = " ".join(findings.left_out)
    assert (
        f"hidden files and folders are left out: 1 ({'/'.join([*place.split('/')[1:], name.split('/')[0]])})"
        in said
    )
    assert len(draw(tree).images) == 32


def test_the_run_and_the_report_name_what_the_doctor_names(tree, tmp_path, caplog):
    (tree / "train/cat/._0.png").write_bytes(b"x")
    (tree / "train/cat/0.xyz").write_bytes(b"x")
    (tree / "test/cat/1.png").write_bytes(b"x")
    deep = Image.fromarray(np.full((SIZE, SIZE), 65535, dtype=np.uint16))
    deep.save(tree / "test/dog/2.png")
    (tree / "val").mkdir()
    (tree / "README.md").touch()
    for _ in range(2):  # the second time from the store
        caplog.clear()
        task = task_of(tree, max_corrupt=0.1)
        for split in ("train", "validation", "test"):
            prepared(task, split, corner, SIZE, Store(tmp_path / "store"))
        said = "\n".join(remarks(task))
        for part in (
            "pets, train: files ending in .xyz are left out: 1 (cat/0.xyz); hidden files and folders are left out: 1 "
            "(cat/._0.png).",
            "pets, train: folders that are no split of this task are left out: 1 (val).",
            "pets, train: files outside the folders of the splits are left out: 1 (README.md).",
            f"1 images of the test split cannot be decoded and are left out: {tree}/test/cat/1.png (Unidentified",
            f"eight bits a channel, scaled from 0..65535 to 0..255: 1 ({tree}/test/dog/2.png).",
        ):
            assert part in said
            assert caplog.text.count(part) == 1
    findings = examine(task_of(tree, max_corrupt=0.1), tmp_path / "report")
    assert len(findings.left_out) == 5


def test_links_are_followed_and_circles_noticed(tree, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tree / "train/dog", elsewhere)
    (tree / "train/dog").symlink_to(elsewhere)
    assert task_of(tree).source.labels("train").tolist().count(1) == 7, "one of eight is held out"
    for name, target in {"up": "..", "self": ".", "root": "/", "again": elsewhere}.items():
        (tree / "train/cat" / name).symlink_to(target)
    (tree / "train/cat/round.png").symlink_to("round.png")
    (tree / "train/cat/sub").mkdir()
    listing = list_images(tree / "train")
    assert len(listing.files) == 16
    assert [path.name for path in listing.dangling] == ["round.png"]
    assert listing.left_out["links to folders that were read already"] == (
        "cat/again", "cat/root", "cat/self", "cat/up"
    )  # fmt: skip
    assert listing.left_out["empty folders"] == ("cat/sub",)


def test_links_beside_the_splits_that_lead_back_are_not_followed(tree, tmp_path, monkeypatch):
    for name, target in {"back": "..", "all": "/", "self": "."}.items():
        (tree / name).symlink_to(target)
    listed = []
    scan = os.scandir
    monkeypatch.setattr(
        "mergeability.data.real.image_files.os.scandir", lambda path: (listed.append(path), scan(path))[1]
    )
    findings = examine(task_of(tree), tmp_path / "report")
    assert findings.left_out == [
        "train: links to folders that were read already are left out: 3 (all, back, self)."
    ]
    assert set(findings.columns) == {"train", "test"}
    assert len(listed) == 6
    (tree / "test").rename(tmp_path / "test")
    (tree / "test").symlink_to("..")
    with pytest.raises(UserError, match=r"expected a folder .*/test .*, and found train\."):
        task_of(tree).source.labels("test")


def test_links_that_double_at_each_level_end(tmp_path):
    for level in range(40):
        (tmp_path / f"f{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"f{level}" / name).symlink_to(tmp_path / f"f{level + 1}")
    (tmp_path / "f40").mkdir()
    write(tmp_path / "f40/a.png")
    assert names(tmp_path) == ["f40/a.png"]


def test_links_that_lead_nowhere_are_images_that_do_not_decode(tree, tmp_path):
    (tree / "test/cat/gone.jpg").symlink_to("/nowhere/gone.jpg")
    (tree / "test/cat/lost").symlink_to("/nowhere")
    with pytest.raises(
        UserError, match=r"test/cat/gone.jpg \(FileNotFoundError: a link that leads nowhere\)"
    ):
        examine(task_of(tree), tmp_path / "report")
    with pytest.raises(UserError, match=r"test/cat/gone.jpg \(FileNotFoundError"):
        prepared(task_of(tree), "test", corner, SIZE, Store(None))
    task = task_of(tree, max_corrupt=0.1)
    assert len(prepared(task, "test", corner, SIZE, Store(None))) == 16
    assert "links that lead nowhere are left out: 1 (cat/lost)" in " ".join(remarks(task))
    drawn = draw(tree)
    assert len(drawn.images) == 32
    assert "broken links to images are left out: 1 (test/cat/gone.jpg)" in " ".join(
        remarks_on(drawn, 64, "pets")
    )


def test_names_that_are_not_utf_8_are_read_and_shown(tree, tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    write(tree / "test/cat" / odd, 99)
    findings = examine(task_of(tree), tmp_path / "report")
    assert findings.left_out == [r"test: image names that are not valid UTF-8: 1 (cat/caf\xe9.png)."]
    assert json.loads((tmp_path / "report/doctor.json").read_text())["left_out"] == findings.left_out
    (tree / "test/cat").rename(tree / "test" / os.fsdecode(b"ca\xff"))
    with pytest.raises(UserError, match="cannot be used for training"):
        examine(task_of(tree), tmp_path / "report")
    with pytest.raises(UserError, match=r"such as 'ca\\xff'"):
        task_of(tree).source.labels("test")


@pytest.mark.parametrize("name", ["\x1b[31mred.png", "new\nline.png", "\u202egnp.exe.png"])
def test_characters_that_control_a_terminal_are_escaped(name, tree):
    (tree / "test/cat" / name).write_bytes(b"no image")
    with pytest.raises(UserError) as raised:
        prepared(task_of(tree), "test", corner, SIZE, Store(None))
    assert str(raised.value).isprintable()
    assert shown(name) in str(raised.value)


def test_pipes_and_folders_of_an_images_name(tree):
    os.mkfifo(tree / "test/cat/pipe.png")
    (tree / "test/cat/folder.png").mkdir()
    listing = list_images(tree / "test")
    assert len(listing.files) == 16
    assert listing.left_out == {
        "pipes, sockets and devices": ("cat/pipe.png",),
        "empty folders": ("cat/folder.png",),
    }


def test_a_folder_that_cannot_be_opened_is_named(tree, monkeypatch):
    scan = os.scandir

    def denied(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("mergeability.data.real.image_files.os.scandir", denied)
    listing = list_images(tree / "test")
    assert listing.left_out == {"files and folders that cannot be opened": ("dog",)}
    assert len(listing.files) == 8


def test_a_file_without_an_ending_that_cannot_be_opened_is_named(tree, monkeypatch):
    write(tree / "test/cat/photo")
    opened = Path.open

    def denied(path, *options, **others):
        if path.name == "photo":
            raise PermissionError(13, "Permission denied")
        return opened(path, *options, **others)

    monkeypatch.setattr(Path, "open", denied)
    listing = list_images(tree / "test")
    assert listing.left_out == {"files and folders that cannot be opened": ("cat/photo",)}
    assert len(listing.files) == 16


def test_a_link_with_too_long_a_target_leads_nowhere(tree):
    (tree / "test/cat/odd.txt").symlink_to("x" * 300)
    assert list_images(tree / "test").left_out == {"links that lead nowhere": ("cat/odd.txt",)}


def test_a_folder_that_is_gone_holds_nothing(tmp_path):
    listing = list_images(tmp_path / "gone")
    assert (listing.files, listing.dangling) == ((), ())
    assert listing.left_out == {"files and folders that cannot be opened": (".",)}
    assert top_folders(tmp_path / "gone") == []


def test_a_draw_says_which_files_could_not_be_read(tree):
    (tree / "test/cat/0.png").write_bytes(b"no image")
    drawn = draw(tree)
    assert (len(drawn.images), drawn.found, drawn.unreadable) == (31, 32, ("test/cat/0.png",))
    short, unread = remarks_on(drawn, 64, "pets")
    assert short == "'pets' has only 31 unlabelled images instead of 64; all of them are used."
    assert unread.startswith("1 files of 'pets' could not be read and were left out: test/cat/0.png (")
    (again,) = remarks_on(drawn, 31, "pets")
    assert again == unread


def test_images_left_out_before_that_was_stored_are_counted(tree, tmp_path):
    (tree / "test/cat/0.png").write_bytes(b"no image")

    def said(remove):
        store, task = Store(tmp_path / "store"), task_of(tree, max_corrupt=0.1)
        if remove:
            shutil.rmtree(tmp_path / "store/image_remarks")
        images = prepared(task, "test", corner, SIZE, store)
        assert len(images) == 15
        return remarks(task)

    assert any("0.png" in one for one in said(False))
    assert said(True) == ["pets, test: 1 images of the test split cannot be decoded and are left out."]


def test_images_outside_class_folders_are_named(tree):
    write(tree / "test/lost.png")
    with pytest.raises(UserError, match=r"1 images are not in a class folder \(lost.png\)"):
        task_of(tree).source.labels("test")


def test_folders_that_are_no_splits_are_named_where_a_split_is_missing(tree):
    (tree / "train").rename(tree / "Training")
    with pytest.raises(UserError, match=r"expected a folder .*/train .*, and found Training, test\."):
        task_of(tree).source.labels("train")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/pets", "x" * 5000, "a\0b"])
def test_places_that_no_folder_can_have(path):
    with pytest.raises(UserError, match="there is no folder"):
        task_of(Path(path)).source.labels("train")
    with pytest.raises(UserError, match="No folder of images at"):
        draw(Path(path))


def test_accents_in_two_forms_are_one_name(tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    for split in ("train", "test"):
        for seed, name in enumerate((apart, "thé vert")):
            for number in range(4):
                write(tmp_path / split / name / f"{number}.png", 10 * seed + number + 100 * (split == "test"))
    task = task_of(tmp_path, ["café ", "thé vert"])
    assert list(task.class_names) == ["café", "thé vert"]
    assert task.source.labels("test").tolist() == [0] * 4 + [1] * 4
    write(tmp_path / "test/café/new.png", 999)
    with pytest.raises(UserError, match="both denote the class 'café', with accents in two Unicode forms"):
        task_of(tmp_path, [apart, "thé vert"]).source.labels("test")


def test_a_class_without_test_images_does_not_look_right(tree, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.rmtree(tree / "test/dog")
    (tree / "test/dog").mkdir()
    findings = examine(task_of(tree), tmp_path / "report")
    assert findings.notes == ["1 classes have no test images, such as 'dog'."]
    assert "looks right" not in caplog.text
    assert "can be used for training, with 2 remarks" in caplog.text
    task = task_of(tree)
    prepared(task, "test", corner, SIZE, Store(None))
    assert "pets, test: 1 of 2 classes have no images (dog)." in remarks(task)


def by_class(sizes, share, seed=0, shared=True, most=5000):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(seed).permutation(len(labels))
    count = min(round(share * len(labels)), most)
    return labels, order, held_out_by_class(labels, order, count, most, shared)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(204, 4), (8, 8), (4, 4), (500, 3, 3, 2), (100, 1, 40, 2), (5000, 6)])
def test_each_class_is_held_out_and_learned_from(sizes, seed):
    labels, _, held_out = by_class(sizes, 0.1, seed)
    for label, size in enumerate(sizes):
        of_class = held_out[labels == label]
        assert of_class.sum() >= (size > 1)
        assert not of_class.all()
        assert abs(of_class.sum() - size / 10) <= 2
    assert held_out.sum() == max(round(0.1 * sum(sizes)), sum(size > 1 for size in sizes))


@pytest.mark.parametrize("sizes", [(50, 50), (200, 100, 300), (1000,), (1, 1, 1, 60)])
@pytest.mark.parametrize("seed", range(5))
def test_a_draw_with_all_classes_is_that_of_before(sizes, seed):
    _, order, held_out = by_class(sizes, 0.1, seed)
    assert set(np.flatnonzero(held_out)) == set(order[: round(0.1 * sum(sizes))])


def test_what_cannot_be_drawn_by_class_is_drawn_as_before():
    for sizes, share, most in (
        ((3,) * 10, 0.1, 5000),
        ((4, 4), 0.0, 5000),
        ((1,) * 30, 0.1, 5000),
        ((40,) * 9, 0.1, 5),
    ):
        _, order, held_out = by_class(sizes, share, most=most)
        count = min(round(share * sum(sizes)), most)
        assert set(np.flatnonzero(held_out)) == set(order[:count])


def test_an_own_split_may_be_used_up():
    labels, _, held_out = by_class((3, 30), 4 / 33, shared=False)
    assert {int(label) for label in labels[held_out]} == {0, 1}
    assert held_out.sum() == 4
