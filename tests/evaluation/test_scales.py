import math

import pytest
import torch

from mergeability.errors import UserError
from mergeability.evaluation.scales import GRID, ScaleChoice, tune
from mergeability.merging import Average, Dare, IsoC, TaskArithmetic, Ties
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints


def test_the_best_mean_over_tasks_wins():
    curve = {0.5: {"a": 0.9, "b": 0.1}, 1.0: {"a": 0.6, "b": 0.6}, 2.0: {"a": 0.2, "b": 0.8}}
    best, table = tune(curve.__getitem__, ("a", "b"), [0.5, 1.0, 2.0])
    assert best == 1.0
    assert table["alpha"].tolist() == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    assert table["task"].tolist() == ["a", "b"] * 3
    assert table["norm_accuracy"].tolist() == [0.9, 0.1, 0.6, 0.6, 0.2, 0.8]
    assert table["chosen"].tolist() == [False, False, True, True, False, False]


def test_of_equals_the_smallest_wins():
    assert tune(lambda _: {"a": 0.5}, ("a",), [0.3, 1.0])[0] == 0.3


def test_a_task_without_a_normalised_accuracy_has_no_say():
    curve = {1.0: {"a": math.nan, "b": 0.4}, 2.0: {"a": math.nan, "b": 0.7}}
    assert tune(curve.__getitem__, ("a", "b"), [1, 2])[0] == 2.0
    assert tune(lambda _: {"a": math.nan}, ("a",), [1, 2])[0] == 1.0


def test_which_outcomes_a_choice_gives():
    plain, tuned = TaskArithmetic(), Ties(alpha="tuned")
    assert ScaleChoice().columns("ta", plain) == {"ta": "own"}
    assert ScaleChoice().columns("ties", tuned) == {"ties": "tuned"}
    assert ScaleChoice("tuned").columns("ta", plain) == {"ta": "tuned"}
    assert ScaleChoice(0.7).columns("ties", tuned) == {"ties": 0.7}
    assert ScaleChoice("both").columns("ties", tuned) == {"ties": "own", "ties_tuned": "tuned"}
    assert ScaleChoice("unlabelled").columns("ta", plain) == {"ta": "unlabelled"}
    assert ScaleChoice(["own", "tuned", "unlabelled"]).columns("ta", plain) == {
        "ta": "own", "ta_tuned": "tuned", "ta_unlabelled": "unlabelled",
    }  # fmt: skip
    assert ScaleChoice(["both", "own"]).columns("ta", plain) == ScaleChoice("both").columns("ta", plain)
    assert ScaleChoice(["unlabelled", "tuned"]).columns("ta", plain) == {
        "ta_unlabelled": "unlabelled", "ta_tuned": "tuned",
    }  # fmt: skip
    assert ScaleChoice(["tuned"]).columns("ta", plain) == {"ta": "tuned"}
    assert ScaleChoice("unlabelled").tunes({"ta": plain}, "unlabelled")
    assert not ScaleChoice("unlabelled").tunes({"ta": plain})
    assert not ScaleChoice("both").tunes({"ta": plain}, "unlabelled")
    assert not ScaleChoice(0.7).tunes({"ties": tuned})
    assert not ScaleChoice().tunes({"ta": plain})
    assert ScaleChoice().tunes({"ta": plain, "ties": tuned})
    assert ScaleChoice("both").tunes({"ta": plain})


@pytest.mark.parametrize(
    "alpha", ["best", math.nan, math.inf, True, [1.0], [], ["own", "best"], [["own"]], {"own": 1}]
)
def test_a_scale_that_is_none_is_refused(alpha):
    with pytest.raises(
        UserError,
        match="alpha to be a finite number, one of the words 'own', 'tuned', 'unlabelled', 'both', or a list",
    ):
        ScaleChoice(alpha)


@pytest.mark.parametrize(
    ("grid", "part"),
    [
        ([], "list of numbers"),
        ("1,2", "list of numbers"),
        ([1, "a"], "list of numbers"),
        ([1, math.nan], "list of numbers"),
        ([1, 1], "ascending"),
        ([2, 1], "ascending"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, part):
    with pytest.raises(UserError, match=part):
        ScaleChoice("tuned", grid)


def test_the_default_grid_brackets_sum_and_average_of_a_pair():
    assert min(GRID) < 0.3 < max(GRID)
    assert {0.5, 1.0, 2.0} <= set(GRID)


@pytest.fixture
def models(tmp_path):
    """Make as many models as wanted, of no published architecture."""

    def make(count):
        paths = {
            name: checkpoints.save(
                tmp_path / str(count) / f"{name}.safetensors", {"w": torch.full((2, 2), float(number))}
            )
            for number, name in enumerate("abcdefgh"[: count + 1], start=1)
        }
        base = paths.pop("a")
        return TaskVectors.load(paths, base)

    return make


def test_a_report_says_where_no_scale_is_published(models):
    methods = {"iso_c": IsoC(), "ta": TaskArithmetic(), "dare": Dare(then=IsoC())}
    found = ScaleChoice().notes(methods, [models(2), models(5)])
    assert [sentence.split(":")[0] for sentence in found] == ["iso_c", "dare"]
    assert all("for 2 or 5 models of this architecture; α = 1 is used" in sentence for sentence in found)
    assert not ScaleChoice("tuned").notes(methods, [models(2)])
    assert not ScaleChoice().notes({"iso_c": IsoC(alpha=1.2), "average": Average()}, [models(2)])
