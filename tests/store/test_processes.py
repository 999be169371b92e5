"""Processes and threads on one store: the first to finish an entry files it, and nobody loses what it holds."""

import json
import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mergeability.store import Store
from mergeability.store import folder as store_folder

COUNT = 60
PATIENCE = 120

# Each process computes other values under the same keys: only who is first can be right.
WORKER = """
import json, sys, time
from pathlib import Path
from mergeability.store import Store

root, begin, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = Store(root)
print("ready", flush=True)
while not begin.exists():
    time.sleep(0.001)
first = [store.record("r", {"k": k}, lambda: {"by": name, "k": k}) for k in range(COUNT)]
second = [Store(root).record("r", {"k": k}, dict) for k in range(COUNT)]
assert "torch" not in sys.modules
print(json.dumps([first, second, store.computed["r"]]))
""".replace("COUNT", str(COUNT))


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    """A file system with hard links, and one without."""

    def refused(*_arguments, **_options):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(store_folder.os, "link", refused)


def test_processes_that_start_together_agree_about_records(tmp_path):
    begin, root = tmp_path / "begin", tmp_path / "store"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), str(begin), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
    begin.touch()
    ended = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, ended
    told = [json.loads(output) for output, _ in ended]
    assert all(one[:2] == [told[0][0]] * 2 for one in told), "all have the values of whoever was first"
    assert sum(computed for *_, computed in told) >= COUNT
    assert not list((root / ".partial").iterdir())


def _use_often(root: Path, number: int, start) -> None:
    start.wait(PATIENCE)
    store, held = Store(root), []
    for k in range(COUNT):
        key = {"k": k}
        store.ensure(
            "t", key, lambda: {"x": torch.full((300,), float(number)), "who": torch.tensor([number])}
        )
        held.append(store.file("t", key))
        values = {float(value) for file in held for value in file.tensor("who")}
        assert values <= {0.0, 1.0, 2.0, 3.0}
    store.record(f"seen{number}", {}, lambda: {"by": [int(file.tensor("who")) for file in held]})


@pytest.mark.usefixtures("links")
def test_what_a_process_holds_stays_while_others_file_the_same(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=_use_often, args=(tmp_path, number, start)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * 4
    seen = [Store(tmp_path).record(f"seen{number}", {}, dict)["by"] for number in range(4)]
    assert seen == [seen[0]] * 4
    assert len(list(tmp_path.rglob("*.safetensors"))) == COUNT


@pytest.mark.usefixtures("links")
def test_threads_with_one_store_agree(tmp_path):
    start, found, store = threading.Barrier(4), {}, Store(tmp_path)

    def use(number: int) -> None:
        start.wait(PATIENCE)
        found[number] = [
            (
                int(store.arrays("t", {"k": k}, lambda: {"x": torch.tensor([number])})["x"]),
                store.record("r", {"k": k}, lambda: {"by": number})["by"],
            )
            for k in range(COUNT)
        ]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [found[number] for number in range(4)] == [found[0]] * 4


@pytest.mark.usefixtures("links")
def test_another_process_that_is_first_while_this_one_computes_is_not_replaced(tmp_path):
    def late(value):
        def compute():
            Store(tmp_path).record("r", {}, lambda: {"v": "first"})
            Store(tmp_path).arrays("t", {}, lambda: {"x": torch.zeros(2)})
            return value

        return compute

    store = Store(tmp_path)
    assert torch.equal(store.arrays("t", {}, late({"x": torch.ones(2)}))["x"], torch.zeros(2))
    held = store.file("t", {})
    assert store.record("r", {}, late({"v": "late"})) == {"v": "first"}
    assert torch.equal(held.tensor("x"), torch.zeros(2)), "the file that was opened"
    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.usefixtures("links")
def test_a_damaged_entry_that_two_find_is_repaired_by_one(tmp_path, caplog):
    """The second to finish finds it whole, and leaves it to those who hold it."""
    Store(tmp_path).ensure("t", {}, lambda: {"x": torch.zeros(2)})
    path = Store(tmp_path).path("t", {}, ".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    held = []

    def compute():
        other = Store(tmp_path)
        other.ensure("t", {}, lambda: {"x": torch.zeros(2)})
        held.append(other.file("t", {}))
        return {"x": torch.zeros(2)}

    store = Store(tmp_path)
    store.ensure("t", {}, compute)
    assert caplog.text.count("Damaged entry") == 2
    assert torch.equal(held[0].tensor("x"), torch.zeros(2))
    assert held[0].path.stat().st_ino == path.stat().st_ino


def test_without_locks_entries_are_filed_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(store_folder, "lock", lambda *_arguments, **_options: None)
    monkeypatch.setattr(store_folder, "_linked", lambda *_arguments: False)
    store = Store(tmp_path)
    store.ensure("t", {}, lambda: {"x": torch.zeros(2)})
    assert store.record("r", {}, lambda: {"a": 1}) == {"a": 1}
    assert Store(tmp_path).record("r", {}, dict) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()].count("store.json") == 1
    assert not list((tmp_path / ".partial").iterdir())
