"""Fine-tuning at size: the schedule under accumulation and on several devices, SGD, and what runs out."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from mergeability.commands import record
from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.finetuning.data import EpochShuffle, Shard, TaskDataModule
from mergeability.finetuning.module import FineTuningModule, TrainingSettings, _optimizer
from mergeability.finetuning.penalties.grad_magnitude import GradMagnitude
from mergeability.weights import checkpoints

ROOT = Path(__file__).parents[2]
HEAD = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)) * 3


def images(count: int) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def preprocess(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def encoder() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network


class Rates(pl.Callback):
    """Remembers the learning rate of every optimiser step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(count: int, penalty=None, **settings) -> tuple[FineTuningModule, list[float], pl.Trainer]:
    recipe = TrainingSettings(**{"epochs": 3, "learning_rate": 0.5, "batch_size": 8, **settings})
    module, rates = FineTuningModule(encoder(), HEAD, preprocess, recipe, penalty), Rates()
    trainer = pl.Trainer(
        max_epochs=recipe.epochs, accumulate_grad_batches=recipe.accumulate, accelerator="cpu", logger=False,
        callbacks=[rates], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=TaskDataModule(images(count), images(6), recipe.batch_size))
    return module, rates.rates, trainer


def rates_by_hand(steps: int, peak: float, warmup: int) -> np.ndarray:
    """Rise linearly to the peak, then half a cosine that would reach zero at the step after the last."""
    step = np.arange(steps)
    falling = peak / 2 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
    return np.where(step < warmup, peak * (step + 1) / max(warmup, 1), falling)


@pytest.mark.parametrize(
    ("count", "accumulate", "steps_an_epoch"),
    [(40, 1, 5), (40, 2, 3), (37, 2, 3), (32, 2, 2), (40, 3, 2), (24, 5, 1)],
)
def test_the_schedule_counts_steps_and_ends_at_zero_whatever_is_accumulated(
    count, accumulate, steps_an_epoch
):
    _, rates, trainer = fit(count, accumulate=accumulate, warmup_share=0.25)
    steps = 3 * steps_an_epoch
    assert trainer.global_step == len(rates) == steps, "an incomplete last group is a step too"
    np.testing.assert_allclose(rates, rates_by_hand(steps, 0.5, -(-steps // 4)), rtol=1e-6)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_sgd_with_momentum_takes_the_steps_written_out_in_numpy():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = TrainingSettings(epochs=1, learning_rate=0.1, optimizer="sgd", momentum=0.8, weight_decay=0.05)
    optimizer = _optimizer([weight], settings)
    theta, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for gradient in ([0.5, 1.0], [-1.0, 2.0], [0.25, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        velocity = 0.8 * velocity + np.array(gradient) + 0.05 * theta
        theta = theta - 0.1 * velocity
        np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=1e-6)
    assert isinstance(_optimizer([weight], TrainingSettings(epochs=1, learning_rate=0.1)), torch.optim.AdamW)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match=r"training\.optimizer to be adamw or sgd, got 'lion'"):
        TrainingSettings(epochs=1, learning_rate=0.1, optimizer="lion")


def settings_of(*overrides: str) -> dict:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return record.settings(compose("train", list(overrides)))


def test_new_settings_are_hashed_where_they_differ_and_old_trainings_are_still_found():
    plain = settings_of()
    assert not {"optimizer", "momentum", "compile"} & plain["training"].keys()
    assert "devices" not in plain["trainer"]
    for other in (
        "training.optimizer=sgd",
        "training.momentum=0.5",
        "training.compile=true",
        "trainer.devices=2",
    ):
        assert settings_of(other) != plain
    assert settings_of("training.optimizer=sgd") != settings_of(
        "training.optimizer=sgd", "training.momentum=0.5"
    )
    assert settings_of("trainer.devices=1", "trainer=cpu") == plain


def test_the_compiled_encoder_trains_under_its_own_names(monkeypatch):
    compiled = []

    class Compiled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, batch):
            return self.network(batch)

    def compile_(network):
        compiled.append(network)
        return Compiled(network)

    monkeypatch.setattr(torch, "compile", compile_)
    plain, _, _ = fit(16)
    assert not compiled
    module, _, _ = fit(16, compile=True)
    assert compiled == [module.encoder]
    assert module.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(module.trained, plain.trained, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(
        UserError, match=r"needs second derivatives.*torch.compile.*estimator=finite_difference"
    ):
        fit(16, GradMagnitude(strength=1, estimator="exact"), compile=True)


def test_devices_take_whole_batches_of_one_order_and_as_many_each():
    def dealt(count: int, epoch: int) -> list[list[list[int]]]:
        shards = [Shard(EpochShuffle(26, 4, seed=1), index, count) for index in range(count)]
        for shard in shards:
            shard.set_epoch(epoch)
        assert all(len(list(shard)) == len(shard) for shard in shards)
        return [list(shard) for shard in shards]

    whole = dealt(1, 0)[0]
    assert sorted(index for batch in whole for index in batch) == list(range(26))
    first, second = dealt(2, 0)
    assert [*first, *second[:3]] == [whole[i] for i in (0, 2, 4, 6, 1, 3, 5)]
    assert second[3] == whole[0], "one batch twice rather than a device without a step"
    assert dealt(2, 0) == dealt(2, 0) != dealt(2, 1)


def test_each_device_loads_its_own_batches_with_what_the_loader_was_given():
    def loader(rank: int, devices: int):
        data = TaskDataModule(images(20), images(4), 4, seed=3)
        data.trainer = SimpleNamespace(world_size=devices, global_rank=rank)
        return data.train_dataloader()

    whole = [labels.tolist() for _, labels in loader(0, 1)]
    assert [labels.tolist() for _, labels in loader(0, 2)] == [whole[0], whole[2], whole[4]]
    assert [labels.tolist() for _, labels in loader(1, 2)] == [whole[1], whole[3], whole[0]]


SMALL = (
    "task=digits", "model=clip_mini", "task.source.train=96", "task.source.validation=32", "task.source.test=32",
    "training.epochs=2", "logger=csv", "progress=null",
)  # fmt: skip


def card(root: Path, variant: str) -> dict:
    folder = root / f"checkpoints/clip_mini/none-0+{variant}/seed-0/digits"
    return json.loads((folder / "card.json").read_text())


def test_the_card_says_how_fast_on_what_and_how_much_memory(smoke_root, command):
    options = (
        "training.optimizer=sgd",
        "training.accumulate=2",
        "trainer.precision=bf16-mixed",
        "trainer=cpu",
    )
    ended = command("train", *SMALL, *options, "variant=sgd", f"paths.root={smoke_root}")
    assert ended.code == 0, ended.output
    told = card(smoke_root, "sgd")
    assert told["devices"] == 1
    assert told["images_per_second"] > 0
    assert 0.1 < told["peak_memory_gib"] < 64
    assert told["settings"]["training"]["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            ["Out of GPU memory with batch size 32", "training.batch_size=16 training.accumulate=2"],
        ),
        (OSError(errno.ENOSPC, "No space left on device"), ["disk", "is full", "paths.root"]),
    ],
    ids=["memory", "disk"],
)
def test_what_runs_out_is_one_sentence_and_leaves_nothing_half_written(
    smoke_root, command, monkeypatch, tmp_path, error, parts, request
):
    from lightning.fabric.plugins.io import torch_io

    def fail(checkpoint, path):
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torch_io, "_atomic_save", fail)
    variant = f"full-{request.node.callspec.id}"
    # Folders of runs are named by the second, in which two may begin here.
    own = [f"hydra.run.dir={tmp_path / name}" for name in ("first", "second")]
    ended = command("train", *SMALL, f"variant={variant}", f"paths.root={smoke_root}", own[0])
    assert ended.code == 1
    assert "Traceback" not in ended.output
    for part in parts:
        assert part in ended.output, ended.output
    folder = smoke_root / f"checkpoints/clip_mini/none-0+{variant}/seed-0/digits"
    assert not (folder / "card.json").exists()
    if variant == "full-disk":
        assert not list((folder / "unfinished").glob("*.ckpt"))
    monkeypatch.undo()
    assert command("train", *SMALL, f"variant={variant}", f"paths.root={smoke_root}", own[1]).code == 0


def test_another_failure_of_the_system_is_no_full_disk(tmp_path):
    from mergeability.finetuning.run import _resources_named

    with pytest.raises(PermissionError), _resources_named(TrainingSettings(1, 0.1), tmp_path):
        raise PermissionError(errno.EACCES, "denied")


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["none-0", "grad_magnitude-0.01"])
def test_two_processes_train_the_model_that_one_makes_of_the_same_batches(
    smoke_root, tmp_path, command, penalty
):
    root = tmp_path / "outputs"
    (root / "checkpoints/clip_mini").mkdir(parents=True)
    (root / "checkpoints/clip_mini/base").symlink_to(smoke_root / "checkpoints/clip_mini/base")
    arguments = (
        *SMALL, "trainer=cpu", "training.batch_size=8", f"reg.lambda={penalty.partition('-')[2]}",
        f"paths.root={root}", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    # Twelve batches an epoch: six steps of two batches, dealt to two devices or one after the other.
    two = ["trainer.devices=2", "variant=two", f"hydra.run.dir={tmp_path / 'run'}"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments, *two],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert command("train", *arguments, "training.accumulate=2", "variant=one").code == 0
    folders = [root / f"checkpoints/clip_mini/{penalty}+{name}/seed-0/digits" for name in ("one", "two")]
    cards = [json.loads((folder / "card.json").read_text()) for folder in folders]
    assert [card["devices"] for card in cards] == [1, 2]
    assert not (folders[1] / "unfinished").exists()
    one, two = (checkpoints.load(folder / "model.safetensors") for folder in folders)
    base = checkpoints.load(root / "checkpoints/clip_mini/base/model.safetensors")
    apart = sum((two[name] - value).norm() ** 2 for name, value in one.items()) ** 0.5
    moved = sum((base[name] - value).norm() ** 2 for name, value in one.items()) ** 0.5
    assert apart < 0.01 * moved
    metrics = next((tmp_path / "run").rglob("metrics.csv")).read_text()
    assert ",11," in metrics, "steps are counted as Lightning counts them"
