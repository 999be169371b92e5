"""Options of an analysis: checked when a request is made, long before they are used; and the budget of evaluations."""

import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.merging import Average
from mergeability.pipeline.budget import evaluated_sets
from mergeability.pipeline.request import MergeSettings, ProfileSettings, Request
from mergeability.pipeline.suites import TableSuite


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"merge_samples": 0}, r"at least one calibration image, got merge_samples=0\."),
        (
            {"unlabelled": 1},
            r"Expected profile\.unlabelled to be a number of images that is at least \d+, got 1\.",
        ),
        ({"unlabelled": 64.0}, r"got 64\.0\. Fewer images give unreliable estimates"),
        (
            {"unlabelled_from": "test"},
            r"unlabelled_from to be .*validation.*, got 'test'\. Test images are only for",
        ),
    ],
)
def test_options_of_the_evidence_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ProfileSettings(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation_images": 0}, r"Expected validation_images to be a positive number of images, got 0\."),
        ({"validation_images": 10.0}, r"Expected validation_images to be .*, got 10\.0\."),
        ({"test_images": True}, r"Expected test_images to be a positive number of images, got True\."),
        ({"probe": 1}, r"Expected probe to be null or a number of images that is at least \d+, got 1\."),
        ({"export": "onnx"}, r"Expected export to be hf or null, got 'onnx'\."),
        ({"evaluate": 0}, r"Expected evaluate to be a whole number of at least 1 or null, got 0\."),
        ({"evaluate": 2.5}, r"Expected evaluate to be a whole number of at least 1 or null, got 2\.5\."),
        ({"evaluate": 3, "arity": 3}, r"evaluate=… can only choose pairs"),
    ],
)
def test_options_of_merges_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        MergeSettings(**options)


def test_models_outside_a_small_budget_are_named():
    sets = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    table = pd.DataFrame({"m": range(6)}, index=pd.MultiIndex.from_tuples(sets, names=["task_a", "task_b"]))
    request = Request(
        TableSuite("t", "pairs.csv"), {"m": None}, {"average": Average()}, merging=MergeSettings(evaluate=1)
    )
    chosen, notes = evaluated_sets(sets, table, request)
    assert len(chosen) == 1
    others = sorted(set("abcd") - set(chosen[0]))
    assert notes == [
        f"2 models are in no evaluated pair, so that nothing is known of their merges: {', '.join(others)}. "
        "A larger evaluate= covers them."
    ]
