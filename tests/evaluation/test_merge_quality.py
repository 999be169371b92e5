"""Accuracies of models and merges against sums done by hand, and never computed twice."""

import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mergeability import checkpoints
from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.evaluation.accuracy import Judge, pixel_accuracy
from mergeability.evaluation.merge_quality import describe, evaluate_models, evaluate_pairs
from mergeability.merging import Average, Dare, TaskArithmetic, Ties
from mergeability.store import Store
from mergeability.task_vectors import TaskVectors

TASKS = ("red", "green", "blue")


class Encoder(nn.Module):
    """A linear map of the mean colour: features = W · mean pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.zeros(4, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.proj.T


def preprocess(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


@dataclass
class World:
    """Three models of a linear encoder, their heads and images, on disk and as arrays."""

    vectors: TaskVectors
    judge: Judge
    base: np.ndarray
    tuned: dict[str, np.ndarray]
    heads: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, Images] = field(default_factory=dict)

    def accuracy(self, weights: np.ndarray, task: str) -> float:
        """Count by hand."""
        images = self.images[task]
        pixels = images.images.numpy().astype(np.float64).mean((2, 3)) / 255
        features = pixels @ weights.T
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return float(np.mean((features @ self.heads[task].T).argmax(1) == images.labels.numpy()))


@pytest.fixture
def world(tmp_path) -> World:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 3, generator=generator)
    tuned = {task: base + 0.4 * torch.randn(4, 3, generator=generator) for task in TASKS}
    paths = {
        task: checkpoints.save(tmp_path / f"{task}.safetensors", {"visual.proj": weight})
        for task, weight in tuned.items()
    }
    base_path = checkpoints.save(
        tmp_path / "base.safetensors", {"visual.proj": base, "logit_scale": torch.ones(())}
    )
    store = Store(tmp_path / "store")
    vectors = TaskVectors.load(paths, base=base_path, store=store)
    heads = {task: torch.randn(5, 4, generator=generator) for task in TASKS}
    images = {}
    for task in TASKS:
        pixels = torch.randint(0, 256, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
        images[task] = Images(pixels, torch.randint(0, 5, (60,), generator=generator))
    judge = Judge(Encoder(), preprocess, {"scale": 255}, heads, images, store)
    arrays = {task: head.double().numpy() for task, head in heads.items()}
    return World(
        vectors,
        judge,
        base.double().numpy(),
        {t: w.double().numpy() for t, w in tuned.items()},
        arrays,
        images,
    )


def no_progress(items, _description, _total):
    return items


def test_models_and_base_are_measured_on_each_models_own_task(world):
    models = evaluate_models(world.vectors, world.judge)
    assert list(models.index) == list(TASKS)
    for task in TASKS:
        assert models.loc[task, "base_accuracy"] == world.accuracy(world.base, task)
        assert models.loc[task, "finetuned_accuracy"] == world.accuracy(world.tuned[task], task)
        assert models.loc[task, "chance"] == 1 / 5
    assert models["finetuned_accuracy"].nunique() > 1


def test_outcomes_of_pairs_by_hand(world):
    methods = {"average": Average(), "ta": TaskArithmetic()}
    models = evaluate_models(world.vectors, world.judge)
    table = evaluate_pairs(world.vectors, methods, world.judge, models, no_progress)
    assert list(table.index) == [("red", "green"), ("red", "blue"), ("green", "blue")]
    for a, b in table.index:
        row, change = table.loc[(a, b)], (world.tuned[a] - world.base) + (world.tuned[b] - world.base)
        for method, weights in {"average": world.base + change / 2, "ta": world.base + 0.3 * change}.items():
            merged = np.array([world.accuracy(weights, task) for task in (a, b)])
            own = np.array([world.accuracy(world.tuned[task], task) for task in (a, b)])
            zero_shot = np.array([world.accuracy(world.base, task) for task in (a, b)])
            assert row[f"acc_{method}_a"] == merged[0]
            assert row[f"acc_{method}_b"] == merged[1]
            assert row[f"acc_{method}"] == pytest.approx(merged.mean())
            assert row[f"norm_acc_{method}"] == pytest.approx((merged / own).mean())
            assert row[f"norm_acc_{method}_b"] == pytest.approx(merged[1] / own[1])
            assert row[f"kept_gain_{method}"] == pytest.approx(
                ((merged - zero_shot) / (own - zero_shot)).mean()
            )


def test_a_second_evaluation_merges_nothing_and_runs_no_image(world, monkeypatch):
    models = evaluate_models(world.vectors, world.judge)
    first = evaluate_pairs(world.vectors, {"ties": Ties()}, world.judge, models, no_progress)
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("a forward pass"))
    monkeypatch.setattr(Ties, "__call__", lambda *_: pytest.fail("a merge"))
    pd.testing.assert_frame_equal(evaluate_models(world.vectors, world.judge), models)
    again = evaluate_pairs(world.vectors, {"ties": Ties()}, world.judge, models, no_progress)
    pd.testing.assert_frame_equal(again, first)


def test_the_order_of_the_models_reuses_the_merge(world):
    models = evaluate_models(world.vectors, world.judge)
    there = evaluate_pairs(world.vectors, {"m": Average()}, world.judge, models, no_progress)
    computed = world.judge.store.computed["accuracy"]
    turned = world.vectors.select(TASKS[::-1])
    back = evaluate_pairs(turned, {"m": Average()}, world.judge, models, no_progress)
    assert world.judge.store.computed["accuracy"] == computed
    assert back.loc[("blue", "red"), "acc_m_a"] == there.loc[("red", "blue"), "acc_m_b"]


@pytest.mark.parametrize(
    "other",
    [
        TaskArithmetic(alpha=0.4),
        TaskArithmetic(alpha=0.3, **{}),
        Ties(density=0.5),
        Dare(seed=1),
        Dare(then=Ties()),
    ],
)
def test_another_option_is_another_result(world, other):
    models = evaluate_models(world.vectors, world.judge)
    known = {"ta": TaskArithmetic(), "ties": Ties(), "dare": Dare(), "average": Average()}
    evaluate_pairs(world.vectors, known, world.judge, models, no_progress)
    before = world.judge.store.computed["accuracy"]
    evaluate_pairs(world.vectors, {"other": other}, world.judge, models, no_progress)
    computed = world.judge.store.computed["accuracy"] - before
    assert computed == (0 if other == TaskArithmetic() else 6), "two tasks of three pairs"


def test_other_images_or_another_head_are_another_result(world):
    models = evaluate_models(world.vectors, world.judge)
    flipped = {t: Images(i.images.flip(0), i.labels) for t, i in world.images.items()}
    for change in ({"tests": flipped}, {"heads": {t: h.flip(0) for t, h in world.judge.heads.items()}}):
        parts = {"heads": world.judge.heads, "tests": world.images, **change}
        judge = Judge(Encoder(), preprocess, {"scale": 255}, store=world.judge.store, **parts)
        assert not evaluate_models(world.vectors, judge).equals(models)


def test_the_same_weights_under_another_name_are_another_merge_where_masks_depend_on_names(world, tmp_path):
    models = evaluate_models(world.vectors, world.judge)
    evaluate_pairs(world.vectors, {"dare": Dare()}, world.judge, models, no_progress)
    paths = {{"red": "rouge"}.get(task, task): world.vectors.model(task).path for task in TASKS}
    renamed = TaskVectors.load(paths, base=world.vectors.base_checkpoint, store=world.judge.store)
    judge = Judge(
        Encoder(), preprocess, {"scale": 255}, {**world.judge.heads, "rouge": world.judge.heads["red"]},
        {**world.images, "rouge": world.images["red"]}, world.judge.store,
    )  # fmt: skip
    computed = world.judge.store.computed["accuracy"]
    table = models.rename(index={"red": "rouge"})
    evaluate_pairs(renamed.select(["rouge", "green"]), {"dare": Dare()}, judge, table, no_progress)
    assert world.judge.store.computed["accuracy"] - computed == 2


def test_an_interrupted_evaluation_continues_where_it_stopped(world):
    models = evaluate_models(world.vectors, world.judge)
    before = world.judge.store.computed["accuracy"]

    def interrupted(items, _description, _total):
        for position, item in enumerate(items):
            if position == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        evaluate_pairs(world.vectors, {"m": Average()}, world.judge, models, interrupted)
    evaluate_pairs(world.vectors, {"m": Average()}, world.judge, models, no_progress)
    assert world.judge.store.computed["accuracy"] - before == 6, "two tasks of three pairs, each once"


def test_a_method_is_described_with_all_its_options_and_those_inside():
    told = describe(Dare(p=0.5, then=Ties(density=0.1)))
    assert told["p"] == 0.5
    assert told["then"]["density"] == 0.1
    assert told["then"]["method"].endswith("Ties")
    assert json.loads(json.dumps(told)) == told
    assert describe(Dare(then=Average())) != describe(Dare(then=TaskArithmetic(alpha=1.0)))


def test_weights_of_another_architecture_are_refused(world):
    for wrong, parts in (
        ({"visual.proj": torch.zeros(2, 2)}, r"'proj' of shape \(4, 3\).*has \(2, 2\)"),
        ({}, r"'proj' of shape \(4, 3\).*no such tensor"),
        ({"visual.proj": torch.zeros(4, 3), "visual.more": torch.zeros(1)}, "'more' of shape no such tensor"),
        ({"visual.proj": torch.full((4, 3), torch.nan)}, "'proj' of .* holds NaN or Inf"),
    ):
        with pytest.raises(UserError, match=parts):
            world.judge.accuracies({"file": "x"}, lambda wrong=wrong: wrong, ("red",))


def test_a_damaged_record_is_measured_again_with_its_own_weights(world):
    truth = evaluate_models(world.vectors, world.judge)
    path = max(world.judge.store.root.rglob("accuracy/*/*.json"), key=lambda path: path.stat().st_mtime)
    for record in world.judge.store.root.rglob("accuracy/*/*.json"):
        whole = record.read_bytes()
        record.write_bytes(whole[: len(whole) // 2])
        pd.testing.assert_frame_equal(evaluate_models(world.vectors, world.judge), truth)
    assert path.exists()


def test_the_configuration_of_the_encoder_is_part_of_the_key(world):
    evaluate_models(world.vectors, world.judge)
    before = world.judge.store.computed["accuracy"]
    other = Judge(Encoder(), preprocess, {"scale": 1}, world.judge.heads, world.images, world.judge.store)
    evaluate_models(world.vectors, other)
    assert world.judge.store.computed["accuracy"] == 2 * before


def test_pixel_baseline_learns_what_pixels_tell_and_is_kept(tmp_path):
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    pixels = torch.randint(0, 200, (80, 3, 4, 4), generator=generator, dtype=torch.uint8)
    pixels[:, 0] += (labels * 40).to(torch.uint8)[:, None, None]
    every = Images(pixels, labels)
    store = Store(tmp_path)
    found = pixel_accuracy(every[:50], every[50:60], every[60:], store)

    def flat(images: Images) -> np.ndarray:
        return images.images.numpy().reshape(len(images), -1) / 127.5 - 1

    models = [
        LogisticRegression(C=C, max_iter=5000).fit(flat(every[:50]), every[:50].labels.numpy())
        for C in (1e-3, 1e-2)
    ]
    best = max(models, key=lambda model: model.score(flat(every[50:60]), every[50:60].labels.numpy()))
    assert found == pytest.approx(best.score(flat(every[60:]), every[60:].labels.numpy()), abs=0.051)
    assert found > 0.7
    pixel_accuracy(every[:50], every[50:60], every[60:], store)
    assert (store.computed["pixel_accuracy"], store.found["pixel_accuracy"]) == (1, 1)
