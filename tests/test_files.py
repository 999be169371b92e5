"""Files and folders on systems that lack hard links, locks, or an exchange of two folders."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from mergeability import files
from mergeability.errors import UserError
from mergeability.files import link_tree, lock, read_object, replace_folder, sweep_folders


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(tmp_path):
    """An old run with a note of its user, and a new one."""
    for name, content in {"old/run.json": "1", "old/notes/a.txt": "mine", "new/run.json": "2"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path / "new", tmp_path / "old"


class Exchanges:
    """A C library that exchanges two folders, or has no function for it."""

    def __init__(self, name):
        if name is not None:
            setattr(self, name, self.exchange)

    def exchange(self, *arguments):
        first, second = (os.fsdecode(one) for one in arguments if isinstance(one, bytes))
        for source, target in ((first, f"{first}.x"), (second, first), (f"{first}.x", second)):
            Path(source).rename(target)
        return 0


@pytest.mark.parametrize("function", ["renameat2", "renamex_np", None], ids=["Linux", "macOS", "others"])
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_folder_is_replaced_and_what_is_kept_moves_along(folders, monkeypatch, function, links):
    new, old = folders
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: Exchanges(function))
    if not links:

        def refuse(*_, **__):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(files.os, "link", refuse)
    replace_folder(new, old, keep=lambda name: name != "run.json")
    assert tree(old) == {"run.json": "2", "notes/a.txt": "mine"}
    assert tree(new)["run.json"] == "1"
    assert sorted(path.name for path in old.parent.iterdir()) == ["new", "old"]


def test_a_folder_that_is_not_there_yet_is_moved(folders):
    new, old = folders
    shutil.rmtree(old)
    replace_folder(new, old, keep=lambda _: True)
    assert tree(old) == {"run.json": "2"}
    assert not new.exists()


def test_existing_files_are_not_replaced_by_links(folders):
    new, old = folders
    link_tree(old, new)
    assert tree(new) == {"run.json": "2", "notes/a.txt": "mine"}
    assert (new / "notes/a.txt").samefile(old / "notes/a.txt")


def test_a_folder_that_was_moved_away_comes_back(folders):
    _, old = folders
    content = tree(old)
    old.rename(old.with_name(".old.1.partial.old"))
    assert sweep_folders(old) == []
    assert tree(old) == content


@pytest.mark.parametrize(
    ("error", "found"),
    [(BlockingIOError(errno.EAGAIN, "held"), False), (OSError(errno.ENOLCK, "none"), None)],
)
def test_a_lock_is_held_by_another_or_the_system_has_none(tmp_path, monkeypatch, error, found):
    def flock(*_):
        raise error

    with (tmp_path / "lock").open("w") as file:
        assert lock(file.fileno(), wait=False) is True
        monkeypatch.setattr(files.fcntl, "flock", flock)
        assert lock(file.fileno(), wait=False) is found


def test_an_object_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    assert read_object(path) is None
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UserError, match=r"Cannot read .*card\.json: Permission denied\."):
        read_object(path)
