"""What version 0.1.0 hashed is found again: names of classes in cards and store keys, and whole settings."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mergeability import merging
from mergeability.commands import record
from mergeability.evaluation.merge import describe
from mergeability.files import digest
from mergeability.provenance import MOVED, current_name, published_name, with_published_names

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published" / "settings_0.1.0.json").read_text())
# The names under which version 0.1.0 filed merges.
METHODS = {
    "Average": "mergeability.merging.average.Average",
    "Breadcrumbs": "mergeability.merging.breadcrumbs.Breadcrumbs",
    "ConsensusTA": "mergeability.merging.consensus_ta.ConsensusTA",
    "Dare": "mergeability.merging.dare.Dare",
    "Fisher": "mergeability.merging.fisher.Fisher",
    "IsoC": "mergeability.merging.iso_c.IsoC",
    "IsoCTS": "mergeability.merging.iso_cts.IsoCTS",
    "RegMean": "mergeability.merging.regmean.RegMean",
    "Slerp": "mergeability.merging.slerp.Slerp",
    "TSVM": "mergeability.merging.tsv.TSVM",
    "TaskArithmetic": "mergeability.merging.task_arithmetic.TaskArithmetic",
    "Ties": "mergeability.merging.ties.Ties",
}


def imported(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("target", PUBLISHED["targets"])
def test_every_target_of_a_published_card_can_still_be_imported(target):
    found = imported(current_name(target))
    assert callable(found)
    assert found.__name__ == target.rpartition(".")[2] or current_name(target) != target


def test_every_published_training_has_its_hash():
    with initialize_config_dir(str(HERE.parent / "conf"), version_base="1.3"):
        differing = [
            training["overrides"]
            for training in PUBLISHED["trainings"]
            if digest(record.settings(compose("train", training["overrides"]))) != training["digest"]
        ]
    assert len(PUBLISHED["trainings"]) == 49
    assert differing == [], "models trained by version 0.1.0 would be trained again"


@pytest.mark.parametrize(("method", "name"), METHODS.items())
def test_merges_are_filed_under_the_published_name(method, name):
    assert describe(getattr(merging, method)())["method"] == name


def test_names_come_back_and_only_targets_are_renamed(monkeypatch):
    assert all(published_name(now) == first for first, now in MOVED.items())
    assert published_name("somebody.elses.Class") == "somebody.elses.Class"
    monkeypatch.setattr("mergeability.provenance._FIRST", {"new.Name": "old.Name"})
    settings = {"_target_": "new.Name", "name": "new.Name", "terms": [{"_target_": "new.Name", "k": 1}]}
    expected = {"_target_": "old.Name", "name": "new.Name", "terms": [{"_target_": "old.Name", "k": 1}]}
    assert with_published_names(settings) == expected
