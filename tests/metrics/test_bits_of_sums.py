"""Sums over tensors end in the same bits as in version 0.1.0, however many models are looked at together."""

import numpy as np
import pytest

from mergeability.metrics import rank


def test_layers_lie_next_to_each_other_so_that_sums_are_pairwise(make_profiles, five_models):
    profiles = make_profiles(five_models, with_views=False)
    grams = profiles.layer_grams("task_vector")
    stacked = np.stack(list(grams))
    # As version 0.1.0 arranged them: by two index arrays, one after the other.
    places = list(range(len(five_models)))
    arranged = stacked[:, places][:, :, places]
    assert grams.strides == arranged.strides
    assert profiles.gram().tobytes() == arranged.sum(0).tobytes()


@pytest.mark.parametrize("together", [1, 2, 3])
def test_the_layerwise_rank_does_not_depend_on_how_many_models_are_looked_at_together(
    make_profiles, five_models, monkeypatch, together
):
    profiles = make_profiles(five_models, with_views=False)
    whole = rank.layerwise_effective_rank(profiles)
    monkeypatch.setattr(rank, "_TOGETHER", together)
    assert rank.layerwise_effective_rank(profiles).tobytes() == whole.tobytes()
