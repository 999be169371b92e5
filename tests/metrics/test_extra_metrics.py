"""The metrics beyond the published ones that need no gradient, against their definitions."""

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.linalg import grams
from mergeability.members import fixed_set
from mergeability.metrics import gram, sign, subspace
from mergeability.metrics.catalogue import CATALOGUE, PAPER
from mergeability.metrics.measure import measure
from mergeability.profiles.activations import Activations
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

# The metrics of version 0.1.0 beyond the published ones.
EXCESS = (
    "subspace_overlap_excess",
    "right_subspace_overlap_top_k_excess",
    "right_subspace_overlap_bottom_k_excess",
    "interaction_matrix_overlap_top_k_excess",
    "interaction_matrix_overlap_bottom_k_excess",
)
EXTRA = {name: CATALOGUE[name].metric for name in (*EXCESS, "sign_conflict", "activation_linear_cka")}
MINIMAL = fixed_set("metric", "minimal")


@pytest.fixture
def make_profiles_of(tmp_path):
    """Make profiles of models given by name → tensor name → delta from a base of zeros."""

    def make(deltas):
        paths = {}
        shapes = {name: value.shape for name, value in next(iter(deltas.values())).items()}
        for task, tensors in {
            "base": {k: np.zeros(v, np.float32) for k, v in shapes.items()},
            **deltas,
        }.items():
            paths[task] = tmp_path / f"{task}.safetensors"
            state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
            safetensors.torch.save_file(state, paths[task])
        models = {task: paths[task] for task in deltas}
        # Any delta is infinitely longer than a base of zeros.
        return Profiles(TaskVectors.load(models, paths["base"], refuse_above=float("inf")))

    return make


def kept(vector, density):
    """Mark the largest entries, as TIES defines them, by sorting all."""
    size = len(vector)
    limit = np.sort(np.abs(vector))[max(1, size - int(np.floor(density * size))) - 1]
    return (np.abs(vector) >= limit) & (vector != 0)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1])
@pytest.mark.parametrize("block", [7, 2**16])
def test_sign_conflict_is_the_share_of_opposite_signs_among_common_entries(
    make_profiles_of, monkeypatch, density, block
):
    generator = np.random.default_rng(2)
    shapes = {"visual.one": (30, 20), "visual.two": (11,), "visual.three": (4, 5, 6)}
    common = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    deltas = {
        # Coarse values, so that magnitudes are equal at the threshold too; layers of different scale.
        task: {
            name: np.round(4 * (common[name] + generator.normal(size=shape))) / 4 * (1 + len(shape))
            for name, shape in shapes.items()
        }
        for task in "abc"
    }
    monkeypatch.setattr(grams, "BLOCK", block)
    matrix = sign.sign_conflict(make_profiles_of(deltas), density)
    flat = {task: np.concatenate([deltas[task][name].ravel() for name in shapes]) for task in "abc"}
    for i, x in enumerate(flat.values()):
        for j, y in enumerate(flat.values()):
            both = kept(x, density) & kept(y, density)
            # No mean where there is nothing in common.
            expected = np.mean(np.sign(x[both]) != np.sign(y[both])) if both.any() else np.nan
            np.testing.assert_equal(matrix[i, j], expected)


def test_sign_conflict_without_a_common_entry_is_undefined(make_profiles_of):
    first, second = np.zeros(10), np.zeros(10)
    first[:2], second[5:7] = (3, -4), (1, 2)
    deltas = {"a": first, "b": second, "unchanged": np.zeros(10), "opposite": -first}
    matrix = sign.sign_conflict(
        make_profiles_of({task: {"visual.w": value} for task, value in deltas.items()})
    )
    nan = np.nan
    expected = [[0, nan, nan, 1], [nan, 0, nan, nan], [nan, nan, nan, nan], [1, nan, nan, 0]]
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_a_density_out_of_range_is_refused(make_profiles, five_models, density):
    with pytest.raises(UserError, match=r"density to be in \(0, 1\]"):
        sign.sign_conflict(make_profiles(five_models, with_views=False), density)


def overlap(left, right):
    return np.linalg.norm(left.T @ right) ** 2 / left.shape[1]


def test_excess_is_overlap_less_the_chance_of_each_matrix(make_profiles_of):
    generator = np.random.default_rng(3)
    shapes = {"visual.wide": (5, 30), "visual.tall": (40, 12), "visual.square": (16, 16)}
    deltas = {
        task: {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for task in "ab"
    }
    k, values = 6, []
    for name, (m, n) in shapes.items():
        size = min(k, m, n)
        (Ua, _, Va), (Ub, _, Vb) = (np.linalg.svd(deltas[task][name], full_matrices=False) for task in "ab")
        left = overlap(Ua[:, :size], Ub[:, :size])
        top, bottom = (overlap(Va[rows].T, Vb[rows].T) for rows in (slice(size), slice(-size, None)))
        found, chance = np.array([left, top, bottom]), size / np.array([m, n, n])
        values.append([*(np.sqrt(found) - np.sqrt(chance)), *(found - chance)[1:]])
    profiles = make_profiles_of(deltas)
    measured = [
        subspace.left_overlap_excess(profiles, k),
        subspace.right_overlap_excess(profiles, "top", k),
        subspace.right_overlap_excess(profiles, "bottom", k),
        subspace.interaction_overlap_excess(profiles, "top", k),
        subspace.interaction_overlap_excess(profiles, "bottom", k),
    ]
    np.testing.assert_allclose([matrix[0, 1] for matrix in measured], np.mean(values, axis=0), atol=1e-6)


def test_random_subspaces_have_no_excess(make_profiles_of):
    generator = np.random.default_rng(4)
    # The singular vectors of Gaussian matrices are uniformly distributed: 60 matrices, ten pairs of models.
    shapes = {f"visual.{i}": ((24, 40), (60, 20))[i % 2] for i in range(60)}
    deltas = {
        task: {name: generator.normal(size=shape) for name, shape in shapes.items()} for task in "abcde"
    }
    table = measure(make_profiles_of(deltas), {name: EXTRA[name] for name in EXCESS})
    plain = measure(make_profiles_of(deltas), {"top": PAPER["interaction_matrix_overlap_top_k"]})
    assert len(table.columns) == 5
    assert plain["top"].mean() == pytest.approx((10 / 40 + 10 / 20) / 2, abs=0.01)
    means = table.mean()
    # Averages of 600 values: their standard error is about 0.001.
    assert means.filter(like="interaction").abs().max() < 0.004
    # The mean of a square root is a little below the root of the mean.
    assert (means < 0.002).all()
    assert (means > -0.008).all()


def test_random_subspaces_meet_at_the_chance_level_that_is_taken_off():
    generator = np.random.default_rng(5)
    for k, n in ((10, 40), (6, 12), (3, 50)):
        bases = [np.linalg.qr(generator.normal(size=(n, k)))[0] for _ in range(400)]
        overlaps = [overlap(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
        assert np.mean(overlaps) == pytest.approx(k / n, abs=4 * np.std(overlaps) / np.sqrt(200))


def test_linear_cka_sees_neither_rotation_nor_scale_nor_place(make_profiles, five_models, monkeypatch):
    profiles = make_profiles(five_models)
    generator = np.random.default_rng(6)
    images = generator.normal(size=(9, 12)).astype(np.float32)
    turned = images @ np.linalg.qr(generator.normal(size=(12, 12)))[0] * 3 + 5
    other = generator.normal(size=(9, 12))
    point = np.full((9, 12), 0.7, np.float32)
    # What rounding makes of one point must not count as geometry.
    point[::2] = np.nextafter(point[::2], np.float32(1))
    given = {"a": images, "b": turned, "c": other, "d": point, "e": other[:, :1]}
    rows = {task: torch.from_numpy(one.astype(np.float32)) for task, one in given.items()}
    monkeypatch.setattr(Activations, "combine", lambda _self, _subject: rows)
    matrix = gram.linear_cka(profiles)
    assert matrix[0, 1] == pytest.approx(1, abs=1e-6)
    assert matrix[1, 2] == pytest.approx(matrix[0, 2], rel=1e-5)
    assert 0 < matrix[0, 2] < 0.9
    assert np.isnan(matrix[3]).all()
    assert np.isfinite(matrix[4, :3]).all()


def test_both_views_of_the_activations_take_one_forward_pass_per_model(make_profiles, five_models):
    profiles = make_profiles(five_models)
    gram.cosine_similarity(profiles, "activation")
    gram.linear_cka(profiles)
    store = profiles.task_vectors.store
    assert store.computed["activation"] == 5
    assert store.computed["gram"] == 1


def test_what_is_left_of_the_published_metrics_has_no_exact_duplicates(
    make_profiles, five_models, base_state
):
    generator = torch.Generator().manual_seed(8)
    more = {
        task: {
            name: value + 0.03 * (position + 1) * torch.randn(value.shape, generator=generator)
            for name, value in base_state.items()
        }
        for position, task in enumerate("fghij")
    }
    table = measure(make_profiles({**five_models, **more}))
    assert len(table) == 45

    def rank(names):
        values = table[list(names)].to_numpy()
        standardised = (values - values.mean(0)) / values.std(0)
        singular = np.linalg.svd(standardised, compute_uv=False)
        # Exact duplicates leave what rounding leaves.
        return int((singular > 1e-10 * singular[0]).sum())

    assert rank(PAPER) == rank(MINIMAL) == len(MINIMAL) == 25
    assert set(MINIMAL) < set(PAPER)


def test_metrics_without_their_data_are_refused_at_once(make_profiles, five_models):
    profiles = make_profiles(five_models, with_views=False)
    everything = {**PAPER, **EXTRA}
    with pytest.raises(
        UserError, match=r"11 of the 35 metrics, such as activation_l2_dist.*, require images.*=weights"
    ):
        measure(profiles, everything)
    assert not profiles.task_vectors.store.computed
    shared = {name: one.metric for name, one in CATALOGUE.items() if one.traits.per_pair}
    with pytest.raises(
        UserError, match=f"{len(shared)} of the {len(shared)} metrics, such as .*, require images"
    ):
        measure(profiles, shared)
    table = measure(profiles, {"mine": EXTRA["sign_conflict"], **everything}, on_error="nan")
    assert table.notna().all().sum() == 1 + 18 + 6
    assert len(table.attrs["failures"]) == 11
