"""Accuracies of models and merges against sums done by hand, and never computed twice."""

import dataclasses
import itertools
import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.data.tasks import Images
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator, pixel_accuracy
from mergeability.evaluation.intervals import accuracy_variance, ratio_variance
from mergeability.evaluation.merge import Recalibration, describe
from mergeability.evaluation.merges import Evaluation, evaluate_models
from mergeability.evaluation.outcome_tables import pair_table, set_table
from mergeability.evaluation.scales import ScaleChoice
from mergeability.merging import Average, Dare, IsoC, TaskArithmetic, Ties
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints

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
    evaluator: Evaluator
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
    evaluator = Evaluator(Encoder(), preprocess, {"scale": 255}, heads, images, store)
    arrays = {task: head.double().numpy() for task, head in heads.items()}
    return World(
        vectors,
        evaluator,
        base.double().numpy(),
        {t: w.double().numpy() for t, w in tuned.items()},
        arrays,
        images,
    )


def no_progress(items, _description, _total):
    return items


def evaluate_pairs(vectors, methods, evaluator, models, progress=no_progress, **options) -> pd.DataFrame:
    pairs = list(itertools.combinations(vectors.tasks, 2))
    outcomes = Evaluation(vectors, evaluator, models, **options).sets(methods, pairs, Run(progress=progress))
    return pair_table(outcomes.accuracies)


def test_models_and_base_are_measured_on_each_models_own_task(world):
    models = evaluate_models(world.vectors, world.evaluator)
    assert list(models.index) == list(TASKS)
    for task in TASKS:
        assert models.loc[task, "base_accuracy"] == world.accuracy(world.base, task)
        assert models.loc[task, "finetuned_accuracy"] == world.accuracy(world.tuned[task], task)
        assert models.loc[task, "chance"] == 1 / 5
    assert models["finetuned_accuracy"].nunique() > 1


def test_outcomes_of_pairs_by_hand(world):
    methods = {"average": Average(), "ta": TaskArithmetic()}
    models = evaluate_models(world.vectors, world.evaluator)
    table = evaluate_pairs(world.vectors, methods, world.evaluator, models)
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
    models = evaluate_models(world.vectors, world.evaluator)
    first = evaluate_pairs(world.vectors, {"ties": Ties()}, world.evaluator, models)
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("a forward pass"))
    monkeypatch.setattr(Ties, "__call__", lambda *_: pytest.fail("a merge"))
    pd.testing.assert_frame_equal(evaluate_models(world.vectors, world.evaluator), models)
    again = evaluate_pairs(world.vectors, {"ties": Ties()}, world.evaluator, models)
    pd.testing.assert_frame_equal(again, first)


def test_the_order_of_the_models_reuses_the_merge(world):
    models = evaluate_models(world.vectors, world.evaluator)
    there = evaluate_pairs(world.vectors, {"m": Average()}, world.evaluator, models)
    computed = world.evaluator.store.computed["accuracy"]
    turned = world.vectors.select(TASKS[::-1])
    back = evaluate_pairs(turned, {"m": Average()}, world.evaluator, models)
    assert world.evaluator.store.computed["accuracy"] == computed
    assert back.loc[("blue", "red"), "acc_m_a"] == there.loc[("red", "blue"), "acc_m_b"]


@pytest.mark.parametrize(
    "other",
    [
        TaskArithmetic(alpha=0.4),
        TaskArithmetic(alpha=0.3, **{}),
        Ties(density=0.5),
        Dare(seed=1),
        Dare(then=Ties()),
        Ties(alpha=1),
    ],
)
def test_another_option_is_another_result(world, other):
    models = evaluate_models(world.vectors, world.evaluator)
    known = {"ta": TaskArithmetic(), "ties": Ties(), "dare": Dare(), "average": Average()}
    evaluate_pairs(world.vectors, known, world.evaluator, models)
    before = world.evaluator.store.computed["accuracy"]
    evaluate_pairs(world.vectors, {"other": other}, world.evaluator, models)
    computed = world.evaluator.store.computed["accuracy"] - before
    assert computed == (0 if other in (TaskArithmetic(), Ties()) else 6), "two tasks of three pairs"


def test_other_images_or_another_head_are_another_result(world):
    models = evaluate_models(world.vectors, world.evaluator)
    flipped = {t: Images(i.images.flip(0), i.labels) for t, i in world.images.items()}
    for change in ({"tests": flipped}, {"heads": {t: h.flip(0) for t, h in world.evaluator.heads.items()}}):
        parts = {"heads": world.evaluator.heads, "tests": world.images, **change}
        evaluator = Evaluator(Encoder(), preprocess, {"scale": 255}, store=world.evaluator.store, **parts)
        assert not evaluate_models(world.vectors, evaluator).equals(models)


def test_the_same_weights_under_another_name_are_another_merge_where_masks_depend_on_names(world, tmp_path):
    models = evaluate_models(world.vectors, world.evaluator)
    evaluate_pairs(world.vectors, {"dare": Dare()}, world.evaluator, models)
    paths = {{"red": "rouge"}.get(task, task): world.vectors.model(task).path for task in TASKS}
    renamed = TaskVectors.load(paths, base=world.vectors.base_checkpoint, store=world.evaluator.store)
    evaluator = Evaluator(
        Encoder(), preprocess, {"scale": 255}, {**world.evaluator.heads, "rouge": world.evaluator.heads["red"]},
        {**world.images, "rouge": world.images["red"]}, world.evaluator.store,
    )  # fmt: skip
    computed = world.evaluator.store.computed["accuracy"]
    table = models.rename(index={"red": "rouge"})
    evaluate_pairs(renamed.select(["rouge", "green"]), {"dare": Dare()}, evaluator, table)
    assert world.evaluator.store.computed["accuracy"] - computed == 2


def test_an_interrupted_evaluation_continues_where_it_stopped(world):
    models = evaluate_models(world.vectors, world.evaluator)
    before = world.evaluator.store.computed["accuracy"]

    def interrupted(items, _description, _total):
        for position, item in enumerate(items):
            if position == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        evaluate_pairs(world.vectors, {"m": Average()}, world.evaluator, models, interrupted)
    evaluate_pairs(world.vectors, {"m": Average()}, world.evaluator, models)
    assert world.evaluator.store.computed["accuracy"] - before == 6, "two tasks of three pairs, each once"


def test_a_method_is_described_with_all_its_options_and_those_inside():
    told = describe(Dare(p=0.5, then=Ties(density=0.1)))
    assert told["p"] == 0.5
    assert told["then"]["density"] == 0.1
    assert told["then"]["method"].endswith("Ties")
    assert json.loads(json.dumps(told)) == told
    assert describe(Dare(then=Average())) != describe(Dare(then=TaskArithmetic(alpha=1.0)))


def test_a_method_with_an_option_that_no_record_can_hold_is_refused():
    @dataclass(frozen=True)
    class Own:
        layers: list

    with pytest.raises(UserError, match="numbers, text or methods, got list"):
        describe(Own([1, 2]))


def test_weights_of_another_architecture_are_refused(world):
    for wrong, parts in (
        ({"visual.proj": torch.zeros(2, 2)}, r"'proj' of shape \(4, 3\).*has \(2, 2\)"),
        ({}, r"'proj' of shape \(4, 3\).*no such tensor"),
        ({"visual.proj": torch.zeros(4, 3), "visual.more": torch.zeros(1)}, "'more' of shape no such tensor"),
        ({"visual.proj": torch.full((4, 3), torch.nan)}, "'proj' of .* contains NaN or Inf"),
    ):
        with pytest.raises(UserError, match=parts):
            world.evaluator.accuracies({"file": "x"}, lambda wrong=wrong: wrong, ("red",))


def test_a_damaged_record_is_measured_again_with_its_own_weights(world):
    truth = evaluate_models(world.vectors, world.evaluator)
    path = max(world.evaluator.store.root.rglob("accuracy/*/*.json"), key=lambda path: path.stat().st_mtime)
    for record in world.evaluator.store.root.rglob("accuracy/*/*.json"):
        whole = record.read_bytes()
        record.write_bytes(whole[: len(whole) // 2])
        pd.testing.assert_frame_equal(evaluate_models(world.vectors, world.evaluator), truth)
    assert path.exists()


def test_the_configuration_of_the_encoder_is_part_of_the_key(world):
    evaluate_models(world.vectors, world.evaluator)
    before = world.evaluator.store.computed["accuracy"]
    other = Evaluator(
        Encoder(), preprocess, {"scale": 1}, world.evaluator.heads, world.images, world.evaluator.store
    )
    evaluate_models(world.vectors, other)
    assert world.evaluator.store.computed["accuracy"] == 2 * before


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


def test_one_direction_serves_every_scale(world):
    """By hand: the merged weights are base + α·mean(τ), whichever way α was asked for."""
    models = evaluate_models(world.vectors, world.evaluator)
    computed = {}
    for alpha in (0.3, 0.9):
        table = evaluate_pairs(
            world.vectors, {"m": Average()}, world.evaluator, models, scales=ScaleChoice(alpha)
        )
        computed[alpha] = table
        for a, b in table.index:
            change = (world.tuned[a] - world.base) + (world.tuned[b] - world.base)
            assert table.loc[(a, b), "acc_m_a"] == world.accuracy(world.base + alpha * change / 2, a)
            assert table.loc[(a, b), "alpha_m"] == alpha
    before = world.evaluator.store.computed["accuracy"]
    # Another method object whose own scale is one that was tried.
    again = evaluate_pairs(world.vectors, {"m": Average(alpha=0.9)}, world.evaluator, models)
    assert world.evaluator.store.computed["accuracy"] == before
    pd.testing.assert_frame_equal(again, computed[0.9])


def tuning_judge(world) -> Evaluator:
    validation = {t: Images(i.images[:30], i.labels[:30].flip(0)) for t, i in world.images.items()}
    return dataclasses.replace(world.evaluator, validation=validation)


def test_the_tuned_scale_is_the_best_on_validation_images_by_hand(world):
    evaluator, grid = tuning_judge(world), (0.2, 0.6, 1.0, 1.6)
    models = evaluate_models(world.vectors, evaluator)
    pairs = list(itertools.combinations(TASKS, 2))
    evaluation = Evaluation(world.vectors, evaluator, models, ScaleChoice("both", grid))
    outcomes = evaluation.sets({"m": TaskArithmetic()}, pairs)
    assert outcomes.methods == ["m", "m_tuned"]
    table = pair_table(outcomes.accuracies)
    world.images = evaluator.validation
    chosen = {}
    for pair in pairs:
        change = sum(world.tuned[task] - world.base for task in pair)
        means = [
            np.mean(
                [
                    world.accuracy(world.base + alpha * change, task)
                    / world.accuracy(world.tuned[task], task)
                    for task in pair
                ]
            )
            for alpha in grid
        ]
        chosen[pair] = grid[int(np.argmax(means))]
        curve = outcomes.curves[outcomes.curves["tasks"] == "+".join(pair)]
        np.testing.assert_allclose(curve.groupby("alpha")["norm_accuracy"].mean(), means)
        assert set(curve.loc[curve["chosen"], "alpha"]) == {chosen[pair]}
    assert table["alpha_m_tuned"].to_dict() == chosen
    assert len(set(chosen.values())) > 1, "else this test shows little"
    assert (table["alpha_m"] == 0.3).all()
    world.images = evaluator.tests
    for pair in pairs:
        change = sum(world.tuned[task] - world.base for task in pair)
        measured = world.accuracy(world.base + chosen[pair] * change, pair[0])
        assert table.loc[pair, "acc_m_tuned_a"] == measured, "reported on the test images"


def test_each_merge_is_made_once_whatever_the_number_of_scales(world, monkeypatch):
    evaluator, calls = tuning_judge(world), []
    models = evaluate_models(world.vectors, evaluator)
    merge = TaskArithmetic.__call__
    monkeypatch.setattr(TaskArithmetic, "__call__", lambda self, v: calls.append(v.tasks) or merge(self, v))
    evaluation = Evaluation(world.vectors, evaluator, models, ScaleChoice("both", (0.5, 1.0)))
    first = evaluation.sets({"m": TaskArithmetic()}, [("red", "green"), TASKS])
    assert calls == [("red", "green"), TASKS]
    again = evaluation.sets({"m": TaskArithmetic()}, [("red", "green"), TASKS])
    assert len(calls) == 2, "everything was found in the store"
    pd.testing.assert_frame_equal(first.accuracies, again.accuracies)
    wider = Evaluation(world.vectors, evaluator, models, ScaleChoice("both", (0.5, 1.0, 1.5)))
    before = evaluator.store.computed["accuracy"]
    wider.sets({"m": TaskArithmetic()}, [("red", "green")])
    assert evaluator.store.computed["accuracy"] - before in (2, 4), (
        "one more scale on two tasks, and its test"
    )


def test_a_tuned_method_that_prefers_an_end_of_the_grid_is_named(world):
    evaluator = tuning_judge(world)
    models = evaluate_models(world.vectors, evaluator)
    evaluation = Evaluation(world.vectors, evaluator, models, ScaleChoice("tuned", (0.1,)))
    outcomes = evaluation.sets({"m": Average()}, [("red", "green")])
    assert outcomes.notes == [
        "m: the best α was the first or the last of the grid for 1 of 1 merges. A wider alpha_grid may give better merges."
    ]


def test_outcomes_of_larger_sets_by_hand(world):
    models = evaluate_models(world.vectors, world.evaluator)
    evaluation = Evaluation(world.vectors, world.evaluator, models)
    outcomes = evaluation.sets({"m": Average()}, [TASKS, ("red", "blue")])
    table = set_table(outcomes.accuracies)
    assert table["tasks"].tolist() == ["red+green+blue", "red+blue"]
    assert table["arity"].tolist() == [3, 2]
    merged = world.base + sum(world.tuned[task] - world.base for task in TASKS) / 3
    found = np.array([world.accuracy(merged, task) for task in TASKS])
    own = np.array([world.accuracy(world.tuned[task], task) for task in TASKS])
    row = table.iloc[0]
    assert row["acc_m"] == pytest.approx(found.mean())
    assert row["norm_acc_m"] == pytest.approx((found / own).mean())
    assert row["worst_norm_acc_m"] == pytest.approx((found / own).min())


def test_intervals_where_only_part_of_the_images_is_looked_at(world):
    evaluator = dataclasses.replace(world.evaluator, subset=40)
    models = evaluate_models(world.vectors, evaluator)
    table = evaluate_pairs(world.vectors, {"m": Average()}, evaluator, models)
    whole = evaluate_pairs(
        world.vectors, {"m": Average()}, world.evaluator, evaluate_models(world.vectors, world.evaluator)
    )
    assert not any(column.startswith(("low", "high")) for column in whole.columns)
    for pair in table.index:
        merge = Evaluation(world.vectors, evaluator, models).merge(pair, Average())
        merged = evaluator.hits(merge.weights(1.0), lambda merge=merge: merge.state(1.0), pair)
        tuned = {
            t: evaluator.hits(
                {"file": world.vectors.hashes[t]}, lambda t=t: world.vectors.model(t).state_dict(), (t,)
            )[t]
            for t in pair
        }
        assert {len(hits) for hits in merged.values()} == {40}
        for target, variances in {
            "acc": [accuracy_variance(merged[t]) for t in pair],
            "norm_acc": [ratio_variance(merged[t], tuned[t]) for t in pair],
        }.items():
            margin = 1.96 * np.sqrt(sum(variances)) / 2
            middle = table.loc[pair, f"{target}_m"]
            assert table.loc[pair, f"low_{target}_m"] == pytest.approx(middle - margin, rel=1e-3)
            assert table.loc[pair, f"high_{target}_m"] == pytest.approx(middle + margin, rel=1e-3)


def test_other_cuts_of_the_tensors_are_another_merge(tmp_path, world):
    """A matrix-wise method sees other matrices in arranged task vectors, and its result is filed apart."""
    names = ("visual.attn.in_proj_weight", "visual.ln")
    generator = torch.Generator().manual_seed(5)
    states = [
        {names[0]: torch.randn(6, 3, generator=generator), names[1]: torch.randn(3, generator=generator)}
        for _ in range(3)
    ]
    paths = [checkpoints.save(tmp_path / f"{index}.safetensors", state) for index, state in enumerate(states)]
    vectors = TaskVectors.load({"a": paths[1], "b": paths[2]}, paths[0], refuse_above=99)
    evaluation = Evaluation(vectors, world.evaluator, pd.DataFrame())
    plain = evaluation.merge(("a", "b"), IsoC())
    cut = dataclasses.replace(evaluation, task_vectors=vectors.with_layout(split_qkv=True)).merge(
        ("a", "b"), IsoC()
    )
    assert plain.weights(1.0) != cut.weights(1.0)
    assert cut.direction.keys() == plain.direction.keys() == set(names)
    assert not torch.allclose(cut.direction[names[0]], plain.direction[names[0]])
    total = sum(state[names[0]] - states[0][names[0]] for state in states[1:]).numpy()
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        U, S, Vh = np.linalg.svd(total[rows], full_matrices=False)
        np.testing.assert_allclose(cut.direction[names[0]][rows], S.mean() * U @ Vh, atol=1e-5)


def test_batch_norm_statistics_of_a_merge_are_made_anew(tmp_path):
    """By hand: after merging, the running mean is that of the merged layer's inputs, not the models' average."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 2, 1, bias=False)
            self.norm = nn.BatchNorm2d(2, affine=False)

        def forward(self, images):
            return self.norm(self.first(images)).mean((2, 3))

    generator = torch.Generator().manual_seed(1)
    paths, weights = [], []
    for name in ("base", "a", "b"):
        encoder = Normed()
        weights.append(torch.randn(2, 3, 1, 1, generator=generator))
        state = {**encoder.state_dict(), "first.weight": weights[-1]}
        state = {f"visual.{key}": value for key, value in state.items()}
        paths.append(checkpoints.save(tmp_path / f"{name}.safetensors", state))
    vectors = TaskVectors.load({"a": paths[1], "b": paths[2]}, paths[0], refuse_above=99)
    heads = {task: torch.randn(3, 2, generator=generator) for task in "ab"}
    images = {
        task: Images(
            torch.randint(0, 256, (12, 3, 4, 4), generator=generator, dtype=torch.uint8),
            torch.randint(0, 3, (12,), generator=generator),
        )
        for task in "ab"
    }
    evaluator = Evaluator(Normed(), preprocess, {}, heads, images, Store(tmp_path / "store"))
    calibration = {
        task: Inputs({"images": preprocess(one.images[:6])}, one.labels[:6]) for task, one in images.items()
    }
    views = Views(evaluator.encoder, heads, calibration)
    evaluation = Evaluation(vectors, evaluator, pd.DataFrame(), recalibration=Recalibration(evaluator, views))
    merge = evaluation.merge(("a", "b"), Average())
    state = merge.state(1.0)
    merged = ((weights[1] + weights[2]) / 2).double().numpy()[:, :, 0, 0]
    inputs = torch.cat([calibration[task].tensors["images"] for task in "ab"]).double().numpy()
    layer = np.einsum("oc,nchw->nohw", merged, inputs)
    np.testing.assert_allclose(state["visual.norm.running_mean"], layer.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(state["visual.norm.running_var"], layer.var((0, 2, 3), ddof=1), rtol=1e-4)
    assert torch.equal(state["visual.norm.num_batches_tracked"], torch.tensor(0))
    plain = Evaluation(vectors, evaluator, pd.DataFrame()).merge(("a", "b"), Average())
    assert plain.weights(1.0) != merge.weights(1.0)
    assert not torch.allclose(plain.state(1.0)["visual.norm.running_mean"], state["visual.norm.running_mean"])


def test_merges_are_handed_on_to_be_saved(world):
    models = evaluate_models(world.vectors, world.evaluator)
    kept = []

    def save(*arguments):
        kept.append(arguments)

    evaluation = Evaluation(world.vectors, world.evaluator, models, save=save)
    outcomes = evaluation.sets({"m": Average()}, [("red", "green")])
    ((merge, column, alpha, alpha_from, rows),) = kept
    assert (merge.tasks, column, alpha, alpha_from) == (("red", "green"), "m", 1.0, "the method's own")
    pd.testing.assert_frame_equal(rows, outcomes.accuracies)
