"""Entries that are not what was filed: noticed wherever the damage is, computed again, and old ones taken over."""

import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.files import canonical_json
from mergeability.store import Store, checked_entries
from mergeability.store import folder as store_folder
from mergeability.store.entries import TensorEntry, hash_without_seal
from mergeability.weights.safetensors_file import TensorFile, write_rows

KEY = {"model": "abc", "options": {"k": 10, "λ": 0.5}}
OTHER = {"model": "abd", "options": {"k": 10, "λ": 0.5}}
VALUE = {"accuracy": 0.1 + 0.2, "images": 7, "names": ["é", "b"], "none": None}
DAY = 24 * 60 * 60


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "U": torch.randn(40, 5, generator=generator),
        "S": torch.arange(5.0, dtype=torch.float64),
        "empty": torch.empty(0),
        "names": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def new_process():
    """Forget, as another process would, what was checked; called, it does so again."""

    def forget():
        checked_entries._CHECKED.clear()
        store_folder._SWEPT.clear()

    forget()
    return forget


def write_images(path: Path) -> None:
    rows = [torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)] * 3
    write_rows(path, "images", rows, lambda: {"labels": torch.arange(6)}, {"task": "a", "split": "test"})


class Arrays:
    """An entry of tensors that are computed."""

    suffix = ".safetensors"

    @staticmethod
    def use(store, key=KEY):
        found = store.arrays("kind", key, tensors)
        assert equal(found, tensors())

    @staticmethod
    def write_plain(path, key=KEY):
        safetensors.torch.save_file(tensors(), path, metadata={"key": canonical_json(key)})


class Ensured(Arrays):
    """The same, read in ranges."""

    @staticmethod
    def use(store, key=KEY):
        store.ensure("kind", key, tensors)
        assert equal(store.read("kind", key), tensors())
        assert store.reader("kind", key)("U", 3, 8).tolist() == tensors()["U"].flatten()[3:8].tolist()


class Written:
    """A file that its caller writes, without a key."""

    suffix = ".safetensors"

    @staticmethod
    def use(store, key=KEY):
        store.ensure_written("kind", key, write_images)
        file = store.file("kind", key)
        assert torch.equal(file.mapped("images")[4], torch.arange(12, dtype=torch.uint8).reshape(3, 4))
        assert torch.equal(file.tensor("labels"), torch.arange(6))

    @staticmethod
    def write_plain(path, key=KEY):
        write_images(path)


class Records:
    """A record."""

    suffix = ".json"

    @staticmethod
    def use(store, key=KEY):
        assert store.record("kind", key, lambda: VALUE) == VALUE

    @staticmethod
    def write_plain(path, key=KEY):
        path.write_text(json.dumps({"key": key, "value": VALUE}, indent=1))


ENTRIES = pytest.mark.parametrize("entry", [Arrays, Ensured, Written, Records])


def path_of(root: Path, entry, key=KEY) -> Path:
    return Store(root).path("kind", key, entry.suffix)


def replaced(path: Path, data: bytes) -> None:
    """Write a file of its own: what is mapped must not change."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def plain(root: Path, entry, key=KEY, age: float = 60) -> Path:
    """File an entry as version 0.1.0 did."""
    path = path_of(root, entry, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry.write_plain(path, key)
    os.utime(path, (time.time() - age,) * 2)
    return path


def assert_computed_again(root, entry, caplog, path):
    """It is reported once, computed again, and whole from then on."""
    caplog.clear()
    store = Store(root)
    entry.use(store)
    entry.use(store)
    assert (store.computed["kind"], store.found["kind"]) == (1, 1)
    assert [str(path) in record.getMessage() for record in caplog.records] == [True], caplog.text
    again = Store(root)
    entry.use(again)
    assert (again.computed["kind"], again.found["kind"]) == (0, 1)


@ENTRIES
def test_any_flipped_byte_is_noticed(tmp_path, entry, caplog, new_process):
    entry.use(Store(tmp_path))
    path = path_of(tmp_path, entry)
    whole = path.read_bytes()
    positions = random.Random(5).sample(range(len(whole)), 25)
    for position in [0, 7, 8, 20, 40, len(whole) - 1, *positions]:
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        replaced(path, data)
        # As silent as a disk: no time stamp tells.
        os.utime(path, (time.time() - DAY,) * 2)
        new_process()
        assert_computed_again(tmp_path, entry, caplog, path)
        assert path.read_bytes() == whole


def another_key(root, entry):
    entry.use(Store(root), OTHER)
    return path_of(root, entry, OTHER).read_bytes()


def another_kind(root, entry):
    if entry is Records:
        Store(root).record("other", KEY, lambda: VALUE)
    else:
        Store(root).arrays("other", KEY, tensors)
    return Store(root).path("other", KEY, entry.suffix).read_bytes()


def other_content(root, entry):
    """Valid, with the key it should have, and of today: there is only the checksum to tell."""
    if entry is Records:
        return json.dumps({"key": KEY, "value": {"accuracy": 0.5}}, indent=1).encode()
    path = root / "other.safetensors"
    safetensors.torch.save_file({"S": torch.ones(2)}, path, metadata={"key": canonical_json(KEY)})
    return path.read_bytes()


def other_form(root, entry):
    return b'{"value": 3}' if entry is Records else b'{"__metadata__": {}}'


def cut_off(root, entry):
    return path_of(root, entry).read_bytes()[:-3]


def cut_off_early(root, entry):
    return path_of(root, entry).read_bytes()[:6]


@ENTRIES
@pytest.mark.parametrize(
    "content", [another_key, another_kind, other_content, other_form, cut_off, cut_off_early]
)
def test_other_contents_are_noticed(tmp_path, entry, content, caplog, new_process):
    entry.use(Store(tmp_path))
    path = path_of(tmp_path, entry)
    replaced(path, content(tmp_path, entry))
    new_process()
    assert_computed_again(tmp_path, entry, caplog, path)


def test_an_entry_that_changes_between_two_uses_of_one_process_is_noticed(tmp_path, caplog):
    store = Store(tmp_path)
    store.ensure("kind", KEY, tensors)
    path = path_of(tmp_path, Arrays)
    replaced(path, path.read_bytes()[:-1] + b"\x77")
    os.utime(path, (time.time() - DAY,) * 2)
    with pytest.raises(UserError, match=r"Damaged entry .*checksum.*Start the command again"):
        store.read("kind", KEY)
    path.unlink()
    with pytest.raises(UserError, match=r"Cannot read .*Start the command again"):
        store.file("kind", KEY)


def test_an_entry_is_checked_once_a_process(tmp_path, monkeypatch, new_process):
    Store(tmp_path).ensure("kind", KEY, tensors)
    new_process()
    checked = []
    check = TensorEntry.check
    monkeypatch.setattr(TensorEntry, "check", lambda self: checked.append(self.path) or check(self))
    for _ in range(3):
        store = Store(tmp_path)
        store.ensure("kind", KEY, tensors)
        store.read("kind", KEY)
    assert checked == [path_of(tmp_path, Arrays)]


# --- entries of version 0.1.0 ---


@ENTRIES
def test_old_entries_are_read_and_get_a_checksum(tmp_path, entry, caplog, new_process):
    path = plain(tmp_path, entry)
    before = TensorFile(path).entries if entry is not Records else None
    store = Store(tmp_path)
    entry.use(store)
    assert (store.found["kind"], store.computed["kind"], caplog.text) == (1, 0, "")
    assert b'"checksum":' in path.read_bytes().replace(b" ", b"")
    if before:
        found = TensorFile(path).entries
        assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
            name: (one.shape, one.dtype) for name, one in before.items()
        }
    whole = path.read_bytes()
    for position in random.Random(1).sample(range(len(whole)), 10):
        data = bytearray(whole)
        data[position] ^= 16
        replaced(path, data)
        new_process()
        assert_computed_again(tmp_path, entry, caplog, path)


@ENTRIES
def test_an_entry_without_checksum_is_refused_once_the_store_has_been_opened(
    tmp_path, entry, caplog, new_process
):
    plain(tmp_path, entry, OTHER)
    entry.use(Store(tmp_path), OTHER)
    path = plain(tmp_path, entry, age=-60)
    new_process()
    assert_computed_again(tmp_path, entry, caplog, path)


@ENTRIES
def test_a_new_store_believes_no_entry_without_checksum(tmp_path, entry, caplog, new_process):
    Store(tmp_path).record("other", KEY, dict)
    path = plain(tmp_path, entry, age=365 * DAY)
    assert_computed_again(tmp_path, entry, caplog, path)


@ENTRIES
def test_old_entries_are_used_where_nothing_can_be_written(tmp_path, entry, caplog, monkeypatch, new_process):
    path = plain(tmp_path, entry)
    whole = path.read_bytes()

    def read_only(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(store_folder.tempfile, name, read_only)
    for _ in range(2):
        store = Store(tmp_path)
        entry.use(store)
        entry.use(store)
        assert (store.found["kind"], store.computed["kind"], caplog.text) == (2, 0, "")
        new_process()
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match=r"Cannot write .*Read-only"):
        entry.use(store, OTHER)


def test_old_entries_with_another_key_or_cut_off_are_damaged(tmp_path, caplog):
    for entry, key in ((Arrays, KEY), (Records, OTHER)):
        path = plain(tmp_path, entry, key)
        target = path_of(tmp_path, entry, {"a": 1})
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        caplog.clear()
        entry.use(Store(tmp_path), {"a": 1})
        assert "belongs to another key" in caplog.text
    path = plain(tmp_path, Written)
    replaced(path, path.read_bytes()[:-1])
    os.utime(path, (time.time() - 60,) * 2)
    (tmp_path / "store.json").unlink()
    Written.use(Store(tmp_path))
    assert "not a complete file of tensors" in caplog.text


def test_keys_whose_names_are_numbers_are_found_again(tmp_path):
    key = {10: "a", 2: "b"}
    for number in (1, 2):
        store = Store(tmp_path)
        store.record("kind", key, lambda: {"a": 1})
        store.ensure("kind", key, tensors)
        assert store.computed["kind"] == (2 if number == 1 else 0)


def test_the_hash_of_a_converted_model_is_what_it_was(tmp_path):
    path = plain(tmp_path / "old", Arrays)
    known = hash_without_seal(path)
    assert known == hashlib.sha256(path.read_bytes()).hexdigest()
    Arrays.use(Store(tmp_path / "old"))
    Arrays.use(Store(tmp_path / "new"))
    assert hash_without_seal(path) == known
    assert hash_without_seal(path_of(tmp_path / "new", Arrays)) == known
    assert path.read_bytes() == path_of(tmp_path / "new", Arrays).read_bytes()


def test_a_header_that_grows_moves_the_tensors(tmp_path):
    key = {"long": "x" * 3_000_000}
    store = Store(tmp_path)
    store.ensure_written("kind", key, lambda path: safetensors.torch.save_file(tensors(), path))
    assert equal(Store(tmp_path).read("kind", key), tensors())
    large = {"x": torch.arange(700_000)}
    store.ensure_written("large", {}, lambda path: safetensors.torch.save_file(large, path))
    assert equal(Store(tmp_path).read("large", {}), large)


# --- the marker ---


def test_a_damaged_marker_is_replaced_and_believes_nothing(tmp_path, caplog, new_process):
    plain(tmp_path, Records, OTHER)
    Records.use(Store(tmp_path), OTHER)
    marker = tmp_path / "store.json"
    fields = json.loads(marker.read_text())
    assert fields["format"] == 2
    assert fields["adopts_before_ns"] > (time.time() - 60) * 10**9
    marker.write_text(marker.read_text().replace(str(fields["adopts_before_ns"]), "9" * 19))
    path = plain(tmp_path, Records)
    new_process()
    Store(tmp_path).record("other", KEY, dict)
    assert f"The file {marker} is damaged" in caplog.text
    assert json.loads(marker.read_text())["adopts_before_ns"] == 0
    assert_computed_again(tmp_path, Records, caplog, path)


def test_a_later_format_is_one_sentence(tmp_path):
    from mergeability.store.entries import sealed_json

    (tmp_path / "store.json").write_bytes(sealed_json({"format": 3}))
    with pytest.raises(UserError, match=r"format 3, but this version reads format 2.*paths\.store"):
        Store(tmp_path).record("kind", KEY, dict)


# --- temporary files ---


def left(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_only_old_temporary_files_that_nobody_holds_are_removed(tmp_path, new_process):
    import fcntl

    old = left(tmp_path / ".partial/a.partial", 2 * DAY)
    young = left(tmp_path / ".partial/b.partial", DAY / 2)
    held = left(tmp_path / ".partial/c.partial", 2 * DAY)
    elsewhere = left(tmp_path / "kind/aa/.x.partial", 2 * DAY)
    entry = plain(tmp_path, Records, age=2 * DAY)
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Records.use(Store(tmp_path))
        assert [path.exists() for path in (old, young, held, elsewhere, entry)] == [
            False, True, True, False, True,
        ]  # fmt: skip
    # Once a process: another one finds it free. Those among the entries are looked for only the first time.
    again = left(tmp_path / "kind/aa/.x.partial", 2 * DAY)
    Records.use(Store(tmp_path))
    assert held.exists()
    new_process()
    Records.use(Store(tmp_path))
    assert (held.exists(), young.exists(), again.exists()) == (False, True, True)


def test_a_young_temporary_file_among_old_entries_stays(tmp_path):
    young = left(tmp_path / "kind/aa/.x.partial", 60)
    Records.use(Store(tmp_path))
    assert young.exists()


def test_a_file_is_locked_while_it_is_written(tmp_path, new_process):
    def write(path: Path) -> None:
        write_images(path)
        os.utime(path, (time.time() - 2 * DAY,) * 2)
        new_process()
        Store(tmp_path).record("other", KEY, dict)
        assert path.exists()

    Store(tmp_path).ensure_written("kind", KEY, write)
    Written.use(Store(tmp_path))
    assert not list((tmp_path / ".partial").iterdir())
