"""States of unfinished trainings: taken up where they are ours, named and left where they are not."""

import errno
import json
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.examples import tiny_clip, tiny_task
from mergeability.files import digest
from mergeability.finetuning import TrainingSettings, run
from mergeability.finetuning.data import TaskDataModule
from mergeability.finetuning.run import (
    _check_finite,
    _resources_named,
    _resume_from,
    peak_memory,
    saver_of_each_epoch,
)
from mergeability.finetuning.state import state_fault
from mergeability.weights import checkpoints


class Line(pl.LightningModule):
    def __init__(self, inputs=2):
        super().__init__()
        self.line = torch.nn.Linear(inputs, 1)

    def training_step(self, batch):
        return self.line(batch).sum()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished")
    trainer = pl.Trainer(
        max_epochs=1, logger=False, callbacks=[saver_of_each_epoch(folder)], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2))
    return folder / "last.ckpt"


def test_a_state_of_the_same_module_is_taken_up(state):
    assert state_fault(state, Line()) is None
    assert "another network" in state_fault(state, Line(3))
    assert "another network" in state_fault(state, torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (lambda kept: {"epoch": 1}, "pytorch-lightning_version"),
        (lambda kept: kept | {"epoch": "one"}, "epoch"),
        (lambda kept: {name: value for name, value in kept.items() if name != "loops"}, "loops"),
        (lambda kept: kept | {"optimizer_states": [3]}, "optimiser"),
        (lambda kept: kept["state_dict"], "pytorch-lightning_version"),
        (lambda kept: torch.ones(3), "Tensor"),
        (lambda kept: kept | {"state_dict": kept["state_dict"] | {"more": torch.ones(1)}}, "more"),
    ],
)
def test_a_state_that_is_not_ours_is_named_and_training_starts_over(state, tmp_path, caplog, changed, fault):
    torch.save(changed(torch.load(state, weights_only=True)), tmp_path / "last.ckpt")
    (tmp_path / "settings.json").write_text(json.dumps(digest({"seed": 0})))
    assert fault in state_fault(tmp_path / "last.ckpt", Line())
    assert _resume_from(tmp_path, {"seed": 0}, Line()) is None
    assert "training starts from the beginning" in caplog.text
    assert not (tmp_path / "last.ckpt").exists()


def test_settings_that_cannot_be_read_start_afresh(state, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(state.read_bytes())
    (tmp_path / "settings.json").write_bytes(b"\xff{")
    assert _resume_from(tmp_path, {"seed": 0}, Line()) is None


def test_another_process_takes_up_what_the_first_one_left_and_removes_nothing(state, tmp_path, monkeypatch):
    monkeypatch.setattr(run.rank_zero_only, "rank", 1)
    assert _resume_from(tmp_path, {"seed": 0}, Line()) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "last.ckpt").write_bytes(state.read_bytes())
    assert _resume_from(tmp_path, {"seed": 0}, Line()) == tmp_path / "last.ckpt"


SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=6)


def test_a_full_disk_leaves_the_states_that_are_whole(state, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "last.ckpt").write_bytes(state.read_bytes())
    (unfinished / "half.ckpt").write_bytes(state.read_bytes()[:200])
    with (
        pytest.raises(UserError, match=r"The disk of .* is full: .*\(No space left\)\. Free some space"),
        _resources_named(SETTINGS, tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left")
    assert [path.name for path in unfinished.iterdir()] == ["last.ckpt"]
    with pytest.raises(PermissionError), _resources_named(SETTINGS, tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("size", "advice"), [(6, "batch_size=3 training.accumulate=2 makes the same"), (1, None)]
)
def test_a_lack_of_gpu_memory_names_smaller_batches(tmp_path, monkeypatch, size, advice):
    reset = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: reset.append(True))
    settings = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=size)
    with (
        pytest.raises(UserError, match=f"Out of GPU memory with batch size {size}: ") as raised,
        _resources_named(settings, tmp_path),
    ):
        raise torch.OutOfMemoryError
    assert reset == [True]
    assert (advice or "trainer.precision=bf16-mixed needs less") in str(raised.value)
    assert ("training.accumulate" in str(raised.value)) == (advice is not None)


def test_peak_memory_is_that_of_the_gpu_where_one_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    assert peak_memory() == 1.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_their_state_is_removed(tmp_path, value):
    module = Line()
    (tmp_path / "unfinished").mkdir()
    _check_finite(module, SimpleNamespace(name="digits"), tmp_path)
    assert (tmp_path / "unfinished").is_dir()
    with torch.no_grad():
        module.line.bias[0] = value
    with pytest.raises(
        UserError, match=r"Training on digits diverged: line\.bias holds NaN or Inf\. No model"
    ):
        _check_finite(module, SimpleNamespace(name="digits"), tmp_path)
    assert not (tmp_path / "unfinished").exists()


def test_the_training_data_are_all_samples_in_whole_batches():
    images = Images(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10))
    loader = TaskDataModule(images, images, 4).train_dataloader()
    assert (len(loader.dataset), len(loader)) == (10, 3)
    assert sorted(label for _, labels in loader for label in labels.tolist()) == list(range(10))


def test_only_the_first_of_several_processes_evaluates_and_writes(tmp_path, monkeypatch):
    model = tiny_clip()
    checkpoints.save(tmp_path / "base/model.safetensors", model.build().state_dict())
    fitted = []
    monkeypatch.setattr(run.rank_zero_only, "rank", 1)
    monkeypatch.setattr(run, "_accuracies", pytest.fail)
    monkeypatch.setattr(run, "_fit", lambda *_arguments: fitted.append(True) or 2)
    assert run.finetune(tiny_task(), model, SETTINGS, tmp_path / "loops", tmp_path / "base") == {}
    assert fitted == [True]
    assert not (tmp_path / "loops").exists()
