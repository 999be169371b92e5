"""Members are read from files: options, order and what a class or function declares, without importing it."""

import sys

import pytest
from omegaconf import OmegaConf

from mergeability import members
from mergeability.errors import UserError


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder of groups that stands in for `conf`."""
    monkeypatch.setattr(members, "folder", lambda group: tmp_path / group)
    members.members.cache_clear()
    yield tmp_path
    members.members.cache_clear()


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_members_are_the_files_with_a_target_in_the_order_of_tables(conf):
    plain = "# @package merge.x\n_target_: a.B\nalpha: 1.0\n"
    names = ("zebra", "median", "regmean", "fisher", "ta", "average", "breadcrumbs")
    write(conf / "merge", **dict.fromkeys(names, plain))
    write(conf / "merge", paper="defaults:\n  - average\n  - ta\n", none="# nothing\n")
    found = members.members("merge")
    # The set `paper` first, then those of version 0.1.0 as they were, then later ones by name.
    assert list(found) == ["average", "ta", "breadcrumbs", "fisher", "regmean", "median", "zebra"]
    assert found["median"] == {"_target_": "a.B", "alpha": 1.0}
    assert members.fixed_set("merge", "paper") == ("average", "ta")


@pytest.mark.parametrize(
    "number", ["1e-3", "1E5", "-2e+4", "1.5e-3", "1.", "7", "1e", "e5", "1e-3x", "'1e-3'"]
)
def test_a_number_is_what_hydra_reads_it_as(conf, number):
    text = f"_target_: a.B\noption: {number}\n"
    write(conf / "merge", paper="defaults: []\n", median=text)
    option = members.members("merge")["median"]["option"]
    expected = OmegaConf.create(text).option
    assert (option, type(option)) == (expected, type(expected))


def test_a_group_without_published_order_is_sorted_by_name(conf):
    write(conf / "model", b="_target_: a.B\n", a="_target_: a.A\n")
    assert list(members.members("model")) == ["a", "b"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that cannot be imported beyond its `__init__`, with a lazy export."""
    folder = tmp_path / "lazily"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "__init__.pyi").write_text("from .kinds import Kind as Public\nfrom . import kinds as kinds\n")
    (folder / "kinds.py").write_text(
        "raise SystemExit('imported')\n"
        "class Kind:\n"
        "    needs_data: ClassVar[bool] = True\n"
        "    models: ClassVar[int | None] = 2\n"
        "    threshold: float = compute()\n"
        "    unset: int\n"
        "@other\n"
        "@metric(low=-1, high=1, category='sign')\n"
        "def overlap(profiles): ...\n"
        "def bare(profiles): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazily"
    sys.modules.pop("lazily", None)


def test_what_a_class_or_function_declares_is_read_from_its_source(package):
    expected = {"needs_data": True, "models": 2}
    assert members.declared(f"{package}.kinds.Kind") == expected
    assert members.declared(f"{package}.Public") == expected, "through the stub, under another name"
    assert members.declared(f"{package}.kinds.overlap") == {"low": -1, "high": 1, "category": "sign"}
    assert members.declared(f"{package}.kinds.bare") == {}
    assert members.declared(f"{package}.kinds.absent") == {}


def test_a_module_that_is_not_there_declares_nothing():
    """A mistake in one member must not break the commands that do not choose it."""
    assert members.declared("nowhere.at.All") == {}


def test_a_file_that_is_no_yaml_is_named(conf):
    write(conf / "model", a="_target_: [\n")
    with pytest.raises(UserError, match=r"model/a\.yaml is not valid YAML"):
        members.members("model")


def test_methods_without_data_are_those_that_do_not_declare_to_need_it(conf, package):
    write(conf / "merge", b=f"_target_: {package}.Public\n", a=f"_target_: {package}.kinds.bare\n")
    assert members.data_free() == ("a",)
