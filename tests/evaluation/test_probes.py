"""Probes against values by hand: a linear encoder, whose features and probabilities are written out in NumPy."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.evaluation.merge import own_weights
from mergeability.evaluation.merges import Evaluation
from mergeability.evaluation.outcome_tables import pair_table, set_table
from mergeability.evaluation.probes import Probe
from mergeability.evaluation.scales import ScaleChoice
from mergeability.merging import Average, TaskArithmetic
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints

TASKS = ("red", "green", "blue")


class Encoder(torch.nn.Module):
    """A linear map of the mean colour."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Parameter(torch.zeros(4, 3))

    def forward(self, images):
        return images.mean((2, 3)) @ self.proj.T


class World:
    """Three models of a linear encoder, with heads and unlabelled images."""

    def __init__(self, folder, store=None):
        generator = torch.Generator().manual_seed(3)
        self.base = torch.randn(4, 3, generator=generator)
        self.tuned = {task: self.base + 0.6 * torch.randn(4, 3, generator=generator) for task in TASKS}
        self.heads = {
            task: 3 * torch.randn(classes, 4, generator=generator)
            for task, classes in zip(TASKS, (3, 4, 5), strict=True)
        }
        self.inputs = {
            task: Inputs({"images": torch.randn(20, 3, 2, 2, generator=generator)}) for task in TASKS
        }
        base = checkpoints.save(folder / "base.safetensors", {"visual.proj": self.base})
        paths = {
            task: checkpoints.save(folder / f"{task}.safetensors", {"visual.proj": weight})
            for task, weight in self.tuned.items()
        }
        self.store = Store(folder / "store") if store is None else store
        self.vectors = TaskVectors.load(paths, base=base, store=self.store)
        self.evaluator = Evaluator(
            Encoder(), lambda images: images, {}, self.heads, {}, self.store, batch_size=7
        )

    def probe(self, part=slice(None)):
        inputs = {task: one[part] for task, one in self.inputs.items()}
        return Probe(self.evaluator, inputs, lambda task: own_weights(self.vectors, task))

    def answers(self, weights, task, part=slice(None)):
        """Compute class probabilities by hand."""
        pixels = self.inputs[task].tensors["images"][part].double().numpy().mean((2, 3))
        features = pixels @ weights.double().numpy().T
        logits = (
            features / np.linalg.norm(features, axis=1, keepdims=True) @ self.heads[task].double().numpy().T
        )
        exponentials = np.exp(logits)
        return exponentials / exponentials.sum(1, keepdims=True)

    def overlap(self, weights, task, part=slice(None)):
        pair = self.answers(weights, task, part), self.answers(self.tuned[task], task, part)
        return np.minimum(*pair).sum(1).mean()

    def confidence(self, weights, task):
        named = self.answers(self.tuned[task], task).argmax(1)
        return self.answers(weights, task)[np.arange(len(named)), named].mean()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def models():
    """Accuracies that nothing here looks at."""
    return pd.DataFrame({"base_accuracy": 0.5, "finetuned_accuracy": 0.9}, index=list(TASKS))


def outcomes(world, methods, sets, monkeypatch, **options):
    monkeypatch.setattr(Evaluator, "accuracies", lambda *_, **__: dict.fromkeys(TASKS, 0.8))
    evaluation = Evaluation(world.vectors, world.evaluator, models(), **options)
    return evaluation.sets(methods, sets, Run())


def test_a_probe_of_a_pair_and_of_the_average_by_hand(world, monkeypatch):
    pairs = list(itertools.combinations(TASKS, 2))
    found = outcomes(world, {"ta": TaskArithmetic(0.4)}, pairs, monkeypatch, probe=world.probe())
    table = pair_table(found.accuracies, found.probes)
    for a, b in pairs:
        change = world.tuned[a] + world.tuned[b] - 2 * world.base
        for name, weights in (("ta", world.base + 0.4 * change), ("average", world.base + change / 2)):
            row = table.loc[(a, b)]
            overlap = (world.overlap(weights, a) + world.overlap(weights, b)) / 2
            confidence = (world.confidence(weights, a) + world.confidence(weights, b)) / 2
            assert row[f"probe_overlap_{name}"] == pytest.approx(overlap, abs=1e-6)
            assert row[f"probe_confidence_{name}"] == pytest.approx(confidence, abs=1e-6)
    assert (found.probes["images"] == 20).all()
    assert "acc_average" not in table


def test_a_set_has_a_probe_of_its_own_merge(world, monkeypatch):
    found = outcomes(world, {"average": Average()}, [TASKS], monkeypatch, probe=world.probe())
    weights = sum(world.tuned.values()) / 3
    expected = np.mean([world.overlap(weights, task) for task in TASKS])
    assert set_table(found.accuracies, found.probes)["probe_overlap_average"].item() == pytest.approx(
        expected, abs=1e-6
    )
    assert len(found.probes) == 3, "the average is probed once"


def test_a_models_own_answers_overlap_entirely(world):
    for task in TASKS:
        found = world.probe().values(own_weights(world.vectors, task), (task,))[task]
        assert found["overlap"] == pytest.approx(1)
        assert found["agreement"] == 1
        assert found["images"] == 20


def test_the_scale_without_labels_has_the_best_overlap_on_its_own_images(world, monkeypatch):
    grid = (0.1, 0.3, 0.5, 0.9)
    tuning, second = slice(None, 10), slice(10, None)
    found = outcomes(
        world, {"ta": TaskArithmetic(0.4)}, [("red", "green")], monkeypatch,
        scales=ScaleChoice(["own", "unlabelled"], grid), probe=world.probe(second), unlabelled=world.probe(tuning),
    )  # fmt: skip
    change = world.tuned["red"] + world.tuned["green"] - 2 * world.base
    curve = [
        np.mean([world.overlap(world.base + alpha * change, task, tuning) for task in ("red", "green")])
        for alpha in grid
    ]
    best = grid[int(np.argmax(curve))]
    table = pair_table(found.accuracies, found.probes)
    assert table["alpha_ta_unlabelled"].item() == best
    assert table["alpha_ta"].item() == 0.4
    means = found.curves.groupby("alpha")["overlap"].mean()
    assert means.tolist() == pytest.approx(curve, abs=1e-6)
    merged = world.base + best * change
    expected = np.mean([world.overlap(merged, task, second) for task in ("red", "green")])
    assert table["probe_overlap_ta_unlabelled"].item() == pytest.approx(expected, abs=1e-6)


def test_values_are_found_again_whatever_the_labels(world, monkeypatch):
    first = world.probe().values(own_weights(world.vectors, "red"), ("red", "green"))
    labelled = {task: Inputs(one.tensors, torch.arange(20) % 3) for task, one in world.inputs.items()}
    monkeypatch.setattr(Evaluator, "features", lambda *_: pytest.fail("an image was passed again"))
    again = Probe(world.evaluator, labelled, lambda task: own_weights(world.vectors, task))
    assert again.values(own_weights(world.vectors, "red"), ("red", "green")) == first


@pytest.mark.parametrize("change", ["weights", "images", "head", "own"])
def test_what_a_value_depends_on_is_part_of_its_key(world, tmp_path, change):
    world.probe().values(own_weights(world.vectors, "red"), ("green",))
    before = world.store.computed["probe"]
    other = World(tmp_path, world.store)
    weights = own_weights(other.vectors, "red")
    probe = other.probe()
    if change == "weights":
        weights = own_weights(other.vectors, "blue")
    elif change == "images":
        probe = other.probe(slice(5, None))
    elif change == "head":
        other.heads["green"] *= 2
    else:
        probe = Probe(other.evaluator, other.inputs, lambda _task: own_weights(other.vectors, "blue"))
    probe.values(weights, ("green",))
    assert world.store.computed["probe"] == before + 1


def test_a_merge_that_overflows_is_named_and_nothing_is_kept(world):
    def ruined():
        return {"visual.proj": torch.full((4, 3), 3e38)}

    with pytest.raises(UserError, match=r"finite features, got NaN or Inf.*red.*smaller alpha"):
        world.probe().values(({"file": "x"}, ruined), ("red",))
    assert "probe" not in world.store.computed
    with pytest.raises(UserError, match="norm 0"):
        world.probe().values(({"file": "y"}, lambda: {"visual.proj": torch.zeros(4, 3)}), ("red",))


def test_a_task_without_images_is_refused_by_name(world):
    probe = Probe(
        world.evaluator, {"red": world.inputs["red"]}, lambda task: own_weights(world.vectors, task)
    )
    with pytest.raises(
        UserError, match="Merges of green, blue cannot be probed, because there are no unlabelled images"
    ):
        probe.values(own_weights(world.vectors, "red"), TASKS)


def test_a_scale_without_labels_needs_images(world, monkeypatch):
    with pytest.raises(UserError, match="alpha=unlabelled requires unlabelled images"):
        outcomes(
            world, {"ta": TaskArithmetic()}, [("red", "green")], monkeypatch, scales=ScaleChoice("unlabelled")
        )
