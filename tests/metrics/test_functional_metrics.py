"""Functional metrics against golden values, whose features pass through an encoder that looks them up."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.metrics.catalogue import CATALOGUE
from mergeability.metrics.functional import set_values
from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/functional.json").read_text())
TASKS = tuple(GOLDEN["tasks"])
NAMES = tuple(name for name, entry in CATALOGUE.items() if entry.traits.category == "functional")
IMAGES = len(GOLDEN["features"]["base on task0"])


class Lookup(nn.Module):
    """An encoder whose one weight holds the features of every image; an image is a row of the unit matrix."""

    def __init__(self):
        super().__init__()
        rows = GOLDEN["features"]["base on task0"]
        self.table = nn.Parameter(torch.zeros(len(TASKS) * len(rows), len(rows[0])))

    def forward(self, images):
        return images.flatten(1) @ self.table


def features_of(model):
    return torch.tensor([row for task in TASKS for row in GOLDEN["features"][f"{model} on {task}"]])


def save(folder, name, table):
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file({"visual.table": table}, path)
    return path


def images_of(task):
    start = TASKS.index(task) * IMAGES
    return Inputs({"images": torch.eye(len(TASKS) * IMAGES)[start : start + IMAGES]})


@pytest.fixture
def make(tmp_path):
    """Make profiles of the golden models; what is given replaces their images, heads, or features."""

    def made(store=None, run=None, images=None, heads=None, tables=None, tasks=TASKS):
        table = {model: features_of(model) for model in ("base", *TASKS)} | (tables or {})
        vectors = TaskVectors.load(
            {task: save(tmp_path, task, table[task]) for task in tasks},
            save(tmp_path, "base", table["base"]),
            store=store,
            warn_above=1e9,
            refuse_above=1e9,
        )
        views = Views(
            Lookup(),
            {task: torch.tensor(GOLDEN["heads"][task]) for task in TASKS} if heads is None else heads,
            {},
            unlabelled={task: images_of(task) for task in TASKS} if images is None else images,
            batch_size=5,
        )
        return Profiles(vectors, views, run)

    return made


def table_of(profiles, names=NAMES):
    return measure(profiles, {name: CATALOGUE[name].metric for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_has_the_golden_value(make, name):
    found = table_of(make(), [name])[name]
    for pair, values in GOLDEN["pairs"].items():
        expected = np.nan if values[name] is None else values[name]
        assert found[tuple(pair.split("+"))] == pytest.approx(expected, abs=1e-4, nan_ok=True), pair


def test_a_set_has_the_golden_values_and_a_pair_is_a_set_of_two(make):
    profiles = make()
    for tasks, values in GOLDEN["sets"].items():
        found = set_values(profiles, NAMES, tasks.split("+"))
        assert {name: found[name] for name in values} == pytest.approx(values, abs=1e-4)
    table = table_of(profiles)
    for pair in table.index:
        found = set_values(profiles, NAMES, pair)
        assert [found[name] for name in NAMES] == pytest.approx(
            table.loc[pair, list(NAMES)].tolist(), nan_ok=True
        )


def test_other_metrics_of_a_set_are_refused_by_name(make):
    with pytest.raises(UserError, match=r"functional metrics from the list .*; got weight_space_angle\.$"):
        set_values(make(), ["base_agreement", "weight_space_angle"], TASKS[:2])


def test_a_set_with_a_task_without_images_has_no_answers_of_its_own(make):
    profiles = make(images={task: images_of(task) for task in TASKS[:2]})
    assert np.isnan(set_values(profiles, ["ensemble_overlap"], TASKS[:3])["ensemble_overlap"])
    expected = GOLDEN["pairs"]["+".join(TASKS[:2])]["ensemble_overlap"]
    found = set_values(profiles, ["ensemble_overlap"], TASKS[:2])
    assert found["ensemble_overlap"] == pytest.approx(expected, abs=1e-4)


def test_inputs_with_labels_are_refused(make):
    labelled = {task: Inputs(images_of(task).tensors, torch.zeros(IMAGES)) for task in TASKS}
    with pytest.raises(UserError, match=r"task0, task1, task2, task3.*without_labels"):
        make(images=labelled)


def test_features_are_kept_by_content_and_found_again(make, tmp_path):
    first, second, third = (Store(tmp_path / "store") for _ in range(3))
    table = table_of(make(first))
    assert first.computed["features"] == (len(TASKS) + 1) * len(TASKS)
    again = table_of(make(second))
    assert not second.computed
    assert again.equals(table)
    # One more set of images: the base and each model on it, and nothing else.
    images = {task: images_of(task) for task in TASKS} | {"task3": images_of("task3")[torch.arange(8)]}
    table_of(make(third, images=images))
    assert third.computed["features"] == len(TASKS) + 1


def test_batches_and_memory_change_nothing(make):
    plain = table_of(make())
    small = table_of(make(run=Run(memory_budget=1e-4)))
    assert np.allclose(small, plain, rtol=1e-6, equal_nan=True)


def test_a_task_without_images_or_head_has_no_value_and_is_named(make):
    images = {task: images_of(task) for task in TASKS if task != "task1"}
    heads = {task: torch.tensor(GOLDEN["heads"][task]) for task in TASKS if task != "task3"}
    table = table_of(make(images=images, heads=heads))
    known = [("task0", "task2")]
    assert [
        pair for pair in table.index if table.loc[pair, "base_overlap"] == table.loc[pair, "base_overlap"]
    ] == known
    assert table.loc[known[0], "ensemble_overlap"] == pytest.approx(
        GOLDEN["pairs"]["task0+task2"]["ensemble_overlap"], abs=1e-4
    )
    assert any("task1, task3" in sentence for sentence in table.attrs["undefined"])


def test_without_any_images_the_metrics_are_refused(make):
    with pytest.raises(UserError, match="no task has both"):
        table_of(make(images={}))


def test_answers_near_chance_are_reported(make):
    """The base answers the first class everywhere: on images of another task it cannot do better."""
    table = features_of("base")
    head = torch.tensor(GOLDEN["heads"]["task0"])
    # Half the images to each of two classes, whatever the model says.
    table[:IMAGES] = head[torch.arange(IMAGES) % len(head)]
    found = table_of(make(tables={"base": table}), ["base_agreement"])
    assert any("task0" in sentence and "another" in sentence for sentence in found.attrs["undefined"])


def test_opposite_features_have_no_mean(make):
    opposite = -features_of("task0")
    table = table_of(make(tables={"task1": opposite}))
    assert np.isnan(table.loc[("task0", "task1"), "ensemble_overlap"])
    assert table.loc[("task0", "task2"), "ensemble_overlap"] > 0


def test_features_that_are_not_finite_are_named(make):
    bright = Inputs({"images": 1e10 * images_of("task2").tensors["images"]})
    images = {task: images_of(task) for task in TASKS} | {"task2": bright}
    large = features_of("task1")
    large[2 * IMAGES] = 1e30
    with pytest.raises(
        UserError,
        match=r"For the inputs of 'task2', the model of 'task1' computes features that are not finite",
    ):
        table_of(make(images=images, tables={"task1": large}))
