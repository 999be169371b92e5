"""Subspace overlaps against NumPy's SVD of every pair's two matrices."""

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.metrics import subspace
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

SHAPES = {"visual.wide": (5, 30), "visual.tall": (40, 12), "visual.square": (16, 16), "visual.bias": (7,)}
TASKS = ("a", "b", "c")


@pytest.fixture
def deltas():
    generator = np.random.default_rng(5)
    made = {
        task: {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for task in TASKS
    }
    # b is close to a, so that overlaps are not all at chance.
    for name in SHAPES:
        made["b"][name] = made["a"][name] + np.float32(0.3) * made["b"][name]
    return made


@pytest.fixture
def make_profiles_of(tmp_path):
    def make(deltas, store=None):
        paths = {}
        for name, tensors in {**deltas, "base": dict.fromkeys(SHAPES)}.items():
            start = {key: np.full(shape, 8, np.float32) for key, shape in SHAPES.items()}
            state = {key: start[key] if tensors[key] is None else start[key] + tensors[key] for key in SHAPES}
            paths[name] = tmp_path / f"{name}.safetensors"
            safetensors.torch.save_file(
                {key: torch.from_numpy(value) for key, value in state.items()}, paths[name]
            )
        return Profiles(TaskVectors.load({task: paths[task] for task in deltas}, paths["base"], store=store))

    return make


def factors(deltas, task, name):
    # As read back from the file: adding the base rounds the delta to float32.
    delta = (deltas[task][name] + np.float32(8)) - np.float32(8)
    U, S, Vh = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    return U, S, Vh.T


def singular_values_of_product(left, right):
    return np.linalg.svd(left.T @ right, compute_uv=False)


def by_definition(deltas, a, b, k, count):
    values = {name: [] for name in ("values", "left", "top", "bottom", "square_top", "square_bottom")}
    for name in ("visual.wide", "visual.tall", "visual.square"):
        (Ua, Sa, Va), (Ub, Sb, Vb) = factors(deltas, a, name), factors(deltas, b, name)
        size = min(k, len(Sa))
        Sa, Sb = Sa[:count], Sb[:count]
        values["values"].append(Sa @ Sb / np.linalg.norm(Sa) / np.linalg.norm(Sb))
        values["left"].append(np.linalg.norm(Ua[:, :size].T @ Ub[:, :size]) / size)
        for end, columns in (("top", slice(size)), ("bottom", slice(-size, None))):
            interaction = singular_values_of_product(Va[:, columns], Vb[:, columns])
            values[end].append(np.linalg.norm(interaction) / np.sqrt(size))
            values[f"square_{end}"].append(np.mean(interaction**2))
    return {name: np.mean(found) for name, found in values.items()}


@pytest.mark.parametrize(("k", "count"), [(10, 100), (3, 4)])
def test_overlaps_agree_with_numpy(deltas, make_profiles_of, k, count):
    profiles = make_profiles_of(deltas)
    for i, a in enumerate(TASKS):
        for j, b in enumerate(TASKS):
            expected = by_definition(deltas, a, b, k, count)
            measured = {
                "values": subspace.singular_value_overlap(profiles, count),
                "left": subspace.left_overlap(profiles, k),
                "top": subspace.right_overlap(profiles, "top", k),
                "bottom": subspace.right_overlap(profiles, "bottom", k),
                "square_top": subspace.interaction_overlap(profiles, "top", k),
                "square_bottom": subspace.interaction_overlap(profiles, "bottom", k),
            }
            for name, matrix in measured.items():
                assert matrix[i, j] == pytest.approx(expected[name], rel=1e-4), (name, a, b)


def test_a_matrix_one_model_left_alone_is_skipped_for_its_pairs_only(deltas, make_profiles_of):
    deltas["c"]["visual.wide"] = None
    profiles = make_profiles_of(deltas)
    overlaps = profiles.subspace_overlaps("right", "top", 3)
    wide = profiles.task_vectors.matrices.index("visual.wide")
    assert np.isnan(overlaps[wide]).tolist() == [
        [False, False, True],
        [False, False, True],
        [True, True, True],
    ]
    rest = np.delete(np.sqrt(overlaps / 3), wide, axis=0)[:, 0, 2].mean()
    assert subspace.right_overlap(profiles, "top", 3)[0, 2] == pytest.approx(rest)
    everything = subspace.right_overlap(make_profiles_of(deltas | {"c": deltas["a"]}), "top", 3)
    assert subspace.right_overlap(profiles, "top", 3)[0, 1] == pytest.approx(everything[0, 1], rel=1e-6)


def test_a_model_equal_to_the_base_has_no_overlap(deltas, make_profiles_of):
    profiles = make_profiles_of(deltas | {"c": dict.fromkeys(SHAPES)})
    for metric in (subspace.singular_value_overlap, subspace.left_overlap, subspace.right_overlap):
        matrix = metric(profiles)
        assert np.isnan(matrix[[0, 1], 2]).all()
        assert np.isfinite(matrix[0, 1])


def test_a_second_run_decomposes_nothing(deltas, make_profiles_of, tmp_path):
    first = make_profiles_of(deltas, Store(tmp_path / "store"))
    expected = subspace.right_overlap(first)
    assert first.task_vectors.store.computed["singular"] == len(TASKS) * 3
    again = make_profiles_of(deltas, Store(tmp_path / "store"))
    np.testing.assert_array_equal(subspace.right_overlap(again), expected)
    assert not again.task_vectors.store.computed
