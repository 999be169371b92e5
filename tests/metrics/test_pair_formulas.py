"""Geometry and rank metrics against what NumPy and SciPy give for the pair's two vectors alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import distance
from scipy.stats import entropy

from mergeability.metrics import gram, rank
from mergeability.profiles.profiles import Profiles


class GivenGrams(Profiles):
    """Profiles whose Gram matrices come from vectors given as L×T×D."""

    def __init__(self, vectors):
        self._grams = np.einsum("ltd,lsd->lts", vectors, vectors)

    def layer_grams(self, view="task_vector"):
        return self._grams

    def gram(self, view="task_vector"):
        return self._grams.sum(0)


def flat(vectors):
    return np.concatenate(list(vectors), axis=1)


def spectrum(rows):
    return np.linalg.svd(rows, compute_uv=False)


def entropy_rank(rows):
    return np.exp(entropy(spectrum(rows)))


ORACLES = {
    gram.cosine_similarity: lambda a, b: 1 - distance.cosine(a, b),
    gram.l2_distance: distance.euclidean,
    gram.dot_product: np.dot,
    gram.angle: lambda a, b: np.degrees(np.arccos(1 - distance.cosine(a, b))),
    gram.magnitude_ratio: lambda a, b: np.divide(*sorted([np.linalg.norm(a), np.linalg.norm(b)])),
    rank.effective_rank: lambda a, b: entropy_rank([a, b]),
    rank.mergeability_score: lambda a, b: np.clip(2 - entropy_rank([a, b]), 0, 1),
    rank.stable_rank: lambda a, b: spectrum([a, b]).sum() ** 2 / (spectrum([a, b]) ** 2).sum(),
    rank.spectral_gap: lambda a, b: 1 - spectrum([a, b])[1] / spectrum([a, b])[0],
    rank.singular_value_ratio: lambda a, b: spectrum([a, b])[1] / spectrum([a, b])[0],
}


@pytest.mark.parametrize("metric", ORACLES, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_every_pair_agrees_with_its_two_vectors_alone(metric, scale):
    vectors = scale * np.random.default_rng(0).normal(size=(3, 4, 20))
    vectors[:, 1] += 2 * vectors[:, 0]
    matrix = metric(GivenGrams(vectors), view="task_vector")
    rows = flat(vectors)
    for a in range(4):
        for b in range(4):
            if a != b:
                assert matrix[a, b] == pytest.approx(ORACLES[metric](rows[a], rows[b]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("offset", [1e-2, 1e-4, 1e-6])
def test_nearly_parallel_vectors_keep_their_small_singular_value(offset):
    generator = np.random.default_rng(1)
    first = generator.normal(size=50)
    rows = np.stack([first, first + offset * generator.normal(size=50)])
    ratio = rank.singular_value_ratio(GivenGrams(rows[None]))[0, 1]
    s = spectrum(rows)
    assert ratio == pytest.approx(s[1] / s[0], rel=1e-3)


def test_layerwise_rank_weighs_layers_and_skips_what_did_not_move():
    vectors = np.random.default_rng(2).normal(size=(4, 2, 9))
    vectors[1] *= 5
    vectors[2, 0] = 0
    vectors[3] *= 1e-12
    weights = [np.linalg.norm(vectors[layer], axis=1).sum() for layer in (0, 1)]
    expected = np.average([entropy_rank(vectors[layer]) for layer in (0, 1)], weights=weights)
    profiles = GivenGrams(vectors)
    assert rank.layerwise_effective_rank(profiles)[0, 1] == pytest.approx(expected, rel=1e-9)
    assert rank.layerwise_mergeability_score(profiles)[0, 1] == pytest.approx(2 - expected, rel=1e-6)
    nothing = GivenGrams(np.zeros((2, 3, 4)))
    assert (rank.layerwise_effective_rank(nothing) == 2).all()
    assert (rank.layerwise_mergeability_score(nothing) == 0).all()


def test_a_zero_vector_has_no_direction():
    vectors = np.random.default_rng(3).normal(size=(1, 3, 8))
    vectors[0, 1] = 0
    profiles = GivenGrams(vectors)
    undefined = [gram.cosine_similarity, gram.angle, rank.effective_rank, rank.mergeability_score]
    undefined += [rank.stable_rank, rank.spectral_gap, rank.singular_value_ratio]
    for metric in undefined:
        matrix = metric(profiles, view="task_vector")
        assert np.isnan(matrix[0, 1]), metric.__name__
        assert np.isfinite(matrix[0, 2]), metric.__name__
    assert gram.magnitude_ratio(profiles, "task_vector")[0, 1] == 0
    assert gram.dot_product(profiles, "task_vector")[0, 1] == 0
    assert gram.l2_distance(profiles, "task_vector")[0, 1] == pytest.approx(np.linalg.norm(vectors[0, 0]))


def test_a_norm_below_the_published_limit_has_ratio_zero():
    vectors = np.array([[[1e-9, 0], [2e-9, 0], [1.0, 0], [2.0, 0]]])
    ratios = gram.magnitude_ratio(GivenGrams(vectors), "task_vector")
    assert ratios[0, 1] == ratios[0, 2] == 0
    assert ratios[2, 3] == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (2, 3, 5), elements=st.floats(-1e3, 1e3, width=32)))
def test_identities_hold_for_any_vectors(vectors):
    profiles = GivenGrams(vectors)
    effective, stable = rank.effective_rank(profiles), rank.stable_rank(profiles)
    gap, ratio = rank.spectral_gap(profiles), rank.singular_value_ratio(profiles)
    defined = ~np.isnan(effective)
    np.testing.assert_allclose((gap + ratio)[defined], 1)
    # s₂/s₁ = x determines both ranks: (1 + x)²/(1 + x²), and the entropy of (1, x)/(1 + x).
    np.testing.assert_allclose(stable[defined], ((1 + ratio) ** 2 / (1 + ratio**2))[defined])
    assert ((effective[defined] >= 1 - 1e-12) & (effective[defined] <= 2 + 1e-12)).all()
    cosine, distances = (
        gram.cosine_similarity(profiles, "task_vector"),
        gram.l2_distance(profiles, "task_vector"),
    )
    norms = np.linalg.norm(flat(vectors), axis=1)
    expected = np.linalg.norm(flat(vectors)[:, None] - flat(vectors)[None], axis=2)
    np.testing.assert_allclose(distances, expected, atol=1e-6 * (1 + norms.max()))
    assert (np.abs(cosine[~np.isnan(cosine)]) <= 1 + 1e-9).all()
