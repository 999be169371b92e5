"""Iso-CTS against its definition by SciPy's SVD, cases solved by hand, and what its authors' code cannot do."""

import numpy as np
import pytest
import scipy.linalg
import torch

from mergeability.errors import UserError
from mergeability.merging import IsoC, IsoCTS

SHAPES = {"tall": (30, 12), "wide": (9, 20), "square": (16, 16), "vector": (11,)}


@pytest.fixture
def vectors(make_task_vectors, random_tensors):
    deltas = {task: random_tensors(seed, 0.1, SHAPES) for seed, task in enumerate("abc", start=1)}
    return make_task_vectors(random_tensors(0, 1.0, SHAPES), deltas)


def svd(matrix):
    # The slower driver: it never fails to converge.
    return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")


def orthogonalised(matrix):
    U, _, Vh = svd(matrix)
    return U @ Vh


def by_definition(stack, common, own):
    U, S, Vh = svd(stack.sum(0))
    left, values, right = [U[:, :common]], [S[:common]], [Vh[:common]]
    for delta in stack:
        ut, st, vt = svd(delta - left[0] @ left[0].T @ delta)
        left.append(ut[:, :own])
        values.append(st[:own])
        right.append(vt[:own])
    mean = np.concatenate(values).mean()
    return mean * orthogonalised(np.hstack(left)) @ orthogonalised(np.vstack(right))


def merged_matrix(make_task_vectors, matrices, **options):
    """Merge models of one matrix each, from a base of a power of two, so that short numbers are not rounded."""
    deltas = {f"task{number}": {"w": torch.tensor(one)} for number, one in enumerate(matrices)}
    base = {"w": torch.full(np.shape(matrices[0]), 32.0)}
    return IsoCTS(**options)(make_task_vectors(base, deltas))["w"].numpy()


# Worked out by hand: m = 12, 9, 16 directions, of which ⌊0.8·m⌋ = 9, 7, 12 are common before rounding; the rest
# of 3, 2, 4 is shared by two tasks (1.5 → 2, 1, 2 each) or three (1, 0.67 → 1, 1.33 → 1 each).
@pytest.mark.parametrize(
    ("tasks", "name", "common", "own"),
    [
        ("ab", "tall", 8, 2),
        ("ab", "wide", 7, 1),
        ("ab", "square", 12, 2),
        ("abc", "tall", 9, 1),
        ("abc", "wide", 6, 1),
        ("abc", "square", 13, 1),
    ],
)
def test_it_follows_its_definition(vectors, tasks, name, common, own):
    chosen = vectors.select(tasks)
    merged = IsoCTS()(chosen)[name].double().numpy()
    expected = by_definition(chosen[name].double().numpy(), common, own)
    np.testing.assert_allclose(merged, expected, atol=1e-5)
    # Without the tasks' own directions it would be another matrix.
    assert np.abs(merged - IsoC()(chosen)[name].numpy()).max() > 1e-2


@pytest.mark.parametrize("common", [0.25, 0.5])
def test_the_share_of_common_directions_can_be_chosen(vectors, common):
    pair = vectors.select("ab")
    merged = IsoCTS(common=common)(pair)["square"]
    expected = by_definition(pair["square"].double().numpy(), int(16 * common), int(16 * (1 - common) / 2))
    np.testing.assert_allclose(merged, expected, atol=2e-5)


def test_all_directions_common_is_iso_c(vectors):
    merged, iso_c = IsoCTS(common=1)(vectors), IsoC()(vectors)
    for name in ("tall", "wide", "square"):
        np.testing.assert_allclose(merged[name], iso_c[name], atol=1e-5)


def test_what_is_no_matrix_is_averaged(vectors):
    torch.testing.assert_close(IsoCTS()(vectors)["vector"], vectors["vector"].mean(0))


# c₀ = ⌊common·m⌋, s = T·round((m − c₀)/T), halves to even and at most ⌊m/T⌋ each: s/T by hand.
@pytest.mark.parametrize(
    ("common", "smaller", "tasks", "own"),
    [
        (0.8, 768, 2, 77),  # c₀ = 614, 154/2
        (0.8, 768, 20, 8),  # 154/20 = 7.7
        (0.8, 512, 8, 13),  # c₀ = 409, 103/8 = 12.9
        (0.8, 48, 4, 2),  # c₀ = 38, 10/4 = 2.5 to even
        (0.8, 20, 8, 0),  # 4/8 = 0.5 to even: none is left for the tasks
        (0.8, 3, 2, 0),  # c₀ = 2, 1/2 to even
        (0.8, 1, 2, 0),
        (0.0, 3, 2, 1),  # 3/2 = 1.5 to even would be 2 each, and 4 of 3
        (0.0, 4, 2, 2),  # nothing is common
        (1.0, 768, 2, 0),  # nothing is the tasks' own
    ],
)
def test_the_directions_are_divided_between_the_tasks(common, smaller, tasks, own):
    assert IsoCTS(common=common)._directions_per_task(smaller, tasks) == own


def test_tasks_on_different_axes_by_hand(make_task_vectors):
    # Half of 4 directions is common: the axes of 8 and 6. What is left of each task is 2 and 1: the mean is 4.25.
    a, b = np.diag([8.0, 0, 2, 0]).astype("f"), np.diag([0, 6.0, 0, 1]).astype("f")
    merged = merged_matrix(make_task_vectors, [a, b], common=0.5)
    np.testing.assert_allclose(merged, 4.25 * np.eye(4), atol=1e-5)


def test_tasks_that_share_their_own_direction_by_hand(make_task_vectors):
    # Both have the third axis to themselves, with 2 and 1: one direction for two, which nothing fills up.
    a, b = np.diag([8.0, 0, 2, 0]).astype("f"), np.diag([0, 6.0, 1, 0]).astype("f")
    merged = merged_matrix(make_task_vectors, [a, b], common=0.5)
    np.testing.assert_allclose(merged, 4.25 * np.diag([1.0, 1, 1, 0]), atol=1e-5)


def test_a_task_within_the_common_directions_adds_none_of_its_own(make_task_vectors):
    # In a turned frame, so that its residual is rounding and not zero: b lies in what is common.
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(24, 24)))[0] for _ in range(2))
    first = np.r_[np.linspace(5, 4, 12), np.zeros(12)]
    second = first.copy()
    second[12:] = np.linspace(0.2, 0.1, 12)
    matrices = [((left * values) @ right.T).astype("f") for values in (second, first)]
    merged = merged_matrix(make_task_vectors, matrices, common=0.5)
    # Half of the 12 own directions are a's, the leading ones of its rest; b's half is empty.
    values = np.r_[2 * first[:12], second[12:18], np.zeros(6)]
    expected = values.mean() * left[:, :18] @ right[:, :18].T
    np.testing.assert_allclose(merged, expected, atol=5e-4)


def test_zero_matrices_give_zero_and_one_of_them_does_no_harm(make_task_vectors, random_tensors):
    zero, delta = np.zeros((6, 5), "f"), random_tensors(1, 0.5, {"w": (6, 5)})["w"].numpy()
    assert not merged_matrix(make_task_vectors, [zero, zero]).any()
    merged = merged_matrix(make_task_vectors, [delta, zero], common=0.4)
    # Two common directions; the residual of the model's own rest gives one more, and the other task none.
    U, S, Vh = svd((np.float32(32) + delta - np.float32(32)).astype("d"))
    values = np.r_[S[:3], np.zeros(2)]
    np.testing.assert_allclose(merged, values.mean() * U[:, :3] @ Vh[:3], atol=1e-4)


@pytest.mark.parametrize("shape", [(256, 192), (192, 256), (192, 192)])
@pytest.mark.parametrize("tasks", [2, 3])
def test_random_updates_whose_bases_have_hundreds_of_equal_singular_values(make_task_vectors, shape, tasks):
    generator = torch.Generator().manual_seed(0)
    matrices = [0.25 * torch.randn(shape, generator=generator).numpy() for _ in range(tasks)]
    merged = merged_matrix(make_task_vectors, matrices)
    assert np.isfinite(merged).all()
    values = np.linalg.svd(merged.astype("d"), compute_uv=False)
    np.testing.assert_allclose(values, values.mean(), rtol=1e-4)
    stack = np.stack([np.float32(32) + one - np.float32(32) for one in matrices]).astype("d")
    own = round((192 - 153) / tasks)
    expected = by_definition(stack, 192 - own * tasks, own)
    assert np.linalg.norm(merged - expected) < 1e-3 * np.linalg.norm(expected)


def test_updates_with_orthonormal_blocks_have_equal_singular_values_everywhere(make_task_vectors):
    # Every singular value of either task is 1, their blocks do not meet: a basis side by side is orthonormal.
    generator = np.random.default_rng(0)
    blocks = [np.linalg.qr(generator.normal(size=(128, 96)))[0] for _ in range(2)]
    a, b = np.zeros((256, 192), "f"), np.zeros((256, 192), "f")
    a[:128, :96], b[128:, 96:] = blocks
    merged = merged_matrix(make_task_vectors, [a, b])
    assert np.isfinite(merged).all()
    values = np.linalg.svd(merged.astype("d"), compute_uv=False)
    # Which of the equal directions are common is not determined: each may be taken twice, or not at all.
    assert values.max() < 1 + 1e-4
    assert ((values > 0.9 * values.max()) | (values < 1e-3)).all()


def test_no_direction_is_lost_where_the_bases_fill_the_space(make_task_vectors):
    # The tasks' own right vectors are 1e-4 apart: less than an SVD of so long vectors in float32 calls nothing.
    a, b = (np.zeros((64, 2048), "f") for _ in range(2))
    a[:62, :62] = b[:62, :62] = np.diag(np.linspace(3, 2, 62)) / 2
    a[62, 62], b[63, 62], b[63, 63] = 1, 1, 1e-4
    merged = merged_matrix(make_task_vectors, [a, b], common=31 / 32)
    values = np.linalg.svd(merged.astype("d"), compute_uv=False)
    np.testing.assert_allclose(values, (np.linspace(3, 2, 62).sum() + 2) / 64, rtol=1e-3)


@pytest.mark.parametrize("common", [-0.1, 1.1, float("nan"), True])
def test_a_share_that_is_none_is_refused(common):
    with pytest.raises(UserError, match=r"`common` to be in \[0, 1\]"):
        IsoCTS(common=common)
