"""What `compare`, `predict` and `merge` read from their arguments, and how they end."""

import logging

import pytest

from mergeability.commands import verb_arguments
from mergeability.commands.verb_arguments import by_name, option_values, sentences, store_folder
from mergeability.errors import UserError

YAML = {
    "1e-1": 0.1,
    ".5": 0.5,
    "2": 2,
    "true": True,
    "null": None,
    "sum": "sum",
    "'1'": "1",
    "[1, a]": [1, "a"],
    "2026-01-01": "2026-01-01",
    "2026-13-45": "2026-13-45",
}


@pytest.mark.parametrize("value", YAML)
def test_values_of_options_are_those_of_yaml_files(value):
    assert option_values([f"a={value}", "b=x=y"]) == {"a": YAML[value], "b": "x=y"}


@pytest.mark.parametrize("value", ["[", "{a: ", "@x", "!!python/object:os.system x", "a: b: c", "\x00", "%a"])
def test_values_that_are_not_yaml_are_refused_by_name(value):
    with pytest.raises(UserError, match=r"^--option density=.* is not valid YAML .*Quote text"):
        option_values([f"density={value}"])


@pytest.mark.parametrize("words", [["x"], ["=x"], ["x="], ["a=1", "a=2"]])
def test_names_and_values_are_both_needed_once(words):
    with pytest.raises(UserError, match=r"NAME=…|more than once"):
        by_name("--images", words)


def test_the_store_is_that_of_the_project_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_folder("none") is None
    assert store_folder("x") == "x"
    assert store_folder(None) not in ("outputs/store", None)
    (tmp_path / "outputs" / "store").mkdir(parents=True)
    assert store_folder(None) == "outputs/store"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("No models."), 1, "Error: No models.\n"),
        (
            OSError(28, "No space left on device", "x.safetensors"),
            1,
            "Error: No space left on device: x.safetensors.\n",
        ),
        (OSError("the disk is gone"), 1, "Error: the disk is gone.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
    ],
    ids=repr,
)
def test_an_error_ends_in_one_sentence(capsys, restored_logging, error, code, told):
    with pytest.raises(SystemExit) as stop, sentences():
        raise error
    assert (stop.value.code, capsys.readouterr().err) == (code, told)


def test_warnings_are_shown_and_a_defect_is_not_hidden(capsys, restored_logging):
    with pytest.raises(ZeroDivisionError), sentences():
        logging.getLogger("mergeability").warning("two models are equal")
        raise ZeroDivisionError
    assert "two models are equal" in capsys.readouterr().err


def test_memory_is_left_to_libraries_that_have_no_such_option(monkeypatch):
    from mergeability.commands import memory

    set_to = []

    class Libc:
        def mallopt(self, option, size):
            set_to.append((option, size))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc())
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
    memory.keep_freed_memory()
    # M_TRIM_THRESHOLD; a variable that is set wins.
    assert set_to == [(-1, 2**25)]
    for other in (object(), None):
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda _, other=other: other)
        memory.keep_freed_memory()
    assert len(set_to) == 1


def test_other_names_are_not_taken_for_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("red\nblue\n")
    assert verb_arguments.classes(["a=dark, light", "b=names.txt"]) == {
        "a": ["dark", "light"],
        "b": "names.txt",
    }
