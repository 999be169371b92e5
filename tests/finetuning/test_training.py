"""The Lightning module on a small encoder: schedule, penalties inside a fit, accumulation, resuming."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.files import digest, write_text
from mergeability.finetuning.data import EpochShuffle, TaskDataModule
from mergeability.finetuning.module import (
    FineTuningModule,
    TrainingSettings,
    _mean_over_devices,
    cosine_with_warmup,
)
from mergeability.finetuning.objective import Step, cross_entropy, squared_norm
from mergeability.finetuning.penalties.grad_magnitude import GradMagnitude
from mergeability.finetuning.penalties.l2_to_init import L2ToInit
from mergeability.finetuning.penalties.subspace import Subspace
from mergeability.finetuning.penalties.weighted_sum import WeightedSum
from mergeability.finetuning.resume import differing, finished_card
from mergeability.finetuning.run import _resume_from, _spread, saver_of_each_epoch

FOLDER = Path(__file__).parents[2] / "conf" / "reg"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def configured(name: str, strength: float, **changes: object):
    """The penalty of a configuration, with as few singular vectors as small matrices have."""
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    config["lambda"] = strength
    for part in (config.penalty or {}, *(config.penalty or {}).get("terms", {}).values()):
        part.update({key: value for key, value in {"k": 2, **changes}.items() if key in part})
    return instantiate(OmegaConf.create({"reg": config}).reg.penalty, _convert_="all")


def preprocess(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def images(count: int = 24) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def encoder() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.GELU(), nn.Linear(6, 4))
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network


HEAD = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)) * 3


def fit(
    penalty=None,
    *,
    train=None,
    epochs=2,
    batch_size=8,
    accumulate=1,
    clip=1.0,
    until=None,
    resume=None,
    folder=None,
    watch=None,
    kind=FineTuningModule,
    precision="32-true",
):
    settings = TrainingSettings(
        epochs=epochs, learning_rate=1e-2, batch_size=batch_size, accumulate=accumulate, gradient_clip=clip
    )
    module = kind(encoder(), HEAD, preprocess, settings, penalty)
    callbacks = []
    if folder is not None:
        callbacks = [saver_of_each_epoch(folder)]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        precision=precision,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    if watch is not None:
        trainer.callbacks.append(watch)
    if until is not None:
        trainer.callbacks.append(Killer(until))
    data = TaskDataModule(train or images(), images(6), batch_size, seed=0)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


class Killer(pl.Callback):
    """Ends a fit in the middle of an epoch, as a kill would, after the epoch before it was saved."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.current_epoch == self.epoch:
            raise ChildProcessError


def weights(module: FineTuningModule) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.trained])


def contradicting_images(count: int) -> Images:
    """Four images again and again under random labels: no weights make every batch's gradient vanish."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Images(pixels.repeat(-(-count // 4), 1, 1, 1)[:count], labels)


def batch_gradient_norm(module: FineTuningModule, every: Images, batch_size: int = 8) -> float:
    """Root mean square of ‖∇θ L‖ over batches."""
    squares = []
    for start in range(0, len(every), batch_size):
        batch = every[start : start + batch_size]
        loss, _ = cross_entropy(module.encoder, HEAD, preprocess(batch.images), batch.labels)
        squares.append(squared_norm(torch.autograd.grad(loss, module.trained)).item())
    return (sum(squares) / len(squares)) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_is_plain_fine_tuning_bit_for_bit(name):
    module = fit(configured(name, 0))
    assert module.penalty is None, "and costs nothing"
    assert torch.equal(weights(module), weights(fit(None)))
    if name != "none":
        assert not torch.equal(weights(fit(configured(name, 1))), weights(module)), (
            "and a strength does something"
        )


@pytest.mark.parametrize("estimator", ["finite_difference", "exact"])
def test_gradient_magnitude_ends_at_other_weights_with_smaller_gradients(estimator):
    every = contradicting_images(24)
    trained = [
        fit(GradMagnitude(strength=s, estimator=estimator), epochs=8, train=every) for s in (0, 0.01, 1)
    ]
    norms = [batch_gradient_norm(module, every) for module in trained]
    assert not torch.equal(weights(trained[0]), weights(trained[1]))
    assert norms[1] < 0.9 * norms[0]
    assert norms[2] < 0.8 * norms[0]


def test_the_two_estimators_train_alike():
    plain = weights(fit())
    exact = weights(fit(GradMagnitude(strength=1, estimator="exact")))
    finite = weights(fit(GradMagnitude(strength=1)))
    assert (finite - exact).norm() < 0.05 * (exact - plain).norm()


def test_distance_to_the_base_shrinks_with_strength():
    start = torch.cat([parameter.detach().flatten() for parameter in encoder().parameters()])
    distances = [(weights(fit(L2ToInit(strength=s), epochs=6)) - start).norm() for s in (0, 0.1, 10)]
    assert distances[0] > distances[1] > distances[2]


@dataclass
class Constant:
    """A penalty whose gradient is known: λ for every entry."""

    strength: float = 0.5
    name: str = "constant"
    second_order: bool = False

    def constants(self, initial):
        return {}

    def gradients(self, step: Step):
        plain = torch.autograd.grad(step.loss, step.parameters)
        return tuple(g + self.strength for g in plain), torch.tensor(1.0)


class FirstGradient(pl.Callback):
    """Remembers the gradient that the first optimiser step sees, before clipping."""

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == 0:
            self.gradient = torch.cat([p.grad.flatten().clone() for p in module.trained])


@pytest.mark.parametrize("penalty", [None, L2ToInit(strength=0.3), Constant(strength=0.5)])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(penalty):
    # Means of equal micro-batches average to the mean of the whole, penalty included. Gradients, not weights,
    # are compared: AdamW's steps hardly depend on the gradient's scale.
    whole, parts = FirstGradient(), FirstGradient()
    fit(penalty, batch_size=8, epochs=1, watch=whole)
    fit(penalty, batch_size=4, accumulate=2, epochs=1, watch=parts)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-4, atol=1e-6)


def test_clipping_sees_the_penalty_too():
    class Watch(FineTuningModule):
        def configure_gradient_clipping(self, *arguments, **options) -> None:
            before = squared_norm([p.grad for p in self.trained]).sqrt().item()
            super().configure_gradient_clipping(*arguments, **options)
            self.norms = before, squared_norm([p.grad for p in self.trained]).sqrt().item()

    settings = TrainingSettings(epochs=1, learning_rate=1e-2, batch_size=8)
    module = Watch(encoder(), HEAD, preprocess, settings, Constant(strength=100))
    trainer = pl.Trainer(
        max_epochs=1, gradient_clip_val=0.5, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=TaskDataModule(images(8), images(6), 8))
    # 100 in every entry, beside which the loss's own gradient is small.
    assert module.norms[0] == pytest.approx(100 * len(weights(module)) ** 0.5, rel=0.02)
    assert module.norms[1] == pytest.approx(0.5, rel=1e-3)


class Watched(FineTuningModule):
    """Remembers, of every step, its micro-batches and weights, and the gradient before and after clipping."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.batches, self.steps = [], []

    def training_step(self, batch, batch_index):
        self.batches.append(batch)
        return super().training_step(batch, batch_index)

    def configure_gradient_clipping(self, *arguments, **options) -> None:
        before = [parameter.grad.clone() for parameter in self.trained]
        super().configure_gradient_clipping(*arguments, **options)
        after = [parameter.grad.clone() for parameter in self.trained]
        here = [parameter.detach().clone() for parameter in self.trained]
        self.steps.append(
            (self.batches, here, *(torch.cat([g.flatten() for g in part]) for part in (before, after)))
        )
        self.batches = []


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, {}) for name in NAMES if name != "none"] + [("grad_magnitude", {"estimator": "exact"})],
)
def test_a_step_takes_the_mean_over_micro_batches_and_clips_it_with_the_penalty(name, changes):
    penalty = configured(name, 5, **changes)
    module = fit(penalty, batch_size=4, accumulate=2, clip=0.25, epochs=1, kind=Watched)
    # Not the first step: at the base, penalties on the change are zero.
    batches, here, before, after = module.steps[1]
    network = encoder()
    parameters = list(network.parameters())
    initial = [parameter.detach().clone() for parameter in parameters]
    for parameter, value in zip(parameters, here, strict=True):
        parameter.data.copy_(value)
    found, plain = [], []
    for pictures, labels in batches:

        def loss(pictures=pictures, labels=labels) -> torch.Tensor:
            return cross_entropy(network, HEAD, preprocess(pictures), labels)[0]

        step = Step(loss(), loss, parameters, initial, constants=penalty.constants(initial))
        found.append(torch.cat([g.flatten() for g in penalty.gradients(step)[0]]))
        plain.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters)]))
    assert len(found) == 2
    expected, without = sum(found) / 2, sum(plain) / 2
    assert (expected - without).norm() > 0.02 * without.norm(), "the penalty must matter here"
    torch.testing.assert_close(before, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert before.norm() > 0.25
    torch.testing.assert_close(after, before * (0.25 / before.norm()), rtol=1e-4, atol=1e-7)


def test_under_16_bits_both_passes_are_short_and_the_step_between_them_is_longer():
    module = fit(GradMagnitude(strength=0.1), clip=1e9, epochs=1, kind=Watched, precision="bf16-mixed")
    ((pictures, labels),), here, before, _ = module.steps[0]
    network = encoder()
    parameters = list(network.parameters())
    for parameter, value in zip(parameters, here, strict=True):
        parameter.data.copy_(value)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(network, HEAD, preprocess(pictures), labels)[0]

    def gradient(radius: float) -> torch.Tensor:
        step = Step(loss(), loss, parameters, parameters)
        found, _ = GradMagnitude(strength=0.1, radius=radius).gradients(step)
        return torch.cat([g.flatten() for g in found])

    torch.testing.assert_close(before, gradient(1e-2), rtol=1e-3, atol=1e-4 * before.abs().max().item())
    assert (before - gradient(1e-3)).norm() > 0.02 * before.norm()


def test_scaled_gradients_are_refused(monkeypatch):
    """Only a GPU trains under 16-mixed; the module refuses it before the first step."""
    module = FineTuningModule(encoder(), HEAD, preprocess, TrainingSettings(1, 1e-2), L2ToInit(strength=1))
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(precision="16-mixed"))
    with pytest.raises(
        UserError, match=r"16-mixed, because this precision scales gradients.*bf16-mixed or 32-true"
    ):
        module.on_fit_start()


def test_a_penalty_that_is_not_finite_stops_the_training_and_says_where():
    @dataclass
    class Broken(Constant):
        def gradients(self, step):
            return super().gradients(step)[0], torch.tensor(math.nan)

    with pytest.raises(UserError, match=r"penalty constant became nan at step 0"):
        fit(Broken())


def beside_another_device(monkeypatch, other) -> None:
    """Stand in for a second process: what it would add to the sum is made of what this one brings."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(other(flat)))


def test_devices_share_the_mean_of_gradients_and_of_values(monkeypatch):
    beside_another_device(monkeypatch, lambda flat: torch.arange(len(flat)).to(flat))
    gradients = [torch.ones(2, 3), torch.full((2,), 5.0)]
    found, values = _mean_over_devices(gradients, {"term": torch.tensor(7.0), "sum": torch.tensor(9.0)})
    # The other device brought 0 to 5, 6 and 7, then 8 and 9.
    assert found[0].tolist() == [[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]]
    assert found[1].tolist() == [5.5, 6.0]
    assert {name: value.item() for name, value in values.items()} == {"term": 7.5, "sum": 9.0}


@pytest.mark.parametrize(
    ("position", "named"), [(-1, "penalty constant became nan"), (0, "gradient with the penalty")]
)
def test_a_device_stops_where_only_another_one_has_no_finite_value(monkeypatch, position, named):
    def other(flat: torch.Tensor) -> torch.Tensor:
        found = flat.clone()
        found[position] = math.nan
        return found

    module = FineTuningModule(encoder(), HEAD, preprocess, TrainingSettings(1, 1e-2), Constant(strength=1))
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, precision="32-true", global_step=3)
    monkeypatch.setattr(module, "log", lambda *_: None)
    beside_another_device(monkeypatch, other)
    loss, _ = cross_entropy(module.encoder, HEAD, preprocess(images(8).images), images(8).labels)
    with pytest.raises(UserError, match=rf"{named}.* at step 3"):
        module.backward(loss)
    assert all(parameter.grad is None for parameter in module.trained)


def test_a_gradient_that_is_not_finite_stops_the_training_and_the_last_good_state_stays(tmp_path):
    @dataclass
    class Broken(Constant):
        calls: int = 0

        def gradients(self, step):
            self.calls += 1
            (first, *rest), value = super().gradients(step)
            if self.calls > 4:  # The second step of the second epoch.
                first[0, 0] = math.inf
            return (first, *rest), value

    with pytest.raises(UserError, match=r"gradient with the penalty constant became NaN or Inf at step 4"):
        fit(Broken(), folder=tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())


def test_what_follows_from_the_base_moves_with_the_module_and_stays_out_of_checkpoints(tmp_path):
    module = fit(Subspace(strength=1, k=2), folder=tmp_path)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in kept if "constant" in name or "initial" in name]
    constants = {name: tensor for name, tensor in module.named_buffers() if name.startswith("constant/")}
    # Two matrices, the first and third of four parameters.
    assert sorted(constants) == [f"constant/{side}/{index}" for side in ("left", "right") for index in (0, 2)]
    module.to("meta")
    assert all(module.get_buffer(name).is_meta for name in constants)


def test_a_sum_of_penalties_logs_each_term():
    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_) -> None:
            self.logged = dict(trainer.callback_metrics)

    watch, penalty = Watch(), configured("mergeability", 1)
    fit(penalty, watch=watch)
    values = {name: watch.logged[f"penalty/{name}"].item() for name in ("mergeability", *penalty.terms)}
    assert values.pop("mergeability") == pytest.approx(sum(values.values()) / 4, rel=1e-5)


def test_a_term_that_is_not_finite_is_named():
    @dataclass(frozen=True)
    class Broken(L2ToInit):
        name: str = "broken"

        def gradients(self, step):
            return super().gradients(step)[0], torch.tensor(math.nan)

    with pytest.raises(UserError, match=r"penalty broken became nan at step 0"):
        fit(WeightedSum({"one": L2ToInit(strength=1), "two": Broken(strength=1)}, strength=1))


def test_a_killed_training_continues_to_the_same_weights(tmp_path):
    undisturbed = weights(fit(GradMagnitude(strength=1), epochs=4))
    with pytest.raises(ChildProcessError):
        fit(GradMagnitude(strength=1), epochs=4, until=2, folder=tmp_path)
    resumed = fit(GradMagnitude(strength=1), epochs=4, resume=tmp_path / "last.ckpt", folder=tmp_path)
    assert torch.equal(weights(resumed), undisturbed)


def test_epochs_have_their_own_order_that_depends_on_the_seed_alone():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochShuffle(10, 4, seed)
        sampler.set_epoch(epoch)
        return [index for batch in sampler for index in batch]

    assert sorted(order(0, 0)) == list(range(10))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert len(EpochShuffle(10, 4, 0)) == len(list(EpochShuffle(10, 4, 0))) == 3


def test_schedule_warms_up_linearly_and_ends_at_zero():
    rates = [cosine_with_warmup(step, total=100, warmup=10) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1)
    assert rates[40] == pytest.approx(0.75)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:]))


def test_cross_entropy_is_that_of_scaled_cosines():
    network, every = encoder(), images()
    loss, logits = cross_entropy(network, HEAD, preprocess(every.images), every.labels)
    features = network(preprocess(every.images)).detach().double().numpy()
    import numpy as np
    from scipy.special import log_softmax

    cosines = features / np.linalg.norm(features, axis=1, keepdims=True) @ HEAD.double().numpy().T
    np.testing.assert_allclose(logits.detach().numpy(), cosines, rtol=1e-4, atol=1e-5)
    expected = -log_softmax(cosines, axis=1)[np.arange(24), every.labels.numpy()].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}])
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(UserError, match="must be positive"):
        TrainingSettings(**{"epochs": 1, "learning_rate": 0.1, **wrong})


def test_a_finished_training_is_recognised_and_another_one_names_what_differs(tmp_path):
    import json

    settings = {"training": {"learning_rate": 0.1}, "seed": 0}
    assert finished_card(tmp_path, settings) is None
    card = {"settings": settings, "settings_hash": digest(settings)}
    write_text(tmp_path / "card.json", json.dumps(card))
    assert finished_card(tmp_path, settings) is None, "a card without its weights"
    (tmp_path / "model.safetensors").touch()
    assert finished_card(tmp_path, {"seed": 0, "training": {"learning_rate": 0.1}}) == card
    with pytest.raises(UserError, match=r"training\.learning_rate \(there 0\.1, now 0\.2\).*variant=<name>"):
        finished_card(tmp_path, {"training": {"learning_rate": 0.2}, "seed": 0})
    assert finished_card(tmp_path, {"seed": 1}, overwrite=True) is None
    write_text(tmp_path / "card.json", json.dumps({**card, "head_sha256": "0"}))
    assert finished_card(tmp_path, settings) is None, "a card without its head"
    assert differing({"a": {"b": 1}}, {"a": {"b": 1}, "c": 2}) == ["c (there 2, now None)"]


def test_an_unfinished_state_is_taken_up_only_if_whole_and_of_the_same_settings(tmp_path, caplog):
    folder, settings = tmp_path / "unfinished", {"seed": 0}
    assert _resume_from(folder, settings) is None
    torch.save({"epoch": 1}, folder / "last.ckpt")
    assert _resume_from(folder, settings) == folder / "last.ckpt"
    assert _resume_from(folder, {"seed": 1}) is None
    assert not (folder / "last.ckpt").exists(), "another training's state"
    torch.save({"epoch": 1}, folder / "last.ckpt")
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    assert _resume_from(folder, {"seed": 1}) is None
    assert "damaged" in caplog.text


def test_some_training_images_are_of_all_classes():
    """Datasets are sorted by class: the first images would be of one."""
    labels = torch.arange(10).repeat_interleave(30)
    sorted_by_class = Images(torch.zeros(300, 3, 2, 2, dtype=torch.uint8), labels)
    some = _spread(sorted_by_class, 20)
    assert some.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert _spread(sorted_by_class, 300) is sorted_by_class
