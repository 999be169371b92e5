"""Hashes of files are those of hashlib, whether they were computed ahead or not, and never those of an earlier content."""

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import save_file

from mergeability.commands import verb_arguments
from mergeability.store import Store
from mergeability.store.noted_hashes import is_noted, noted_hash
from mergeability.weights import file_hashes
from mergeability.weights.file_hashes import file_hash, file_state, hash_ahead


@pytest.fixture(autouse=True)
def files_are_old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_SETTLED", 0)
    monkeypatch.setattr(file_hashes, "_ahead", {})


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of the files that are hashed."""
    found: list[Path] = []
    plain = file_hashes._sha256

    def counted(path: str | Path) -> str:
        found.append(Path(path))
        return plain(path)

    monkeypatch.setattr(file_hashes, "_sha256", counted)
    return found


def written(path: Path, content: bytes = b"weights") -> Path:
    path.write_bytes(content)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("threads", [1, 3])
def test_files_hashed_ahead_are_hashed_once_and_correctly(tmp_path, hashed, threads):
    paths = [written(tmp_path / name, name.encode() * 1000) for name in ("base", "cars", "svhn", "dtd")]
    hash_ahead(paths, threads)
    assert [file_hash(path) for path in paths] == [sha256(path) for path in paths]
    # Again, and from strings: found.
    assert [file_hash(str(path)) for path in paths] == [sha256(path) for path in paths]
    assert sorted(hashed)[: len(paths)] == sorted(paths)


def test_a_hash_in_progress_is_waited_for(tmp_path, monkeypatch):
    path, may_end, calls = written(tmp_path / "base"), threading.Event(), []

    def slow(given: object) -> str:
        calls.append(given)
        may_end.wait(60)
        return "from the background"

    monkeypatch.setattr(file_hashes, "_sha256", slow)
    hash_ahead([path], 1)
    while not calls:
        threading.Event().wait(0.001)
    threading.Timer(0.05, may_end.set).start()
    assert file_hash(path) == "from the background"
    assert calls == [path]


def test_what_no_thread_has_begun_is_hashed_by_the_caller(tmp_path, hashed):
    path = written(tmp_path / "base")
    state = file_state(path)
    assert state is not None
    file_hashes._ahead[tuple(state.items())] = Future()
    assert file_hash(path) == sha256(path)
    assert hashed == [path]


def test_what_the_caller_hashed_is_skipped_by_the_threads(tmp_path, hashed):
    paths, queue = [written(tmp_path / name) for name in ("base", "cars")], SimpleQueue()
    futures = [Future() for _ in paths]
    for future, path in zip(futures, paths, strict=True):
        queue.put((future, path))
    futures[0].cancel()
    file_hashes._work(queue)
    assert hashed == paths[1:]
    assert futures[1].result() == sha256(paths[1])


def test_a_file_changed_after_its_hash_was_started_gets_its_new_hash(tmp_path):
    path = written(tmp_path / "base", b"before")
    times = path.stat()
    hash_ahead([path], 1)
    assert file_hash(path) == sha256(path)
    path.write_bytes(b"after!")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert file_hash(path) == hashlib.sha256(b"after!").hexdigest()


def test_a_file_that_was_just_written_is_not_hashed_ahead(tmp_path, monkeypatch, hashed):
    monkeypatch.setattr(file_hashes, "_SETTLED", 3600)
    path = written(tmp_path / "base")
    assert file_state(path) is None
    hash_ahead([path], 1)
    assert not file_hashes._ahead
    assert file_hash(path) == sha256(path)


@pytest.mark.parametrize("missing", ["missing.safetensors", "folder", "with\0zero"])
def test_files_that_cannot_be_read_raise_their_error_only_where_they_are_needed(tmp_path, missing):
    (tmp_path / "folder").mkdir()
    hash_ahead([tmp_path / missing], 1)
    with pytest.raises((OSError, ValueError)) as raised:
        file_hash(tmp_path / missing)
    assert isinstance(raised.value, ValueError if "\0" in missing else OSError)


def test_stored_hashes_are_found_until_the_file_changes(tmp_path, hashed):
    path, store = written(tmp_path / "base"), Store(tmp_path / "store")
    assert not is_noted(path, store)
    assert noted_hash(path, file_hash, store) == sha256(path)
    assert is_noted(path, store)
    assert noted_hash(path, file_hash, Store(tmp_path / "store")) == sha256(path)
    assert hashed == [path]
    written(path, b"others!")
    assert not is_noted(path, store)
    assert noted_hash(path, file_hash, store) == hashlib.sha256(b"others!").hexdigest()


def test_the_command_hashes_the_files_whose_hashes_are_not_stored(tmp_path, monkeypatch):
    started: list[str] = []
    monkeypatch.setattr(file_hashes, "hash_ahead", lambda paths, threads: started.extend(paths))
    state = {"weight": torch.ones(2)}
    names = ("base.safetensors", "cars.safetensors", "a=b.safetensors", "noted.safetensors", "svhn.pt")
    paths = [str(tmp_path / name) for name in names]
    for path in paths:
        save_file(state, path)
    noted_hash(Path(paths[3]), file_hash, Store(tmp_path / "store"))
    models = [
        f"cars={paths[1]}",
        *paths[2:],
        "owner/model",
        str(tmp_path),
        str(tmp_path / "missing.safetensors"),
    ]
    verb_arguments.start_hashing(paths[0], models, str(tmp_path / "store"))
    assert started == paths[:3]


def test_hashing_starts_without_pytorch():
    code = (
        "import sys, mergeability.store.noted_hashes, mergeability.weights.file_hashes;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
