import numpy as np
import pytest
import torch

from mergeability.linalg.decompositions import gram_matrix, leading_triplets, product


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16), (600, 30), (1, 7), (7, 1)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_leading_triplets_agree_with_numpy(shape, share):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rank = max(1, int(share * min(shape)))
    U, S, Vh = (factor.numpy() for factor in leading_triplets(torch.from_numpy(matrix), rank))
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    assert (U.shape, S.shape, Vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    assert {U.dtype, S.dtype, Vh.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(S, values[:rank], rtol=1e-6)
    np.testing.assert_allclose(np.abs((U * left[:, :rank]).sum(0)), 1, atol=1e-5)
    # Left and right vectors belong together: their product has no sign to choose.
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose((U * S) @ Vh, best, atol=1e-5 * values[0])


def test_small_singular_values_are_as_good_as_those_of_an_svd():
    generator = np.random.default_rng(1)
    left, right = (np.linalg.qr(generator.normal(size=(30, 6)))[0] for _ in range(2))
    values = np.array([1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    matrix = ((left * values) @ right.T).astype(np.float32)
    U, S, _ = (factor.double().numpy() for factor in leading_triplets(torch.from_numpy(matrix), 6))
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[:6]
    np.testing.assert_allclose(S, exact, rtol=1e-3, atol=2e-9)
    np.testing.assert_allclose(U.T @ U, np.eye(6), atol=1e-3)


def test_what_has_no_direction_is_zero():
    matrix = torch.outer(torch.arange(1.0, 6), torch.tensor([3.0, 4.0, 0.0]))
    U, S, Vh = leading_triplets(matrix, 3)
    assert S[0].item() == pytest.approx(float(np.linalg.norm(np.arange(1, 6))) * 5)
    assert S[1:].tolist() == [0, 0]
    assert not U[:, 1:].any()
    assert not Vh[1:].any()
    assert all(not factor.any() for factor in leading_triplets(torch.zeros(4, 3), 2))


def test_gram_matrices_are_exact_and_products_float64():
    tall = np.random.default_rng(2).normal(size=(1500, 7)).astype(np.float32)
    wide = tall.astype(np.float64)
    for given in (tall, torch.from_numpy(tall)):
        gram = gram_matrix(given)
        np.testing.assert_allclose(gram, wide.T @ wide, rtol=1e-13)
        assert np.array_equal(gram, gram.T)
        np.testing.assert_allclose(product(given, np.eye(7)), wide, rtol=1e-15)
