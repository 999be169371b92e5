import numpy as np
import pytest

from mergeability.linalg import grams
from mergeability.linalg.grams import streamed_gram


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(7, 1000)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 64, 1000, 4096])
@pytest.mark.parametrize("together", [2, 3, 4, 7, 512])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_blocks_and_groups_change_nothing(vectors, monkeypatch, block, together, device):
    monkeypatch.setattr(grams, "BLOCK", block)
    monkeypatch.setattr(grams, "TOGETHER", together)
    held = []

    def read(row, start, stop):
        held.append(stop - start)
        return vectors[row, start:stop]

    gram = streamed_gram(read, 7, 1000, device=device)
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(gram, wide @ wide.T, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(gram, gram.T)
    assert max(held) <= block
    if together >= 7:
        assert sum(held) == vectors.size, "each number is read once"


def test_float32_is_not_where_sums_are_made():
    """Ten million ones and a large number: float32 would lose them."""
    row = np.full(2**22, 1.0, dtype=np.float32)
    row[0] = 2.0**13
    gram = streamed_gram(lambda _row, start, stop: row[start:stop], 1, len(row))
    assert gram[0, 0] == 2.0**26 + len(row) - 1


def test_the_gram_matrix_of_nothing_is_zero():
    np.testing.assert_array_equal(streamed_gram(lambda *_: np.empty(0, np.float32), 3, 0), np.zeros((3, 3)))
