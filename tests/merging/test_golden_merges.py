import json

import numpy as np
import pytest

from mergeability import merging
from mergeability.task_vectors.vectors import TaskVectors

# What is added and compared entry by entry agrees to the last digits; what goes through an SVD to those of float32.
EXACT, BY_SVD = 1e-6, 1e-4
METHODS = {
    "average": (merging.Average(), EXACT),
    "task_arithmetic": (merging.TaskArithmetic(), EXACT),
    "ties": (merging.Ties(), EXACT),
    "ties_sum": (merging.Ties(agg="sum"), EXACT),
    "consensus_ta": (merging.ConsensusTA(), EXACT),
    "tsv_m": (merging.TSVM(), BY_SVD),
    "iso_c": (merging.IsoC(), BY_SVD),
    "iso_cts": (merging.IsoCTS(), BY_SVD),
}


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())["merges"]


@pytest.fixture(scope="module")
def opened(golden):
    """Task vectors of some models, opened once for all methods."""
    return {
        count: TaskVectors.load(
            {f"task{number}": golden / f"task{number}.safetensors" for number in range(count)},
            golden / "base.safetensors",
        )
        for count in (2, 4)
    }


@pytest.mark.parametrize("count", [2, 4])
def test_every_method_with_published_values_is_compared(expected, count):
    assert expected["+".join(f"task{number}" for number in range(count))].keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [2, 4])
def test_merges_agree_with_the_code_of_their_authors(expected, opened, count, name):
    method, tolerance = METHODS[name]
    vectors = opened[count]
    values = expected["+".join(vectors.tasks)][name]
    merged = method(vectors)
    assert merged.keys() == values.keys()
    for key, (norm, probe) in values.items():
        array = merged[key].double().numpy()
        weights = np.random.default_rng(7).normal(size=array.shape)
        assert np.linalg.norm(array) == pytest.approx(norm, rel=tolerance, abs=1e-12), key
        # The probe may nearly cancel: it is compared on the scale of the norms.
        assert (array * weights).sum() == pytest.approx(probe, abs=tolerance * norm + 1e-12), key
