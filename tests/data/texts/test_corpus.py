"""Text corpora: reproducible, disjoint, balanced, and clear about what is missing."""

import hashlib
import json
import sys
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml

from mergeability.data.texts import SUBJECTS, Collected, TextCorpus, Written, corpus, find_subject
from mergeability.errors import UserError

TASKS = Path(__file__).parents[3] / "conf" / "task"
# Which optional package the texts come from.
PACKAGES = {
    "topics": ("chatterbot_corpus", "chatterbot-corpus"),
    "languages": ("chatterbot_corpus", "chatterbot-corpus"),
    "display_names": ("babel", "babel"),
    "regions": ("pycountry", "pycountry"),
}
OF_THE_INSTALLATION = {"docstrings", "characters"}
WRITTEN = sorted(set(SUBJECTS) - set(PACKAGES) - OF_THE_INSTALLATION)
SPLITS = ("train", "validation", "test")
# SHA-256 of the texts of the templates: a change of one is a new `version` of its subject.
PINNED = json.loads((Path(__file__).parent / "written_texts.json").read_text())


@pytest.fixture(params=SUBJECTS)
def subject(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param][0])
    return request.param


def configured(name: str) -> dict:
    return yaml.safe_load((TASKS / f"{name}.yaml").read_text())


def text_configurations() -> dict[str, dict]:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(TASKS.glob("*.yaml"))}
    return {
        name: task
        for name, task in found.items()
        if task.get("source", {}).get("_target_", "").endswith(".TextCorpus")
    }


def source_of(name: str, **changes: int) -> TextCorpus:
    options = {key: value for key, value in configured(name)["source"].items() if key != "_target_"}
    return TextCorpus(**(options | changes))


def plain(text: str) -> str:
    """What an uncased encoder sees, written differently than in the package."""
    letters = [c for c in unicodedata.normalize("NFKD", text.lower()) if unicodedata.category(c) != "Mn"]
    return " ".join("".join(letters).split())


def test_no_text_is_in_two_splits_or_twice_in_one(subject):
    texts = {split: source_of(subject).load(split).texts for split in SPLITS}
    for of_split in texts.values():
        assert len({plain(text) for text in of_split}) == len(of_split)
    for one, other in combinations(texts.values(), 2):
        assert not {plain(text) for text in one} & {plain(text) for text in other}


def test_the_splits_have_the_configured_sizes_and_all_classes(subject):
    options = configured(subject)
    classes = len(options["class_names"])
    assert 2 <= classes <= 12
    for split in SPLITS:
        texts = source_of(subject).load(split)
        assert len(texts) == options["source"][split]
        assert all(text == text.strip() and text for text in texts.texts)
        counts = torch.bincount(texts.labels, minlength=classes)
        assert len(counts) == classes
        # Templates never run short; collected texts may, and then the rarest class has still half of a share.
        allowed = 1 if subject in WRITTEN else options["source"][split] / classes / 2 + 1
        assert (counts - options["source"][split] / classes).abs().max() <= allowed


def test_equal_arguments_give_equal_texts_and_another_seed_others(subject):
    first, again, other = (source_of(subject, seed=seed).load("train") for seed in (0, 0, 1))
    assert list(first.texts) == list(again.texts)
    assert torch.equal(first.labels, again.labels)
    assert list(first.texts) != list(other.texts)


def test_labels_are_in_no_order(subject):
    labels = source_of(subject).load("train").labels
    classes = len(find_subject(subject).classes)
    repeats = (labels[1:] == labels[:-1]).double().mean()
    # In random order two neighbours agree as often as two draws do; sorted labels always, alternating ones never.
    assert 0.5 / classes < repeats < 1.7 / classes


def test_the_identity_is_json_and_changes_with_everything_that_changes_the_texts(subject):
    found = [
        source_of(subject).identity("train"),
        source_of(subject).identity("test"),
        source_of(subject, seed=1).identity("train"),
        source_of(subject, validation=1).identity("train"),
    ]
    assert json.loads(json.dumps(found)) == found
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
    assert source_of(subject).identity("train") == found[0]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_configured_class_names_are_the_subjects_own(name):
    task = configured(name)
    assert tuple(task["class_names"]) == find_subject(name).classes
    assert task["name"] == task["source"]["subject"] == name


def test_every_subject_has_a_task():
    assert set(text_configurations()) == set(SUBJECTS)
    assert len(SUBJECTS) == 11


@pytest.mark.parametrize("name", WRITTEN)
def test_the_texts_of_the_templates_are_the_pinned_ones(name):
    texts = TextCorpus(name, train=40, validation=10, test=10).load("train")
    content = json.dumps([list(texts.texts), texts.labels.tolist()])
    assert hashlib.sha256(content.encode()).hexdigest() == PINNED[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_sentence_and_a_command(name, monkeypatch):
    module, package = PACKAGES[name]
    monkeypatch.setitem(sys.modules, module, None)
    # What another test has collected is kept in the subject.
    find_subject(name).__dict__.pop("_texts", None)
    for ask in (source_of(name).load, source_of(name).identity):
        with pytest.raises(UserError) as error:
            ask("train")
        assert str(error.value) == (
            f"These texts come from {package}, which is not installed. Run: uv pip install 'mergeability[text]'"
        )


def test_unknown_subjects_and_splits_and_negative_counts_are_refused():
    with pytest.raises(UserError, match=r"brackets, characters.*got 'poems'"):
        TextCorpus("poems")
    with pytest.raises(UserError, match="expected test to be at least 0, got -1"):
        TextCorpus("sums", test=-1)
    with pytest.raises(UserError, match="train, validation, test, got 'all'"):
        TextCorpus("sums").load("all")
    with pytest.raises(UserError, match="train, validation, test, got 'all'"):
        TextCorpus("sums").identity("all")


def animals(monkeypatch) -> None:
    """Put a subject of three cats, ten dogs and one text of both in the place of all others."""
    texts = {
        "cat": [*(f"cat {n}" for n in range(3)), "Pet"],
        "dog": [*(f"dog {n}" for n in range(10)), "pét"],
    }
    monkeypatch.setattr(corpus, "find_subject", lambda name: Collected(("cat", "dog"), lambda: texts))


def test_a_class_that_is_short_of_texts_gives_all_it_has(monkeypatch):
    animals(monkeypatch)
    source = TextCorpus("animals", train=4, validation=2, test=2)
    splits = [source.load(split) for split in SPLITS]
    assert {text for one in splits for text in one.texts} >= {"cat 0", "cat 1", "cat 2"}
    assert [torch.bincount(one.labels, minlength=2).tolist() for one in splits] == [[1, 3], [1, 1], [1, 1]]
    for split in splits:
        assert all(text.startswith(("cat", "dog")[label]) for text, label in zip(split.texts, split.labels))


def test_more_texts_than_there_are_is_refused(monkeypatch):
    animals(monkeypatch)
    assert len(TextCorpus("animals", train=9, validation=2, test=2).load("train")) == 9
    with pytest.raises(
        UserError, match=r"train \+ validation \+ test to be at most 13, .*got 14\. Reduce train"
    ):
        TextCorpus("animals", train=10, validation=2, test=2).load("train")


def test_templates_that_run_out_end(monkeypatch):
    few = Written(("low", "high"), lambda name, draws: f"{name} {draws.integer(1, 6)}")
    monkeypatch.setattr(corpus, "find_subject", lambda name: few)
    with pytest.raises(UserError, match="to be at most 12, the number of texts"):
        TextCorpus("dice", train=13, validation=0, test=0).load("train")


def test_the_global_random_state_is_neither_read_nor_moved():
    before = torch.random.get_rng_state()
    first = TextCorpus("sums", 10, 10, 10).load("train").texts
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert TextCorpus("sums", 10, 10, 10).load("train").texts == first
