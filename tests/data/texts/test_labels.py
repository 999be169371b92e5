"""The labels of text tasks, checked by other means than those that made the texts."""

import ast
import importlib
import re
import unicodedata
from itertools import product
from pathlib import Path

import pytest
import yaml

from mergeability.data.texts import TextCorpus, find_subject


def labelled(subject: str, count: int = 300) -> list[tuple[str, str]]:
    """Return texts with the names of their classes."""
    texts = TextCorpus(subject, train=count, validation=0, test=0, seed=3).load("train")
    classes = find_subject(subject).classes
    return [(text, classes[label]) for text, label in zip(texts.texts, texts.labels.tolist(), strict=True)]


def test_sums_have_the_size_of_their_class():
    words = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    )
    words += "seventeen eighteen nineteen twenty"
    code = {word: str(value) for value, word in enumerate(words.split(), start=1)} | {
        "plus": "+",
        "minus": "-",
    }
    for text, name in labelled("sums"):
        calculation = " ".join(code[word] for word in text.split() if word in code)
        assert re.fullmatch(r"\d+( [+-] \d+){1,2}", calculation), text
        result = eval(calculation)
        named = ("zero to nine", "ten to nineteen", "twenty to twenty nine")
        wanted = "below zero" if result < 0 else "thirty or more" if result >= 30 else named[result // 10]
        assert name == wanted, text


def test_negations_cancel_in_pairs():
    negative = {"not", "false", "wrong", "myth", "never", "fail", "failed", "refused", "forgot"}
    counts = set()
    for text, name in labelled("negation"):
        words = re.sub(" although .*", "", text).split()
        count = sum(word in negative for word in words)
        counts.add(count)
        assert name == ("denies" if count % 2 else "affirms"), text
    assert {0, 1, 2} <= counts


def holds(statement: str, did: tuple[bool, ...]) -> bool:
    """Return whether a statement about a group is true where its members did or did not do something."""
    if statement.startswith(("not all", "not every one")):
        return not all(did)
    if statement.startswith(("none", "not one")):
        return not any(did)
    if statement.startswith(("some", "at least one")):
        return any(did)
    assert statement.startswith(("all", "each", "every one")), statement
    return all(did)


def test_statements_imply_or_contradict_each_other_in_every_world():
    worlds = list(product((False, True), repeat=3))
    for text, name in labelled("inference"):
        premise, hypothesis = text.removesuffix(".").split(". ")
        # Both are about the same group and event.
        assert premise.partition(" of the ")[2] == hypothesis.partition(" of the ")[2]
        values = {holds(hypothesis, did) for did in worlds if holds(premise, did)}
        assert name == {(True,): "implies", (False,): "contradicts"}.get(tuple(values), "leaves open"), text


def test_brackets_are_balanced_exactly_where_they_cancel():
    for text, name in labelled("brackets"):
        brackets = re.sub(r"[^()\[\]{}]", "", text)
        opened, closed = (sum(brackets.count(one) for one in kind) for kind in ("([{", ")]}"))
        left = brackets
        while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", left)) != left:
            left = shorter
        if opened != closed:
            assert name == ("unclosed" if opened > closed else "unopened"), text
            assert opened - closed in (1, -1)
        else:
            assert name == ("crossed" if left else "balanced"), text


def test_expressions_are_valid_and_have_values_of_their_type():
    variables = {
        **{"age": 3, "count": 4, "size": 5, "rate": 1.5, "price": 2.5, "weight": 3.5},
        **{"word": "abc", "title": "d e", "line": "f", "ready": True, "empty": False},
        **{"rows": [1, 2], "ages": [3], "scores": [4, 5], "pair": (1, 2), "point": (3, 4)},
        **{"seen": {1}, "known": {2, 3}, "table": {1: 2}, "prices": {3: 4}},
    }
    for text, name in labelled("expressions"):
        ast.parse(text, mode="eval")
        assert type(eval(text, dict(variables))).__name__ == name, text


def test_characters_of_that_name_have_the_category():
    codes = {"Ll": "lowercase letter", "Lo": "other letter", "Lm": "modifier letter", "Mn": "combining mark"}
    codes |= {"No": "number", "Po": "punctuation", "Sm": "mathematical symbol", "So": "other symbol"}
    names: dict[str, list[list[str]]] = {name: [] for name in codes.values()}
    for character in map(chr, range(0x110000)):
        if unicodedata.category(character) in codes:
            name = unicodedata.name(character, "").lower()
            names[codes[unicodedata.category(character)]].append(re.findall(r"[^ -]+", name))
    for text, name in labelled("characters", 80):
        words = set(re.findall(r"[^ -]+", text))
        assert any(words <= set(one) for one in names[name]), (text, name)
        assert not words & {"small", "letter", "sign", "digit", "number", "combining", "mark", "symbol"}


def test_docstrings_are_of_their_module_and_do_not_name_it():
    strings = {}
    for name in find_subject("docstrings").classes:
        file = Path(importlib.import_module(name).__file__)
        files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
        nodes = [node for one in files for node in ast.walk(ast.parse(one.read_text(encoding="utf-8")))]
        found = [
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        strings[name] = [" ".join(one.split()) for one in found]
    for text, name in labelled("docstrings"):
        assert [one for one in strings if any(string.startswith(text) for string in strings[one])] == [name]
        assert name not in text.lower()


def conversations(language: str, file: str = "*") -> set[str]:
    package = pytest.importorskip("chatterbot_corpus")
    paths = (Path(package.__file__).parent / "data" / language).glob(f"{file}.yml")
    found = [yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"] for path in paths]
    return {" ".join(str(text).split()) for one in found for dialogue in one for text in dialogue}


def test_sentences_are_of_dialogues_in_their_language_and_in_no_other():
    texts = {name: conversations(name.lower()) for name in find_subject("languages").classes}
    for text, name in labelled("languages"):
        assert [one for one in texts if text in texts[one]] == [name]


def test_sentences_are_of_dialogues_on_their_topic():
    files = {"artificial intelligence": ["ai"], "programming": ["coding"], "psychology": ["psychology"]}
    files |= {
        "everyday conversation": ["conversations"],
        "emotions": ["emotion"],
        "general knowledge": ["trivia"],
    }
    files |= {"books and films": ["literature", "movies", "humor"]}
    texts = {
        name: set().union(*(conversations("english", one) for one in found)) for name, found in files.items()
    }
    for text, name in labelled("topics"):
        assert [one for one in texts if text in texts[one]] == [name]
        assert "`" not in text


def test_names_are_those_of_the_locale():
    babel = pytest.importorskip("babel")
    codes = {
        babel.Locale(code).get_display_name("en"): code
        for code in ("cs", "da", "et", "fi", "fr", "hu", "lt", "pl", "ro", "vi")
    }
    assert tuple(sorted(codes)) == find_subject("display_names").classes
    for text, name in labelled("display_names"):
        locale = babel.Locale(codes[name])
        names = {*locale.languages.values(), *locale.territories.values(), *locale.currencies.values()}
        assert text in {" ".join(one.split()) for one in names}


def test_regions_are_of_their_country():
    pycountry = pytest.importorskip("pycountry")
    classes = [name.removeprefix("the ") for name in find_subject("regions").classes]
    countries: dict[str, set[str]] = {}
    for region in pycountry.subdivisions:
        country = pycountry.countries.get(alpha_2=region.code[:2]).name
        countries.setdefault(" ".join(region.name.split()), set()).add(country)
    for text, name in labelled("regions"):
        assert countries[text] & set(classes) == {name.removeprefix("the ")}
