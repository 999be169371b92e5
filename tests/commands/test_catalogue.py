"""The catalogue has every file of `conf` that is a member, documented; the witnesses are the files themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mergeability.commands import catalogue, catalogue_entries
from mergeability.commands.catalogue import KINDS, entries, entry, listing, page, text
from mergeability.commands.member_docs import split_docstring, yaml_comments
from mergeability.errors import UserError

ROOT = Path(__file__).parent.parent.parent
CONF = ROOT / "conf"
# Kind → group, and what the YAML file of a member has: a set of metrics has no target.
GROUPS = {
    "metrics": ("metric", "\n_target_:"),
    "methods": ("merge", "\n_target_:"),
    "penalties": ("reg", "\npenalty:"),
    "predictors": ("predictor", "\n_target_:"),
    "tasks": ("task", "\nname:"),
    "models": ("model", "\nname:"),
    "suites": ("suite", "\nname:"),
}
EVERY = [one for kind in KINDS for one in entries(kind)]


def files(kind: str) -> set[str]:
    group, mark = GROUPS[kind]
    return {path.stem for path in (CONF / group).glob("*.yaml") if mark in "\n" + path.read_text()}


@pytest.mark.parametrize("kind", GROUPS)
def test_every_file_is_an_entry_once(kind):
    names = [one.name for one in entries(kind)]
    assert len(names) == len(set(names))
    assert set(names) == files(kind)
    assert len(names) >= 6
    assert all((ROOT / one.config).is_file() for one in entries(kind))


def test_there_is_a_kind_for_each_group_and_one_for_protocols():
    assert set(KINDS) == {*GROUPS, "protocols"}
    assert [one.name for one in entries("protocols")] == ["loto", "l2to", "halves", "across"]


def test_metrics_and_methods_come_in_the_order_of_tables():
    paper = yaml.safe_load((CONF / "metric/paper.yaml").read_text())["defaults"]
    assert [one.name for one in entries("metrics")][:28] == paper
    methods = yaml.safe_load((CONF / "merge/paper.yaml").read_text())["defaults"]
    assert [one.name for one in entries("methods")][:6] == methods


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind}/{one.name}")
def test_every_entry_is_documented(one):
    assert re.search(r"\w+ \w+", one.summary)
    assert one.summary != f"The {one.kind} {one.name}"
    assert "\n" not in one.summary
    assert not one.summary.endswith((".", ":"))
    assert one.cost
    assert one.source or one.name == "none"
    if one.kind in ("metric", "method") or (one.kind == "penalty" and one.name != "none"):
        assert one.formula
        assert one.range
    # What an architecture or a sum of penalties is made of is described by itself.
    undescribed = {option.setting for option in one.options if not option.description}
    assert not {name for name in undescribed if not re.search(r"\.(architecture|terms)\.", name)}
    # Every option of the file has a line, with its value.
    if one.config:
        settings = {option.setting: option.default for option in one.options}
        for line in (ROOT / one.config).read_text().splitlines():
            found = re.match(r"([a-z]\w*): ([^\s#{\[]+)\s*(#.*)?$", line)
            if found and found[1] not in ("name", "defaults"):
                (value,) = [
                    value for setting, value in settings.items() if setting.split(".")[-1:] == [found[1]]
                ][:1]
                assert yaml.safe_load(value) == yaml.safe_load(found[2]) or float(value) == float(found[2])


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind}/{one.name}")
def test_every_example_names_what_is_there(one):
    """Its words are settings whose group and option exist; verbs are those of the command line."""
    command, verb, *rest = re.findall(r"'[^']*'|\S+", one.example)
    assert (command, verb) in {("mergeability", name) for name in ("train", "analyze", "merge")}
    if verb == "merge":
        assert rest[-2:] == ["--method", one.name]
        return
    script = yaml.safe_load((CONF / f"{verb}.yaml").read_text())
    for word in rest:
        key, _, value = word.strip("'").partition("=")
        if (CONF / key).is_dir() and key != "":
            for name in value.strip("[]").split(","):
                known = (CONF / key / f"{name}.yaml").is_file() or (key, name) == ("metric", "functional")
                assert known, word
        else:
            assert key.split(".")[0] in {*script, "reg", "suite", "task"}, word
    named = {name for word in rest for name in re.split(r"[=\[\],']", word)}
    assert one.name in named or one.kind in ("protocol", "model"), one.example


def test_ranges_are_those_that_functions_declare():
    """The decorator's keywords, read from the source by a regular expression."""
    declared = {}
    for path in (ROOT / "mergeability/metrics").glob("*.py"):
        for words, name in re.findall(r"^@metric\((.*?)\)\ndef (\w+)", path.read_text(), re.M | re.S):
            declared[f"mergeability.metrics.{path.stem}.{name}"] = words
    for one in entries("metrics"):
        words = declared[one.implementation]
        low = re.search(r"low=(-?\d+)", words)
        high = re.search(r"high=(\d+)", words)
        left, right = re.match(r"[\[(](.*?), (.*?)[\])]", one.range).groups()
        assert left.replace("−", "-") == (low[1] if low else "-∞"), one.name
        assert right in (high[1] if high else "∞", "1/√k"), one.name


@pytest.mark.parametrize(
    ("name", "data"),
    [("stable_rank", False), ("activation_l2_distance", True), ("input_gradient_dot_product", True)],
)
def test_the_cost_names_images_where_there_is_a_need_for_them(name, data):
    assert ("image" in entry(name).cost) is data
    assert ("weights only" in entry(name).cost) is not data


def test_costs_of_methods_are_those_they_declare():
    for one in entries("methods"):
        source = next(
            path.read_text()
            for path in (ROOT / "mergeability/merging").glob("*.py")
            if re.search(rf"^class {one.implementation.rpartition('.')[2]}\b", path.read_text(), re.MULTILINE)
        )
        assert ("needs_data: ClassVar[bool] = True" in source) is ("calibration" in one.cost)
        assert ("models: ClassVar[int | None] = 2" in source) is ("exactly 2" in one.cost)


def test_metrics_with_one_function_have_different_summaries():
    summaries = [one.summary for one in entries("metrics")]
    assert len(summaries) == len(set(summaries))


def test_options_have_the_comments_of_the_file_and_the_words_of_the_docstring():
    options = {option.setting: option for option in entry("consensus_ta").options}
    agree = options["merge.consensus_ta.agree"]
    assert agree.default == "2"
    assert "number of tasks that an entry must matter to" in agree.description
    assert "arXiv 2601.22285 uses 1 for two models" in agree.description
    assert [one.setting for one in entry("l2_to_init").options] == ["reg.lambda", "reg.penalty.strength"]
    assert {one.setting: one.default for one in entry("clip_mini_wide").options}["model.batch_size"] == "32"


def test_tasks_are_of_rendered_images_real_images_or_texts():
    content = {path.stem: path.read_text() for path in (CONF / "task").glob("*.yaml")}
    for group, mark in (
        ("real images", "dataset:"),
        ("texts", "TextCorpus"),
        ("rendered images", "_target_: mergeability.data.rendered.Rendered"),
    ):
        wanted = {name for name, text in content.items() if mark in text}
        assert {one.name for one in entries("tasks") if one.group == group} == wanted
    assert {one.group for one in entries("tasks")} == {"real images", "rendered images", "texts"}
    assert entry("topics").source.startswith("chatterbot-corpus (https://")
    assert "BSD licence" in entry("topics").source
    assert entry("sums").source == "this project's templates"
    assert entry("n14").cost == "14 tasks, 91 pairs"


def test_a_name_that_is_not_there_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"There is no 'tie' in the catalogue. Did you mean 'ties'"):
        entry("tie")
    with pytest.raises(
        UserError, match=r"There is no 'stable_rnk' among metrics. Did you mean 'stable_rank'"
    ):
        entry("metric/stable_rnk")
    with pytest.raises(UserError, match=r"Expected one of .*penalty.* before the slash, got 'metod/ties'"):
        entry("metod/ties")
    with pytest.raises(UserError, match=r"Expected one of metrics, .*got 'metrcs'. Did you mean 'metrics'"):
        listing("metrcs")


def test_a_name_of_several_kinds_asks_for_the_kind(monkeypatch):
    names = {"methods": ("ties",), "predictors": ("ties", "ridge")}
    monkeypatch.setattr(catalogue, "_names", lambda kind: names.get(kind, ()))
    with pytest.raises(UserError, match=r"The name 'ties' is ambiguous. Use .*method/ties or predictor/ties"):
        entry("ties")
    monkeypatch.undo()
    assert entry("method/ties") is entry("methods/ties")


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_has_a_line_for_every_member(kind):
    lines = listing(kind).splitlines()
    assert [line.split()[0] for line in lines[: len(entries(kind))]] == [one.name for one in entries(kind)]
    assert all(one.summary in line for one, line in zip(entries(kind), lines))


def test_sets_are_listed_with_their_size():
    # Six metrics take passes for each pair, and are not in the set of all.
    metrics, methods = len(files("metrics")), len(files("methods"))
    last = listing("metrics").splitlines()[-1]
    assert last.startswith(f"Sets: minimal (25), paper (28), all ({metrics - 6}), weights (")
    assert last.endswith("shared (6), functional (6)")
    assert (
        listing("methods").splitlines()[-1] == f"Sets: paper (6), all ({methods}), data_free ({methods - 2})"
    )
    assert "Sets" not in listing("tasks")
    assert "Sets     minimal, paper, all, weights\n" in text(entry("stable_rank"))
    assert "- **Sets:** shared\n" in page(entry("shared_input_gradient_l2_distance"))


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind}/{one.name}")
def test_pages_hold_all_of_an_entry(one):
    for written in (text(one), page(one)):
        flat = " ".join(written.split())
        facts = (one.source, one.formula, one.range, one.cost, one.config, one.implementation, one.example)
        assert [part for part in facts if " ".join(part.split()) not in flat] == []
        assert all(option.setting in written for option in one.options)
        assert all(" ".join(option.default.split()) in flat for option in one.options)
    assert page(one).startswith(f"# `{one.name}`\n")
    code = re.sub(r"```.*?```|`[^`]*`|^    .*?$", "", page(one), flags=re.S | re.M)
    assert "<" not in code, "Markdown takes this for HTML"
    lines = [line for line in text(one).splitlines() if not line.startswith(("  ", "- "))]
    assert all(len(line) <= 100 or " " not in line.strip() or "=" in line for line in lines)


def test_a_docstring_is_split():
    found = split_docstring(
        "Do it.\n\nHow it is done.\n\nFormula: a +\n    b.\n\nPaper: One 2020, Title.\n\n"
        "Args:\n    first: one\n        and more.\n    second: two. Or three.\n\nExamples:\n    >>> 1\n    1"
    )
    assert (found.summary, found.body) == ("Do it", "How it is done.")
    assert found.facts == {"formula": "a + b", "paper": "One 2020, Title"}
    assert found.parameters == {"first": "one and more", "second": "two. Or three."}


def test_comments_of_a_file_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "# @package merge.x\n# What it is: 1.5 of it. More about it,\n# and more.\n#   python analyze.py merge=x\n"
        "_target_: a.B\nplain: 1\nouter:  # of both\n  inner: '#1'  # the inner one\n# not the header\nlast: 2 # yes\n"
    )
    found = yaml_comments(path)
    assert found.summary == "What it is: 1.5 of it"
    assert found.body == "More about it, and more.\n\n    python analyze.py merge=x"
    assert found.commands == ("python analyze.py merge=x",)
    assert found.comments == {"outer": "of both", "outer.inner": "the inner one", "last": "yes"}


def test_no_member_is_imported():
    code = (
        "import sys; from mergeability.commands.catalogue import KINDS, entries, listing, page; "
        "[page(one) for kind in KINDS for one in entries(kind)]; [listing(kind) for kind in KINDS]; "
        "print(sorted({'torch', 'sklearn', 'lightning', 'pandas'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_protocols_are_the_classes_of_their_module():
    source = ast.parse((ROOT / "mergeability/prediction/validation/protocols.py").read_text())
    classes = {
        node.name for node in source.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    named = {one.implementation.rpartition(".")[2] for one in entries("protocols")}
    assert classes - named == {"Split", "SplitProtocol"}
    assert catalogue_entries.suite_tasks("mini20")[:2] == ("digits", "letters")
