"""Units in other processes: the same results, one store, nothing lost with a worker that is killed."""

import logging
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mergeability.context import Run, workers
from mergeability.errors import UserError
from mergeability.files import lock
from mergeability.store import Store
from mergeability.weights.safetensors_file import TensorFile, write_tensors

ROOT = Path(__file__).parent.parent


def squares(store: Store, spread_over: int | str = 1) -> list[int]:
    """Square numbers by units that file large values and return small ones."""
    run = Run(store, workers=spread_over)
    offset = torch.arange(3)

    def unit(number: int) -> tuple[int, int]:
        filed = store.arrays("square", {"number": number}, lambda: {"square": number**2 + offset})
        return int(filed["square"][0]), os.getpid()

    found = run.map(unit, range(6), description="squares")
    assert ({process for _, process in found} == {os.getpid()}) == (spread_over == 1)
    assert (os.getpid() in {process for _, process in found}) == (spread_over == 1)
    return [square for square, _ in found]


def test_processes_give_results_in_order_and_share_the_store(tmp_path):
    store = Store(tmp_path)
    assert squares(store, 2) == [0, 1, 4, 9, 16, 25]
    assert store.computed == {"square": 6}
    assert squares(Store(tmp_path)) == [0, 1, 4, 9, 16, 25]
    again = Store(tmp_path)
    assert squares(again, 2) == [0, 1, 4, 9, 16, 25]
    assert again.found == {"square": 6}
    assert not again.computed


def test_what_workers_compute_returns_to_a_store_in_memory():
    store = Store()
    assert squares(store, 2) == squares(store) == [0, 1, 4, 9, 16, 25]
    assert store.computed == {"square": 6}
    assert store.read("square", {"number": 5})["square"].tolist() == [25, 26, 27]


def test_a_worker_that_is_killed_loses_only_its_unit(tmp_path, caplog):
    begun = tmp_path / "begun"

    def unit(number: int) -> int:
        if number == 3 and not begun.exists():
            begun.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number + 1

    with caplog.at_level(logging.WARNING):
        assert Run(workers=2).map(unit, range(6), description="sums") == [1, 2, 3, 4, 5, 6]
    assert "killed while sums was computed" in caplog.text


def test_workers_that_are_killed_again_and_again_are_one_sentence():
    def unit(_number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"killed 3 times while sums .* Choose fewer workers"):
        Run(workers=2).map(unit, range(2), description="sums")


def test_a_user_error_in_a_worker_is_one_here():
    def unit(number: int) -> int:
        if number == 1:
            raise UserError("Expected something else.")
        return number

    with pytest.raises(UserError, match=r"^Expected something else\.$"):
        Run(workers=2).map(unit, range(4), description="sums")


def test_a_map_inside_a_worker_runs_there_alone():
    run = Run(workers=2)

    def inner(number: int) -> tuple[int, int]:
        return number, os.getpid()

    def unit(number: int) -> set[int]:
        return {process for _, process in run.map(inner, [number, number + 1], description="inside")} - {
            os.getpid()
        }

    assert run.map(unit, range(2), description="outside") == [set(), set()]


def test_memory_limits_how_many_work_at_once():
    run = Run(workers=2, memory_budget=1)
    with pytest.raises(UserError, match=r"one of them takes 2 GiB"):
        run.map(abs, [1, 2], description="sums", memory=2 * 2**30)
    found = run.map(lambda _number: os.getpid(), range(4), description="sums", memory=2**30)
    assert len(set(found)) == 1


def test_entries_travel_where_the_folder_is_not_shared(tmp_path):
    here, there = Store(tmp_path / "here"), tmp_path / "there"
    here.ensure("x", {"number": 0}, lambda: {"value": torch.zeros(1)})
    worker: Store = pickle.loads(pickle.dumps(here))
    worker.root = there
    worker.__dict__.pop("_folder", None)
    with worker.collecting() as made:
        worker.ensure("x", {"number": 1}, lambda: {"value": torch.ones(1)})
        worker.record("y", {"number": 1}, lambda: {"value": 2})
    assert len(made.files) == 2
    here.take(made)
    assert here.read("x", {"number": 1})["value"].tolist() == [1]
    assert here.record("y", {"number": 1}, lambda: pytest.fail("it has travelled")) == {"value": 2}
    assert here.computed == {"x": 2, "y": 1}
    # One that sees the folder sends counts alone.
    sharing: Store = pickle.loads(pickle.dumps(here))
    with sharing.collecting() as made:
        sharing.ensure("x", {"number": 2}, lambda: {"value": torch.ones(1)})
    assert made.files == {}
    assert made.computed == {"x": 1}


def test_mapped_images_travel_as_the_place_of_their_file(tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1000, 3, 8, 8), dtype=np.uint8))
    write_tensors({"images": images}, tmp_path / "images.safetensors", {})
    mapped = TensorFile(tmp_path / "images.safetensors").mapped("images")
    sent = workers._pickled({"mapped": mapped, "copied": images[:2].clone()})
    assert len(sent) < images.numel() / 10
    received = pickle.loads(sent)
    assert torch.equal(received["mapped"], images)
    assert torch.equal(received["copied"], images[:2])


@pytest.mark.parametrize("given", [0, -1, True, "", "head", "many", "0", "-3"])
def test_workers_that_are_neither_a_number_nor_an_address(given):
    with pytest.raises(UserError, match=r"Expected workers to be a"):
        workers.check_workers(given, 2)


def test_more_workers_than_cores_are_warned_of(caplog):
    workers.check_workers(3, 2)
    assert "workers=3 exceeds the 2 cores" in caplog.text


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"workers=ray needs Ray.*mergeability\[ray\]"):
        workers.check_workers("ray", 2)


@pytest.mark.parametrize("address", ["ray://localhost:1", "localhost:1", "ray://localhost:port"])
def test_a_cluster_that_does_not_answer_is_one_sentence(address):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"No Ray cluster answers at .*ray start --head"):
        workers.connect(address)


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (tmp_path / "0").open("w") as other:
        assert lock(other.fileno(), wait=False)
        assert workers.take_gpu(2, tmp_path) == 1
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert workers.take_gpu(2, tmp_path) is None
    workers._held.pop().close()


@pytest.mark.slow
def test_a_local_ray_cluster_gives_the_same(tmp_path):
    ray = pytest.importorskip("ray")
    try:
        store = Store(tmp_path)
        assert squares(store, "ray") == [0, 1, 4, 9, 16, 25]
        assert store.computed == {"square": 6}

        def unit(number: int) -> int:
            if number == 1:
                raise UserError("Expected something else.")
            return number

        with pytest.raises(UserError, match=r"^Expected something else\.$"):
            Run(workers="ray").map(unit, range(4), description="sums")
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("spread_over", ["2", "ray"])
def test_an_analysis_with_trainings_on_workers_leaves_the_same_bytes(
    fresh, smoke_root, tmp_path, spread_over
):
    if spread_over == "ray":
        pytest.importorskip("ray")
    tables = []
    for number in ("1", spread_over):
        root = tmp_path / f"on_{number}"
        shutil.copytree(
            smoke_root / "checkpoints" / "clip_mini" / "base", root / "checkpoints" / "clip_mini" / "base"
        )
        ended = fresh(
            root / "output", ROOT / "analyze.py", "suite=smoke", "model=clip_mini", "merge=[ties,ta]", "metric=paper", "predictor=none",
            "train.missing=true", "train.settings=['training.epochs=1']", f"paths.root={root}", "logger=csv",
            "variant=new", f"workers={number}", f"hydra.run.dir={root}/run",
        )  # fmt: skip
        ended.join(300)
        assert ended.exitcode == 0, (root / "output").read_text()
        tables.append(
            [(root / "run" / name).read_bytes() for name in ("pairs.csv", "accuracies.csv", "models.csv")]
        )
        assert len(pd.read_csv(root / "run" / "pairs.csv")) == 6
    assert tables[0] == tables[1]
