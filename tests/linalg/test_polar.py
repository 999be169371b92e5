import numpy as np
import pytest
import torch

from mergeability.linalg.polar import polar_factor, polar_factor_of_bases


def factor_of(stack):
    parts = polar_factor_of_bases(stack)
    return parts[0] if len(parts) == 1 else parts[0] @ parts[1]


def bases(count, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float()


def side_by_side(stack):
    return np.concatenate([base.double().numpy() for base in stack], axis=1)


def factor_by_svd(matrix):
    U, _, Vh = np.linalg.svd(matrix, full_matrices=False)
    return U @ Vh


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_the_factor_is_that_of_the_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factor, values, full = polar_factor(matrix)
    np.testing.assert_allclose(factor.numpy(), factor_by_svd(matrix.double().numpy()), atol=1e-5)
    np.testing.assert_allclose(
        values.numpy()[::-1], np.linalg.svd(matrix.double().numpy(), compute_uv=False), rtol=1e-6
    )
    assert full


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", [(30, 4), (24, 8), (200, 60), (200, 20), (21, 7)])
def test_bases_side_by_side_have_the_factor_of_their_svd(count, shape):
    stack = bases(count, *shape)
    np.testing.assert_allclose(factor_of(stack).numpy(), factor_by_svd(side_by_side(stack)), atol=2e-6)


def test_two_bases_that_fill_the_space_nearly_share_directions():
    # The smallest angle between two halves of the space goes to zero with its dimension.
    stack = bases(2, 120, 60)
    found = factor_of(stack).double().numpy()
    np.testing.assert_allclose(found.T @ found, np.eye(120), atol=1e-5)
    np.testing.assert_allclose(found, factor_by_svd(side_by_side(stack)), atol=2e-4)


def test_orthogonal_bases_stay_as_they_are():
    whole = bases(1, 20, 10)[0]
    stack = torch.stack([whole[:, :5], whole[:, 5:]])
    np.testing.assert_allclose(factor_of(stack).numpy(), whole.numpy(), atol=1e-6)


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5, 0.0])
def test_two_bases_at_a_known_angle(angle):
    # By hand: in the plane of u and v at the angle 2φ the factor turns both apart to 90°.
    u, v = np.zeros(5), np.zeros(5)
    u[0] = 1
    v[:2] = np.cos(angle), np.sin(angle)
    stack = torch.tensor(np.stack([u[:, None], v[:, None]]), dtype=torch.float32)
    found = factor_of(stack).double().numpy()
    if angle > 0:
        middle, across = angle / 2, np.pi / 4
        expected = np.zeros((5, 2))
        expected[:2, 0] = np.cos(middle - across), np.sin(middle - across)
        expected[:2, 1] = np.cos(middle + across), np.sin(middle + across)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    else:
        # One direction twice: the partial isometry shares it.
        np.testing.assert_allclose(np.abs(found[0]), np.sqrt(0.5), atol=1e-5)
        np.testing.assert_allclose(found[1:], 0, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_missing_columns_stay_zero_and_move_nothing(count):
    stack = bases(count, 30, 6)
    stack[0][:, 4:] = 0
    found = factor_of(stack).numpy()
    kept = np.r_[0:4, 6 : 6 * count]
    np.testing.assert_allclose(found[:, kept], factor_by_svd(side_by_side(stack)[:, kept]), atol=2e-6)
    assert np.abs(found[:, 4:6]).max() < 1e-14
