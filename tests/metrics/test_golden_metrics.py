import json

import pytest

from mergeability.metrics.catalogue import WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.task_vectors.vectors import TaskVectors


def test_the_18_metrics_of_weight_space_agree_with_the_reference_code(golden):
    models = {f"task{number}": golden / f"task{number}.safetensors" for number in range(4)}
    table = measure(TaskVectors.load(models, golden / "base.safetensors"))
    expected = json.loads((golden / "expected.json").read_text())["pairs"]
    assert len(expected) == len(table) == 6
    for pair, values in expected.items():
        assert values.keys() == WEIGHT_SPACE.keys() == set(table.columns)
        for name, value in values.items():
            absolute = 1e-5 if abs(value) < 0.1 else 0
            assert table.loc[tuple(pair.split("__")), name] == pytest.approx(value, rel=1e-4, abs=absolute), (
                name
            )
