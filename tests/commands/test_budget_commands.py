"""`evaluate=N`: N pairs are merged and evaluated, the others predicted, and nothing mixes the two."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mergeability.pipeline.request import MergeSettings

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def budget(command, smoke_root, tmp_path_factory):
    """Run an analysis of the smoke suite in which five of six pairs are evaluated."""
    place = tmp_path_factory.mktemp("budget") / "run"
    plain = (
        "suite=smoke",
        "metric=[task_vector_l2_distance,effective_rank]",
        "merge=[ta,average]",
        "predictor=none",
    )
    where = (f"paths.root={smoke_root}", f"hydra.run.dir={place}", "logger=csv")
    return command("analyze", *plain, *where, "evaluate=5"), place


def test_the_budget_is_merged_and_the_rest_is_predicted_apart(budget):
    ended, place = budget
    assert ended.code == 0, ended.output
    pairs, predicted = pd.read_csv(place / "pairs.csv"), pd.read_csv(place / "predicted_pairs.csv")
    outcomes = [name for name in pairs.columns if name.startswith(("acc_", "norm_acc_"))]
    assert pairs["acc_ta"].notna().sum() == pairs["acc_average"].notna().sum() == 5
    assert pairs["task_vector_l2_distance"].notna().all()
    assert len(pairs) == 6
    # The pair without outcomes is the predicted one, and no column of one table is in the other.
    [left] = pairs[pairs["acc_ta"].isna()][["task_a", "task_b"]].to_numpy().tolist()
    assert predicted[["task_a", "task_b"]].to_numpy().tolist() == [left]
    assert not set(outcomes) & set(predicted.columns)
    assert not any(name.startswith("predicted") for name in pairs.columns)
    assert len(pd.read_csv(place / "accuracies.csv")) == 5 * 2 * 2
    accuracy = pd.read_csv(place / "predicted_accuracy.csv")
    assert set(accuracy["n_measured"]) == {5}
    assert set(accuracy["n_predicted"]) == {1}


def test_report_verdict_and_run_say_how_many_were_measured(budget):
    _, place = budget
    sentence = (
        "5 of the 6 pairs were merged and evaluated. The outcomes of those that were not (1) are predictions"
    )
    for name in ("report.html", "verdict.txt"):
        assert sentence in (place / name).read_text(encoding="utf-8"), name
    report = (place / "report.html").read_text(encoding="utf-8")
    assert "Which outcomes are predicted for pairs that were not evaluated?" in report
    assert json.loads((place / "run.json").read_text())["config"]["evaluate"] == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("evaluate=0",), "Expected evaluate to be a whole number of at least 1 or null, got 0."),
        (("evaluate=-3",), "Expected evaluate to be a whole number of at least 1 or null, got -3."),
        (("evaluate=3", "arity=3"), "evaluate=… can only choose pairs."),
        (("evaluate=3", "sets=2"), "evaluate=… can only choose pairs."),
        (("evaluate=3", "arity=[2,all]"), "evaluate=… can only choose pairs."),
        (("evaluate=3", "merge=none"), "there is no merge method"),
    ],
)
def test_what_no_budget_can_be_is_refused_in_a_sentence(command, smoke_root, tmp_path, options, sentence):
    where = (f"paths.root={smoke_root}", f"hydra.run.dir={tmp_path}/run", "logger=csv")
    merge = () if any("merge=" in one for one in options) else ("merge=ta",)
    ended = command("analyze", "suite=smoke", "predictor=none", *merge, *options, *where)
    assert ended.code == 1, ended.output
    assert sentence in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("suite", ["checkpoints", "table"])
def test_suites_that_evaluate_nothing_refuse_a_budget(command, tmp_path, suite):
    files = {
        "checkpoints": (
            f"suite.base={GOLDEN}/base.safetensors",
            f"suite.models={{a: {GOLDEN}/task0.safetensors, b: {GOLDEN}/task1.safetensors}}",
            "merge=ta",
            "save=true",
        ),
        "table": (f"suite.table={tmp_path}/pairs.csv",),
    }
    where = (f"paths.root={tmp_path}", f"hydra.run.dir={tmp_path}/run", "logger=csv")
    ended = command("analyze", f"suite={suite}", *files[suite], "evaluate=3", *where)
    assert ended.code == 1, ended.output
    assert f"suite={suite} does not evaluate merges" in ended.output


def test_the_budget_takes_pairs_that_are_named(command, smoke_root, tmp_path):
    named = "pairs=[[digits,letters],[digits,shapes],[letters,shapes]]"
    where = (f"paths.root={smoke_root}", f"hydra.run.dir={tmp_path}/run", "logger=csv")
    plain = ("suite=smoke", "metric=task_vector_l2_distance", "merge=ta", "predictor=none")
    ended = command("analyze", *plain, *where, named, "evaluate=2")
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(tmp_path / "run/pairs.csv")
    assert len(pairs) == 3
    assert pairs["acc_ta"].notna().sum() == 2
    # Too few to predict from, which is said.
    assert "Those that were not (1) are not predicted either." in (tmp_path / "run/verdict.txt").read_text()
    assert not (tmp_path / "run/predicted_pairs.csv").exists()
    more = command("analyze", *plain, *where, named, "evaluate=9")
    assert "evaluate=9 is more than the 3 pairs that there are: all were evaluated." in more.output
    assert pd.read_csv(tmp_path / "run/pairs.csv")["acc_ta"].notna().all()


def test_without_a_budget_nothing_is_left_out():
    assert MergeSettings().evaluate is None
    assert MergeSettings().chosen_sets.choose(list("abcd")) == MergeSettings(evaluate=2).chosen_sets.choose(
        list("abcd")
    )
