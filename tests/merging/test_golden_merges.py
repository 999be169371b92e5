import json

import numpy as np
import pytest

from mergeability import merging
from mergeability.task_vectors import TaskVectors

METHODS = {
    "average": merging.Average(),
    "task_arithmetic": merging.TaskArithmetic(),
    "ties": merging.Ties(),
    "ties_sum": merging.Ties(agg="sum"),
    "tsv_m": merging.TSVM(),
    "iso_c": merging.IsoC(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("models", ["task0+task1", "task0+task1+task2+task3"])
def test_merges_agree_with_the_code_of_their_authors(golden, models, method):
    expected = json.loads((golden / "expected.json").read_text())["merges"][models][method]
    paths = {task: golden / f"{task}.safetensors" for task in models.split("+")}
    merged = METHODS[method](TaskVectors.load(paths, golden / "base.safetensors"))
    assert merged.keys() == expected.keys()
    for name, (norm, probe) in expected.items():
        array = merged[name].double().numpy()
        weights = np.random.default_rng(7).normal(size=array.shape)
        assert np.linalg.norm(array) == pytest.approx(norm, rel=1e-3, abs=1e-12), name
        # The probe may nearly cancel: it is compared on the scale of the norms.
        assert (array * weights).sum() == pytest.approx(probe, abs=1e-3 * norm + 1e-12), name
