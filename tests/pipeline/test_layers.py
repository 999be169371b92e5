"""The cosine of two models in each tensor, from the Gram matrices of the metrics."""

import numpy as np
import pandas as pd
import pytest

from mergeability import Profiles
from mergeability.examples import tiny_task_vectors
from mergeability.pipeline import Analysis, layers
from mergeability.pipeline.layers import layer_cosines
from mergeability.reporting.layer_section import layer_section

PAIRS = pd.DataFrame({"task_a": ["a", "a", "b"], "task_b": ["b", "c", "c"]})


@pytest.fixture
def profiles():
    return Profiles(tiny_task_vectors(a=[[1, 2], [0, 1]], b=[[-1, 0], [2, 2]], c=[[0, 0], [0, 0]]))


def test_cosines_are_those_of_numpy_and_undefined_where_a_model_did_not_change(profiles):
    profiles.gram()
    found, notes = layer_cosines(profiles, PAIRS)
    a, b = np.array([1.0, 2, 0, 1]), np.array([-1.0, 0, 2, 2])
    assert found["cosine"][0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found["cosine"][1:].isna().all()
    assert found["layer"].tolist() == list(profiles.task_vectors.names) * 3
    assert notes == []


def test_nothing_is_computed_for_it(profiles):
    found, notes = layer_cosines(profiles, PAIRS)
    assert found.empty
    assert notes == []
    assert not profiles._found


def test_too_many_values_are_left_out_and_counted(profiles, monkeypatch):
    monkeypatch.setattr(layers, "MOST_VALUES", 2)
    profiles.gram()
    found, notes = layer_cosines(profiles, PAIRS)
    assert found.empty
    assert notes == ["Cosines by layer are left out: 1 layers of 3 pairs are 3 values, more than 2."]


def test_the_section_names_the_layers_in_conflict_by_number():
    cosines = pd.DataFrame(
        [
            ("a", "b", f"net.block.{number}.weight", value)
            for number, value in ((10, -0.5), (2, 0.1), (1, 0.3))
        ]
        + [("a", "c", f"net.block.{number}.weight", 0.2) for number in (10, 2, 1)],
        columns=layers.COLUMNS,
    )
    section = layer_section(Analysis("t", PAIRS, [], layers=cosines))
    assert section is not None
    lowest = section.body.index("10.weight</th>")
    assert lowest < section.body.index("1.weight</th>")
    assert '["1.weight","2.weight","10.weight"]' in section.body
    row = section.body[lowest:].partition("</tr>")[0]
    assert "-0.150" in row
    assert "0.500" in row, "half of the pairs are in conflict"
    assert "a + b" in row
    assert layer_section(Analysis("t", PAIRS, [])) is None
    undefined = cosines.assign(cosine=np.nan)
    assert layer_section(Analysis("t", PAIRS, [], layers=undefined)) is None
