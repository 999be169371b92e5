"""TSV-M, Iso-C and the polar factor against their definitions by NumPy's SVD."""

import numpy as np
import pytest
import torch
from scipy.linalg import polar

from mergeability.linalg.polar import polar_factor
from mergeability.merging import TSVM, IsoC

SHAPES = {"tall": (30, 12), "wide": (9, 20), "square": (16, 16), "vector": (11,)}


@pytest.fixture
def vectors(make_task_vectors, random_tensors):
    deltas = {task: random_tensors(seed, 0.1, SHAPES) for seed, task in enumerate("abc", start=1)}
    return make_task_vectors(random_tensors(0, 1.0, SHAPES), deltas)


def orthogonalised(matrix):
    U, _, Vh = np.linalg.svd(matrix, full_matrices=False)
    return U @ Vh


def truncated(matrix, rank):
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def tsv_by_definition(stack):
    parts = [truncated(matrix, min(matrix.shape) // len(stack)) for matrix in stack]
    left, right = np.hstack([U for U, _, _ in parts]), np.vstack([Vh for _, _, Vh in parts])
    return orthogonalised(left) * np.concatenate([S for _, S, _ in parts]) @ orthogonalised(right)


def iso_by_definition(total):
    return np.linalg.svd(total, compute_uv=False).mean() * orthogonalised(total)


@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_tsv_follows_its_definition(vectors, tasks):
    merged = TSVM()(vectors.select(tasks))
    for name in ("tall", "wide", "square"):
        stack = vectors.select(tasks)[name].double().numpy()
        np.testing.assert_allclose(merged[name], tsv_by_definition(stack), atol=2e-5)
    torch.testing.assert_close(merged["vector"], vectors.select(tasks)["vector"].mean(0))


def test_tsv_of_two_copies_keeps_the_leading_half(make_task_vectors, random_tensors):
    delta = random_tensors(1, 0.1, SHAPES)
    copies = make_task_vectors(random_tensors(0, 1.0, SHAPES), {"a": delta, "b": delta})
    merged = TSVM()(copies)
    for name in ("tall", "wide", "square"):
        matrix = copies[name][0].double().numpy()
        U, S, Vh = truncated(matrix, min(matrix.shape) // 2)
        np.testing.assert_allclose(merged[name], U * S @ Vh, atol=2e-5)


def test_tsv_leaves_a_model_equal_to_the_base_out(make_task_vectors, random_tensors):
    deltas = {"a": random_tensors(1, 0.1, SHAPES), "zero": random_tensors(2, 0.0, SHAPES)}
    pair = make_task_vectors(random_tensors(0, 1.0, SHAPES), deltas)
    U, S, Vh = truncated(pair["tall"][0].double().numpy(), 6)
    np.testing.assert_allclose(TSVM()(pair)["tall"], U * S @ Vh, atol=2e-5)


def test_tsv_loses_no_direction_where_the_bases_fill_the_space(make_task_vectors, random_tensors):
    # Three random thirds of 60 directions nearly share some: the factors are rotations all the same.
    shapes = {"w": (60, 60)}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("abc", start=1)}
    vectors = make_task_vectors(random_tensors(0, 1.0, shapes), deltas)
    stack = vectors["w"].double().numpy()
    expected = tsv_by_definition(stack)
    np.testing.assert_allclose(TSVM()(vectors)["w"], expected, atol=2e-4)
    retained = np.concatenate([truncated(matrix, 20)[1] for matrix in stack])
    values = np.linalg.svd(TSVM()(vectors)["w"].double().numpy(), compute_uv=False)
    np.testing.assert_allclose(values, np.sort(retained)[::-1], rtol=1e-4)


def test_tsv_keeps_a_direction_that_two_tasks_nearly_share(make_task_vectors):
    # By hand: two triplets of each of three tasks, on axes of their own but for one right vector, which is 1e-4
    # off that of another task: less than an SVD of so long vectors in float32 calls nothing.
    deltas = {task: {"w": torch.zeros(6, 4096)} for task in "abc"}
    for task, row, column, value in (
        ("a", 0, 0, 6.0),
        ("a", 1, 1, 5.0),
        ("b", 2, 2, 4.0),
        ("b", 3, 3, 3.0),
        ("c", 4, 4, 2.0),
        ("c", 5, 0, 1.0),
        ("c", 5, 5, 1e-4),
    ):
        deltas[task]["w"][row, column] = value
    vectors = make_task_vectors({"w": torch.ones(6, 4096)}, deltas)
    values = np.linalg.svd(TSVM()(vectors)["w"].double().numpy(), compute_uv=False)
    np.testing.assert_allclose(values, [6, 5, 4, 3, 2, 1], rtol=1e-3)


def test_tsv_averages_matrices_that_have_too_few_directions(make_task_vectors, random_tensors):
    shapes = {"thin": (5, 2)}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("abc", start=1)}
    thin = make_task_vectors(random_tensors(0, 1.0, shapes), deltas)
    torch.testing.assert_close(TSVM()(thin)["thin"], thin["thin"].mean(0))


@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_iso_c_follows_its_definition(vectors, tasks):
    merged, cut = IsoC()(vectors.select(tasks)), IsoC(truncate=True)(vectors.select(tasks))
    for name in ("tall", "wide", "square"):
        stack = vectors.select(tasks)[name].double().numpy()
        np.testing.assert_allclose(merged[name], iso_by_definition(stack.sum(0)), atol=2e-5)
        parts = [truncated(matrix, min(matrix.shape) // len(stack)) for matrix in stack]
        total = sum(U * S @ Vh for U, S, Vh in parts)
        values = np.linalg.svd(total, compute_uv=False)
        assert np.linalg.norm(cut[name]) == pytest.approx(values.mean() * np.sqrt(len(values)), rel=1e-5)
        if min(total.shape) % len(stack) == 0:
            np.testing.assert_allclose(cut[name], iso_by_definition(total), atol=2e-5)
    torch.testing.assert_close(merged["vector"], vectors.select(tasks)["vector"].mean(0))


def test_iso_c_cuts_to_one_direction_at_least(make_task_vectors, random_tensors):
    shapes = {"thin": (5, 2)}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("abc", start=1)}
    thin = make_task_vectors(random_tensors(0, 1.0, shapes), deltas)
    parts = [truncated(matrix, 1) for matrix in thin["thin"].double().numpy()]
    expected = iso_by_definition(sum(U * S @ Vh for U, S, Vh in parts))
    np.testing.assert_allclose(IsoC(truncate=True)(thin)["thin"], expected, atol=2e-5)


def test_iso_c_fills_missing_directions_with_the_mean(make_task_vectors, random_tensors):
    def rank_two(seed):
        matrix = random_tensors(seed, 0.1, SHAPES)["square"].double()
        return {"square": (matrix[:, :2] @ matrix[:2]).float()}

    pair = make_task_vectors({"square": torch.full((16, 16), 4.0)}, {"a": rank_two(1), "b": rank_two(2)})
    merged = IsoC()(pair)["square"].double().numpy()
    mean = np.linalg.svd(pair["square"].sum(0).double().numpy(), compute_uv=False).mean()
    np.testing.assert_allclose(np.linalg.svd(merged, compute_uv=False), mean, rtol=1e-4)


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (12, 12)])
@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4])
def test_the_polar_factor_agrees_with_scipy(shape, smallest):
    generator = np.random.default_rng(0)
    U, _, Vh = np.linalg.svd(generator.normal(size=shape), full_matrices=False)
    values = np.geomspace(smallest, 1, min(shape))
    matrix = (U * values @ Vh).astype(np.float32)
    factor, found, full_rank = polar_factor(torch.from_numpy(matrix))
    side = "right" if shape[0] >= shape[1] else "left"
    np.testing.assert_allclose(factor, polar(matrix.astype(np.float64), side)[0], atol=1e-6)
    np.testing.assert_allclose(
        found, np.sort(np.linalg.svd(matrix.astype(np.float64), compute_uv=False)), rtol=1e-6
    )
    assert full_rank


def test_the_polar_factor_of_a_deficient_matrix_is_a_partial_isometry():
    generator = np.random.default_rng(1)
    U, _, Vh = np.linalg.svd(generator.normal(size=(10, 6)), full_matrices=False)
    values = np.array([3, 2, 1, 0, 0, 0.0])
    factor, _, full_rank = polar_factor(torch.from_numpy((U * values @ Vh).astype(np.float32)))
    assert not full_rank
    np.testing.assert_allclose(factor, U[:, :3] @ Vh[:3], atol=1e-6)
    zero, _, full_rank = polar_factor(torch.zeros(4, 3))
    assert not zero.any()
    assert not full_rank
