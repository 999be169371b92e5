"""Files of runs that are incomplete or cannot be opened, and pages with many sentences about what is left out."""

import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.reporting.dashboard import runs
from mergeability.reporting.dashboard.content import content
from mergeability.reporting.dashboard.gather import gather
from mergeability.reporting.dashboard.page import _left_out
from mergeability.reporting.dashboard.runs import read_run

PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    pairs = pd.DataFrame(PAIRS, columns=["task_a", "task_b"]).assign(norm_acc_ties=[0.5, 0.6, 0.7])
    pairs.to_csv(place / "pairs.csv", index=False)
    (place / "run.json").write_text(json.dumps({"config": {"merge": {"ties": {}}}}))
    (place / "report.html").write_text("a report")
    return place


def test_models_without_accuracies_are_tasks_with_unknown_ones(folder):
    pd.DataFrame({"task": ["b", "NA"], "base_accuracy": [0.5, 0.6]}).to_csv(
        folder / "models.csv", index=False
    )
    run = read_run(folder)
    assert list(run.own) == ["b", "NA"]
    assert np.isnan(list(run.own.values())).all()
    assert run.tasks == ["b", "NA", "a", "c"]


def test_a_table_that_cannot_be_opened_is_told_in_one_sentence(folder, monkeypatch):
    def refuse(path, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runs, "read_csv", refuse)
    with pytest.raises(UserError) as raised:
        read_run(folder)
    assert str(raised.value) == f"Cannot read {folder / 'pairs.csv'}: Permission denied."


def test_predictions_of_pairs_that_the_run_lacks_are_not_shown(folder, tmp_path):
    predictions = [("a", "c", 0.25), ("a", "x", 0.5), ("b", "c", 0.75)]
    pd.DataFrame(predictions, columns=["task_a", "task_b", "predicted"]).assign(
        protocol="loto", method="ties", target="norm_acc", predictor="ridge"
    ).to_csv(folder / "predictions.csv", index=False)
    held = content(gather([tmp_path]), tmp_path / "dashboard.html")
    ((protocol, predictor, method, values),) = held["runs"][0]["predictions"]
    assert (protocol, held["names"][predictor], held["names"][method]) == ("loto", "ridge", "ties")
    assert values == [None, 0.25, 0.75]


def test_a_run_on_another_drive_is_linked_by_its_whole_address(folder, tmp_path, monkeypatch):
    gathered = gather([tmp_path])

    def other_drive(_path, _start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("mergeability.reporting.dashboard.content.os.path.relpath", other_drive)
    held = content(gathered, tmp_path / "dashboard.html")
    assert folder.resolve().as_uri() in json.dumps(held["runs"])


@pytest.mark.parametrize(
    ("count", "folded", "shown", "last"),
    [
        (0, None, 1, "None: this page contains all runs that were found."),
        (20, None, 20, "run 19."),
        (23, "3 more", 23, "run 22."),
        (521, "501 more", 521, "1 more."),
        (1620, "1600 more", 521, "1,100 more."),
    ],
)
def test_of_many_sentences_about_what_is_left_out_most_are_folded(count, folded, shown, last):
    page = str(_left_out([f"run {place}." for place in range(count)]))
    items = re.findall(r"<(?:li|p)[^>]*>(.*?)</(?:li|p)>", page, re.DOTALL)
    assert len(items) == shown
    assert unescape(items[-1]) == last
    assert re.findall(r"<summary[^>]*>(.*?)</summary>", page) == ([] if folded is None else [folded])
