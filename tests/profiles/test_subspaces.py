import numpy as np
import pytest

from mergeability.profiles import subspaces
from mergeability.profiles.subspaces import decompose, squared_overlaps


def with_spectrum(rows, columns, values, seed=0):
    generator = np.random.default_rng(seed)
    U = np.linalg.qr(generator.normal(size=(rows, len(values))))[0]
    V = np.linalg.qr(generator.normal(size=(columns, len(values))))[0]
    return ((U * values) @ V.T).astype(np.float32)


def projector(basis):
    return np.asarray(basis, dtype=np.float64) @ np.asarray(basis, dtype=np.float64).T


def bases_of(matrix, k):
    """The outer singular vectors by definition, in float64."""
    U, _, Vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return {
        "left_top": U[:, :k],
        "left_bottom": U[:, -k:],
        "right_top": Vh[:k].T,
        "right_bottom": Vh[-k:].T,
    }


# Above and below the size from which only a part of the eigenvectors is computed.
@pytest.mark.parametrize(
    "shape", [(40, 24), (24, 40), (30, 30), (200, 96), (96, 200), (128, 128), (1100, 70)]
)
def test_values_and_outer_subspaces_agree_with_numpy(shape):
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = decompose(matrix, 5)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found["values"], expected, rtol=1e-9)
    for name, basis in bases_of(matrix, 5).items():
        # Both ends as subspaces: their vectors are unique up to sign only.
        np.testing.assert_allclose(projector(found[name]), projector(basis), atol=2e-6)


def test_vectors_come_in_the_order_of_their_values():
    matrix = with_spectrum(90, 80, np.geomspace(1, 1e-2, 80))
    found = decompose(matrix, 3)
    U, _, Vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    for basis, expected in (("left_top", U[:, :3]), ("left_bottom", U[:, -3:]), ("right_bottom", Vh[-3:].T)):
        cosines = np.abs(np.sum(found[basis].numpy() * expected, axis=0))
        np.testing.assert_allclose(cosines, 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(200, 90), (90, 200)])
def test_squaring_costs_a_float32_matrix_nothing(shape):
    """Down to the precision that float32 numbers have, the last vectors are found, although s² spans 10^12."""
    matrix = with_spectrum(*shape, np.geomspace(1, 1e-6, 90))
    found = decompose(matrix, 4)
    np.testing.assert_allclose(
        found["values"], np.linalg.svd(matrix.astype(np.float64), compute_uv=False), rtol=1e-4
    )
    for name, basis in bases_of(matrix, 4).items():
        np.testing.assert_allclose(projector(found[name]), projector(basis), atol=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_the_scale_of_the_update_changes_no_subspace(scale):
    matrix = np.random.default_rng(2).normal(size=(80, 100)).astype(np.float32)
    plain, scaled = decompose(matrix, 4), decompose((matrix * np.float32(scale)), 4)
    np.testing.assert_allclose(scaled["values"], plain["values"] * scale, rtol=1e-5)
    for name in bases_of(matrix, 4):
        np.testing.assert_allclose(projector(scaled[name]), projector(plain[name]), atol=1e-4)


def names(found):
    return {name for name in found if name != "values"}


EVERYTHING = {"left_top", "left_bottom", "right_top", "right_bottom"}


@pytest.mark.parametrize(
    ("shape", "values", "determined"),
    [
        # The last five right vectors of a tall matrix span what the others leave, if just five are left.
        ((30, 20), np.r_[np.linspace(2, 1, 15), np.zeros(5)], EVERYTHING - {"left_bottom"}),
        ((20, 30), np.r_[np.linspace(2, 1, 15), np.zeros(5)], EVERYTHING - {"right_bottom"}),
        ((20, 20), np.r_[np.linspace(2, 1, 15), np.zeros(5)], EVERYTHING),
        # Twelve directions are left: any five of them could be the last.
        ((30, 20), np.r_[np.linspace(2, 1, 8), np.zeros(12)], {"left_top", "right_top"}),
        # Rank five: the first five are all there is. Rank three: two of the first five could be anything.
        ((30, 20), np.r_[np.linspace(2, 1, 5), np.zeros(15)], {"left_top", "right_top"}),
        ((30, 20), np.r_[np.linspace(2, 1, 3), np.zeros(17)], set()),
        # Equal singular values across the boundary.
        ((30, 20), np.ones(20), set()),
        ((30, 20), np.r_[np.full(6, 2.0), np.linspace(1, 0.5, 14)], {"left_bottom", "right_bottom"}),
        # All vectors of the smaller side: nothing is left to choose.
        ((30, 5), np.ones(5), EVERYTHING),
        ((30, 5), np.r_[np.ones(4), 0], {"right_top", "right_bottom"}),
        ((3, 30), np.r_[1.0, 0.5, 0], {"left_top", "left_bottom"}),
    ],
)
def test_only_what_the_matrix_determines_is_given(shape, values, determined):
    # Exact zeros stay exact: a product of rounded factors would be of full rank by its rounding.
    rows, columns = shape
    matrix = np.zeros(shape, dtype=np.float32)
    matrix[range(len(values)), range(len(values))] = values
    assert min(rows, columns) == len(values)
    assert names(decompose(matrix, 5)) == determined


def test_equal_values_are_recognised_in_large_matrices_too():
    assert names(decompose(with_spectrum(150, 100, np.r_[np.geomspace(1, 0.1, 40), np.zeros(60)]), 5)) == {
        "left_top",
        "right_top",
    }, "what rounding left of the zeros has no direction either"
    assert names(decompose(np.eye(100, dtype=np.float32), 5)) == set()


def test_a_matrix_of_zeros_has_no_direction():
    found = decompose(np.zeros((100, 70), dtype=np.float32), 5)
    assert not found["values"].any()
    assert names(found) == set()


def test_overlaps_of_all_pairs_are_those_of_each_pair():
    generator = np.random.default_rng(3)
    matrices = [generator.normal(size=(40, 90)).astype(np.float32) for _ in range(4)]
    models = [decompose(matrix, 6) for matrix in matrices]
    expected = [bases_of(matrix, 6) for matrix in matrices]
    for name, extent in (("left_top", 40), ("right_bottom", 90)):
        overlaps = squared_overlaps(models, models, name, (extent, 6))
        for a, left in enumerate(expected):
            for b, right in enumerate(expected):
                cosines = np.linalg.svd(left[name].T @ right[name], compute_uv=False)
                assert overlaps[a, b] == pytest.approx(np.sum(cosines**2), rel=1e-5)
        np.testing.assert_array_equal(overlaps, overlaps.T)
        parts = squared_overlaps(models[:3], models[3:], name, (extent, 6))
        np.testing.assert_allclose(parts, overlaps[:3, 3:], rtol=1e-6)


def test_a_model_without_the_basis_has_no_overlap():
    generator = np.random.default_rng(4)
    models = [decompose(generator.normal(size=(9, 8)).astype(np.float32), 2) for _ in range(3)]
    del models[1]["left_top"]
    overlaps = squared_overlaps(models, models, "left_top", (9, 2))
    assert np.isnan(overlaps).tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_on_a_device_the_same_products_are_made_by_torch():
    """Without a GPU at hand, the branch for one runs on PyTorch's CPU device."""
    matrix = np.random.default_rng(5).normal(size=(150, 90)).astype(np.float32)
    here, there = decompose(matrix, 4), decompose(matrix, 4, device="cpu:0")
    for name, value in here.items():
        close = projector(there[name]) - projector(value) if value.ndim == 2 else there[name] - value
        assert np.abs(np.asarray(close)).max() < 1e-4


def test_what_is_announced_as_needed_is_enough():
    import tracemalloc

    matrix = np.random.default_rng(6).normal(size=(2048, 512)).astype(np.float32)
    decompose(matrix[:600, :100], 10)
    tracemalloc.start()
    decompose(matrix, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The matrix itself was made before tracing began.
    assert peak + matrix.nbytes < subspaces.needed(matrix.shape)
