"""The store: found again, keyed by content, whole or not there."""

import json
import multiprocessing
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.files import atomic_file, canonical_json, digest, read_json, write_text
from mergeability.store import Store


def test_a_second_process_finds_what_the_first_computed(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    key = {"model": "abc", "k": 10}
    made = first.arrays("svd", key, lambda: {"S": torch.arange(3.0)})
    found = second.arrays("svd", key, lambda: pytest.fail("computed again"))
    assert torch.equal(made["S"], found["S"])
    assert (first.computed["svd"], second.found["svd"], second.computed["svd"]) == (1, 1, 0)


@pytest.mark.parametrize("store_root", [None, "folder"])
def test_any_difference_in_the_key_is_another_entry(tmp_path, store_root):
    store = Store(None if store_root is None else tmp_path)
    values = [store.record("r", {"k": k, "nested": {"a": 1}}, lambda k=k: {"v": k}) for k in (1, 2)]
    assert [value["v"] for value in values] == [1, 2]
    assert store.computed["r"] == 2
    assert store.record("r", {"nested": {"a": 1}, "k": 1}, dict)["v"] == 1, (
        "the order of keys does not matter"
    )
    assert store.record("other", {"k": 1, "nested": {"a": 1}}, lambda: {"v": 9})["v"] == 9


def test_digest_is_the_sha256_of_sorted_json():
    # printf '{"a":1,"b":[0.1,"é"]}' | sha256sum
    import hashlib

    text = '{"a":1,"b":[0.1,"é"]}'
    assert canonical_json({"b": [0.1, "é"], "a": 1}) == text
    assert digest({"b": [0.1, "é"], "a": 1}) == hashlib.sha256(text.encode()).hexdigest()


def test_whole_floats_are_integers_in_keys():
    assert digest({"lambda": 1, "more": [2.0, True]}) == digest({"lambda": 1.0, "more": [2, True]})
    assert len({digest({"lambda": value}) for value in (1, 1.5, True, "1", None)}) == 5


def test_nan_in_a_record_is_refused_rather_than_written(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="Out of range float"):
        store.record("r", {"k": 1}, lambda: {"v": float("nan")})
    assert not list(tmp_path.rglob("*.json")), "nothing half-written remains"


def test_an_error_while_computing_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.arrays("svd", {"k": 1}, lambda: {"S": torch.tensor(1 // 0)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "card.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_reader_in_the_middle_of_a_file_never_sees_the_next_one(tmp_path):
    path = tmp_path / "card.json"
    path.write_text("old" * 1000)
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old" * 1000
    assert path.read_text() == "new"


def test_a_damaged_entry_is_computed_again(tmp_path, caplog):
    store = Store(tmp_path)
    store.arrays("svd", {"k": 1}, lambda: {"S": torch.ones(2)})
    path = store.path("svd", {"k": 1}, ".safetensors")
    path.write_bytes(path.read_bytes()[:20])
    again = Store(tmp_path).arrays("svd", {"k": 1}, lambda: {"S": torch.ones(2)})
    assert torch.equal(again["S"], torch.ones(2))
    assert "Damaged entry" in caplog.text


def test_a_file_where_a_folder_should_be_is_one_clear_sentence(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write .*paths\.root"):
        Store(tmp_path / "store").record("r", {"k": 1}, dict)


def test_json_that_is_none_names_the_file(tmp_path):
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"card\.json is not valid JSON"):
        read_json(tmp_path / "card.json")
    assert read_json(tmp_path / "absent.json") is None


def _write_often(root: Path) -> None:
    for number in range(30):
        Store(root).arrays(
            "svd", {"k": number}, lambda number=number: {"S": torch.full((500,), float(number))}
        )


def test_two_processes_on_one_store_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = Store(tmp_path)
    for number in range(30):
        found = store.arrays("svd", {"k": number}, lambda: pytest.fail("lost"))["S"]
        assert torch.equal(found, torch.full((500,), float(number)))
    entries = list(tmp_path.rglob("*.safetensors"))
    assert len(entries) == 30
    assert json.loads(canonical_json({"k": 1})) == {"k": 1}
    assert not [path for path in tmp_path.rglob("*.partial") if path.is_file()]


@pytest.mark.parametrize("content", [b"\xff\xfe\x80", b"null", b"[]", b"{}", b"{", b""])
def test_a_damaged_record_is_computed_again(tmp_path, content):
    store = Store(tmp_path)
    path = store.path("kind", {"a": 1}, ".json")
    store.record("kind", {"a": 1}, lambda: {"value": 2})
    path.write_bytes(content)
    assert Store(tmp_path).record("kind", {"a": 1}, lambda: {"value": 2}) == {"value": 2}
    assert Store(tmp_path).record("kind", {"a": 1}, lambda: pytest.fail("filed again")) == {"value": 2}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left"):
        Store(tmp_path).arrays("kind", {"a": 1}, lambda: {"x": torch.ones(2)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_written_in_pieces_is_filed_whole_or_not_at_all(tmp_path):
    def fails(path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"Cannot write .*No space left"):
        store.ensure_written("kind", {"a": 1}, fails)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    store.ensure_written(
        "kind", {"a": 1}, lambda path: safetensors.torch.save_file({"x": torch.ones(2)}, path)
    )
    store.ensure_written("kind", {"a": 1}, lambda _path: pytest.fail("written again"))
    assert (store.computed["kind"], store.found["kind"]) == (1, 1)
    assert torch.equal(Store(tmp_path).read("kind", {"a": 1})["x"], torch.ones(2))
    with pytest.raises(UserError, match="in memory has no files"):
        Store().ensure_written("kind", {"a": 1}, lambda _path: None)
