"""Contracts of the 18 metrics of weight space, on made-up models of several shapes, NumPy and formulas as judges."""

from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.context import Run
from mergeability.linalg import decompositions, grams
from mergeability.metrics.catalogue import CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.profiles import subspace_overlaps
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

SHAPES = {
    "tall": (60, 40),
    "wide": (40, 70),
    "square": (40, 40),
    "large": (90, 80),
    "smaller.than.k": (4, 7),
    "row": (1, 9),
    "column": (8, 1),
    "kernel": (6, 3, 2, 2),
    "bias": (50,),
    "scale": (),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]
K, COUNT = 10, 100

# From the definitions, by hand.
RANGES = {
    "task_vector_cosine_similarity": (-1, 1),
    "task_vector_l2_distance": (0, np.inf),
    "task_vector_dot_product": (-np.inf, np.inf),
    "weight_space_angle": (0, 180),
    "task_vector_magnitude_ratio": (0, 1),
    "effective_rank": (1, 2),
    "effective_rank_mergeability_score": (0, 1),
    "stable_rank": (1, 2),
    "spectral_gap": (0, 1),
    "singular_value_ratio": (0, 1),
    "layerwise_effective_rank": (1, 2),
    "layerwise_effective_rank_mergeability_score": (0, 1),
    "singular_value_overlap": (0, 1),
    # Divided by k where √k would give 1: at most 1/√k of each matrix.
    "subspace_overlap": (0, np.mean([1 / np.sqrt(min(K, *SHAPES[name])) for name in MATRICES])),
    "right_subspace_overlap_top_k": (0, 1),
    "right_subspace_overlap_bottom_k": (0, 1),
    "interaction_matrix_overlap_top_k": (0, 1),
    "interaction_matrix_overlap_bottom_k": (0, 1),
}


def random_state(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return {name: (scale * generator.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def moved(seed, scale=0.05):
    """Move away from the common base in a direction of one's own, and in one that all share."""
    own, shared = random_state(seed, scale), random_state(1000, scale)
    return {name: value + own[name] + shared[name] for name, value in random_state(0).items()}


MODELS = {task: moved(seed) for seed, task in enumerate("abcdefg", start=1)}


@pytest.fixture
def load(tmp_path):
    """Write models and a base, as NumPy arrays or tensors, and open their task vectors."""
    written = []

    def save(state):
        path = tmp_path / f"{len(written)}.safetensors"
        written.append(path)
        safetensors.torch.save_file({name: torch.as_tensor(value) for name, value in state.items()}, path)
        return path

    def open_vectors(models, base=None):
        start = save(random_state(0) if base is None else base)
        return TaskVectors.load({task: save(state) for task, state in models.items()}, start)

    return open_vectors


def by_definition(first, second):
    """Compute the 18 metrics of two models' deltas in float64, each as the field defines it."""
    a, b = (np.concatenate([delta.ravel() for delta in deltas.values()]) for deltas in (first, second))
    lengths = sorted((np.linalg.norm(a), np.linalg.norm(b)))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    s = np.linalg.svd(np.stack([a, b]), compute_uv=False)
    ranks = [entropy_rank(first[name], second[name]) for name in first]
    weights = [np.linalg.norm(first[name]) + np.linalg.norm(second[name]) for name in first]
    layerwise = np.average(ranks, weights=weights)
    return {
        "task_vector_cosine_similarity": cosine,
        "task_vector_l2_distance": np.linalg.norm(a - b),
        "task_vector_dot_product": a @ b,
        "weight_space_angle": np.degrees(np.arccos(np.clip(cosine, -1, 1))),
        "task_vector_magnitude_ratio": lengths[0] / lengths[1],
        "effective_rank": entropy_rank(a, b),
        "effective_rank_mergeability_score": 2 - entropy_rank(a, b),
        "stable_rank": s.sum() ** 2 / (s**2).sum(),
        "spectral_gap": (s[0] - s[1]) / s[0],
        "singular_value_ratio": s[1] / s[0],
        "layerwise_effective_rank": layerwise,
        "layerwise_effective_rank_mergeability_score": 2 - layerwise,
        **overlaps({name: (first[name], second[name]) for name in first if first[name].ndim == 2}),
    }


def entropy_rank(a, b):
    s = np.linalg.svd(np.stack([a.ravel(), b.ravel()]), compute_uv=False)
    shares = s[s > 0] / s.sum()
    return np.exp(-np.sum(shares * np.log(shares)))


def overlaps(matrices):
    found = {name: [] for name in CATEGORIES["subspace"]}
    for left, right in matrices.values():
        (Ua, Sa, Va), (Ub, Sb, Vb) = (np.linalg.svd(one, full_matrices=False) for one in (left, right))
        k = min(K, len(Sa))
        found["singular_value_overlap"].append(
            Sa[:COUNT] @ Sb[:COUNT] / np.linalg.norm(Sa[:COUNT]) / np.linalg.norm(Sb[:COUNT])
        )
        found["subspace_overlap"].append(np.linalg.norm(Ua[:, :k].T @ Ub[:, :k]) / k)
        for end, rows in (("top", slice(k)), ("bottom", slice(-k, None))):
            cosines = np.linalg.svd(Va[rows] @ Vb[rows].T, compute_uv=False)
            found[f"right_subspace_overlap_{end}_k"].append(np.linalg.norm(cosines) / np.sqrt(k))
            found[f"interaction_matrix_overlap_{end}_k"].append(np.mean(cosines**2))
    return {name: np.mean(values) for name, values in found.items()}


def deltas_of(model, base):
    """Subtract in float32, as documented, whatever the weights are kept in."""
    found = {}
    for name, value in model.items():
        pair = (torch.as_tensor(value).float().numpy(), torch.as_tensor(base[name]).float().numpy())
        found[name] = np.subtract(*pair).astype(np.float64)
    return found


def assert_by_definition(table, models, base, relative=1e-4):
    assert list(table.columns) == list(WEIGHT_SPACE)
    assert len(table) == len(models) * (len(models) - 1) // 2
    for a, b in table.index:
        expected = by_definition(deltas_of(models[a], base), deltas_of(models[b], base))
        assert expected.keys() == WEIGHT_SPACE.keys()
        for name, value in expected.items():
            assert table.loc[(a, b), name] == pytest.approx(value, rel=relative), (a, b, name)


def test_all_18_agree_with_their_definitions(load):
    models = {task: MODELS[task] for task in "abc"}
    assert_by_definition(measure(load(models)), models, random_state(0))


@pytest.mark.parametrize("name", WEIGHT_SPACE)
def test_a_metric_is_symmetric(load, name):
    matrix = WEIGHT_SPACE[name](Profiles(load(MODELS)))
    assert matrix.shape == (7, 7)
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-15)


@pytest.mark.parametrize("name", list(WEIGHT_SPACE))
def test_a_pair_turned_around_has_the_same_value_to_the_last_bit(load, name):
    matrix = WEIGHT_SPACE[name](Profiles(load(MODELS)))
    np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("order", ["gfedcba", "dacebgf"])
def test_the_order_of_the_models_changes_nothing(load, order):
    straight, turned = Profiles(load(MODELS)), Profiles(load({task: MODELS[task] for task in order}))
    places = [straight.tasks.index(task) for task in order]
    for name, metric in WEIGHT_SPACE.items():
        np.testing.assert_array_equal(metric(turned), metric(straight)[np.ix_(places, places)], err_msg=name)


@pytest.mark.parametrize("pair", ["ab", "eg"])
def test_a_pair_does_not_change_when_others_join(load, pair):
    alone = measure(load({task: MODELS[task] for task in pair}))
    everyone = measure(load(MODELS))
    np.testing.assert_allclose(everyone.loc[tuple(pair)], alone.loc[tuple(pair)], rtol=1e-6)


@pytest.fixture
def reads(monkeypatch):
    """Count what is read: ranges of deltas by length, and stored singular vectors."""
    counts = {"singular": 0, "ranges": Counter()}
    read_range, read_entry = TaskVectors.read, Store.read

    def counted_range(self, task, name, start=0, stop=None):
        counts["ranges"][task, name, start, stop] += 1
        return read_range(self, task, name, start, stop)

    def counted_entry(self, kind, key):
        counts["singular"] += kind == "singular"
        return read_entry(self, kind, key)

    monkeypatch.setattr(TaskVectors, "read", counted_range)
    monkeypatch.setattr(Store, "read", counted_entry)
    return counts


# Of seven models, those of the second block are read for two meetings, those of the third for three, …
@pytest.mark.parametrize(
    ("group", "together", "times"),
    [
        (1, 1, 1 + 2 + 3 + 4 + 5 + 6 + 7),
        (2, 2, 2 * (1 + 2 + 3) + 4),
        (2, 4, 4 + 2 * 3),
        (3, 3, 3 * (1 + 2) + 3),
        (2, 8, 7),
        (64, 512, 7),
    ],
)
def test_groups_of_models_give_the_same_subspaces(load, monkeypatch, reads, group, together, times):
    whole = measure(load(MODELS))
    monkeypatch.setattr(subspace_overlaps, "_GROUP", group)
    monkeypatch.setattr(subspace_overlaps, "_TOGETHER", 7)
    # How many are held at a time changes no bit: the same groups meet.
    held = measure(load(MODELS))
    monkeypatch.setattr(subspace_overlaps, "_TOGETHER", together)
    reads["singular"] = 0
    found = measure(load(MODELS))
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    np.testing.assert_array_equal(found, held)
    assert reads["singular"] == times * len(MATRICES), "the blocks met"


GEOMETRY = {name: WEIGHT_SPACE[name] for name in (*CATEGORIES["geometry"], *CATEGORIES["effective rank"])}


def test_ranges_and_groups_of_vectors_give_the_same_grams(load, monkeypatch, reads):
    whole = measure(load(MODELS), GEOMETRY)
    monkeypatch.setattr(grams, "BLOCK", 101)
    reads["ranges"].clear()
    # Groups of two of the eight vectors meet, and each vector has four meetings.
    monkeypatch.setattr(grams, "TOGETHER", 5)
    streamed = Profiles(load(MODELS))
    np.testing.assert_allclose(measure(streamed, GEOMETRY), whole, rtol=1e-6)
    for task in MODELS:
        for name, shape in SHAPES.items():
            size = int(np.prod(shape))
            for start in range(0, size, 101):
                assert reads["ranges"][task, name, start, min(start + 101, size)] == 4


def test_a_small_memory_budget_changes_no_bit(load):
    whole = measure(load(MODELS))
    frugal = measure(Profiles(load(MODELS), run=Run(memory_budget=0.02)))
    np.testing.assert_array_equal(frugal, whole)


def test_smaller_blocks_of_rows_change_nothing(load, monkeypatch):
    whole = measure(load(MODELS))
    monkeypatch.setattr(decompositions, "_ROWS", 9)
    np.testing.assert_allclose(measure(load(MODELS)), whole, rtol=1e-6)


# Updates on a grid that float32 holds exactly, so that a base changes nothing of what they are made for.
def grid_base():
    return {name: np.round(value * 64) / 64 for name, value in random_state(0).items()}


def grid_update(seed):
    generator = np.random.default_rng(seed)
    return {
        name: (generator.integers(-8, 9, size=shape) / 64).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def plus(base, update, factor=1.0):
    return {name: value + np.float32(factor) * update[name] for name, value in base.items()}


def length(update):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in update.values()))


BEST_LEFT = RANGES["subspace_overlap"][1]
PARALLEL = {
    "effective_rank": 1,
    "effective_rank_mergeability_score": 1,
    "stable_rank": 1,
    "spectral_gap": 1,
    "singular_value_ratio": 0,
    "layerwise_effective_rank": 1,
    "layerwise_effective_rank_mergeability_score": 1,
    "singular_value_overlap": 1,
    "subspace_overlap": BEST_LEFT,
    "right_subspace_overlap_top_k": 1,
    "right_subspace_overlap_bottom_k": 1,
    "interaction_matrix_overlap_top_k": 1,
    "interaction_matrix_overlap_bottom_k": 1,
}


def assert_values(row, expected, absolute):
    assert expected.keys() == WEIGHT_SPACE.keys()
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6, abs=absolute), name


@pytest.mark.parametrize("beside", [{}, {"steps": np.arange(3)}])
def test_identical_models_have_the_extreme_values(load, beside):
    """Once as the same file twice, once in files that differ in an integer buffer."""
    update = grid_update(3)
    model = plus(grid_base(), update)
    expected = {
        "task_vector_cosine_similarity": 1,
        "task_vector_l2_distance": 0,
        "task_vector_dot_product": length(update) ** 2,
        "weight_space_angle": 0,
        "task_vector_magnitude_ratio": 1,
        **PARALLEL,
    }
    assert_values(measure(load({"a": model, "b": model | beside}, grid_base())).iloc[0], expected, 2e-6)


@pytest.mark.parametrize("factor", [4.0, 0.125, -1.0, -2.0])
def test_scaled_updates_are_parallel_in_everything(load, factor):
    update = grid_update(3)
    models = {"a": plus(grid_base(), update), "b": plus(grid_base(), update, factor)}
    sign, ratio = np.sign(factor), abs(factor)
    expected = {
        "task_vector_cosine_similarity": sign,
        "task_vector_l2_distance": abs(1 - factor) * length(update),
        "task_vector_dot_product": factor * length(update) ** 2,
        "weight_space_angle": 0 if sign > 0 else 180,
        "task_vector_magnitude_ratio": min(ratio, 1 / ratio),
        **PARALLEL,
    }
    assert_values(measure(load(models, grid_base())).iloc[0], expected, 2e-6)


ORTHOGONAL_SHAPES = {
    "tall": (60, 40),
    "wide": (40, 70),
    "square": (40, 40),
    "kernel": (4, 3, 2, 2),
    "bias": (20,),
}


def rotated_diagonal(shape, rows, columns, factor):
    """Put 40 descending values where row and column are those of a diagonal, moved on by so many places."""
    matrix = np.zeros(shape, np.float32)
    for place in range(40):
        matrix[(place + rows) % 40, (place + columns) % 40] = factor * (60 - place) / 64
    return matrix


def orthogonal_models(factor):
    """Make two updates whose every tensor, and whose first and last ten singular vectors, are orthogonal."""
    base = {name: np.full(shape, 2, np.float32) for name, shape in ORTHOGONAL_SHAPES.items()}
    models = {}
    for task, rows, columns, size in (("a", 0, 0, 1.0), ("b", 20, 10, factor)):
        update = {name: np.zeros(shape, np.float32) for name, shape in ORTHOGONAL_SHAPES.items()}
        for name in ("tall", "wide", "square"):
            update[name] = rotated_diagonal(ORTHOGONAL_SHAPES[name], rows, columns, size)
        update["bias"][rows // 2] = update["kernel"][rows // 10, 1, 0, 1] = size
        models[task] = plus(base, update)
    return base, models


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_orthogonal_updates_have_nothing_in_common(load, factor):
    base, models = orthogonal_models(factor)
    norm = np.sqrt(2 + 3 * sum(((60 - place) / 64) ** 2 for place in range(40)))
    # s₁ and s₂ are the two lengths, of the whole as of each tensor.
    shares = np.array([1, factor]) / (1 + factor)
    rank = np.exp(-np.sum(shares * np.log(shares)))
    expected = {
        "task_vector_cosine_similarity": 0,
        "task_vector_l2_distance": norm * np.sqrt(1 + factor**2),
        "task_vector_dot_product": 0,
        "weight_space_angle": 90,
        "task_vector_magnitude_ratio": factor,
        "effective_rank": rank,
        "effective_rank_mergeability_score": 2 - rank,
        "stable_rank": (1 + factor) ** 2 / (1 + factor**2),
        "spectral_gap": 1 - factor,
        "singular_value_ratio": factor,
        "layerwise_effective_rank": rank,
        "layerwise_effective_rank_mergeability_score": 2 - rank,
        "singular_value_overlap": 1,
        **dict.fromkeys(CATEGORIES["subspace"][1:], 0),
    }
    assert_values(measure(load(models, base)).iloc[0], expected, 1e-6)


@pytest.mark.parametrize("name", WEIGHT_SPACE)
def test_every_value_lies_in_its_documented_range(load, name):
    """Of the matrices themselves: the table clips what rounding left outside."""
    assert RANGES.keys() == WEIGHT_SPACE.keys()
    update = grid_update(3)
    nearly = {name: value + np.float32(2**-12) * grid_update(4)[name] for name, value in update.items()}
    along = {task: plus(grid_base(), update, factor) for task, factor in (("a", 1), ("b", 3), ("c", -1))}
    suites = (
        (along | {"d": plus(grid_base(), nearly), "e": plus(grid_base(), nearly, -1)}, grid_base()),
        (MODELS, None),
        orthogonal_models(0.5)[::-1],
    )
    low, high = RANGES[name]
    for models, base in suites:
        matrix = WEIGHT_SPACE[name](Profiles(load(models, base)))
        assert np.isfinite(matrix).all()
        assert matrix.min() >= low - 1e-6
        assert matrix.max() <= high * (1 + 1e-6)


def in_dtype(state, dtype):
    return {name: torch.as_tensor(value).to(dtype) for name, value in state.items()}


DTYPES = {
    "half": (torch.float16, torch.float16, torch.float16),
    "brain": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "double": (torch.float64, torch.float64, torch.float64),
    "mixed": (torch.float32, torch.float16, torch.bfloat16),
    "half base": (torch.float16, torch.float32, torch.float64),
}


@pytest.mark.parametrize("choice", DTYPES)
def test_other_dtypes_equal_the_float32_computation_on_the_rounded_weights(load, choice):
    of_base, of_a, of_b = DTYPES[choice]
    base = in_dtype(random_state(0), of_base)
    models = {"a": in_dtype(MODELS["a"], of_a), "b": in_dtype(MODELS["b"], of_b)}
    assert_by_definition(measure(load(models, base)), models, base)


def test_tensors_of_one_model_may_differ_in_dtype(load):
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    models = {
        task: {
            name: torch.as_tensor(value).to(kinds[(place + shift) % 4])
            for place, (name, value) in enumerate(MODELS[task].items())
        }
        for shift, task in enumerate("ab")
    }
    assert_by_definition(measure(load(models)), models, random_state(0))
    rounded = {task: {name: value.float() for name, value in state.items()} for task, state in models.items()}
    np.testing.assert_allclose(measure(load(models)), measure(load(rounded)), rtol=1e-6)
