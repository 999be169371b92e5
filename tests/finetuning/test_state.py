"""States of unfinished trainings: taken up where they are ours, named and left where they are not."""

import json

import lightning.pytorch as pl
import pytest
import torch

from mergeability.files import digest
from mergeability.finetuning.run import _resume_from, saver_of_each_epoch
from mergeability.finetuning.state import state_fault


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
