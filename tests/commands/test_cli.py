"""The command `mergeability`, as people type it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mergeability import __version__, compare, context
from mergeability.commands import verb_arguments
from mergeability.commands.cli import cli
from mergeability.commands.invocation import as_typed, started_as
from mergeability.commands.search_path import forget_own_folders
from mergeability.examples import tiny_own_models


@pytest.fixture
def run(tmp_path, monkeypatch, restored_logging):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEABILITY_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        # The commands set it for Hydra; where a person has set it, they show tracebacks.
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        return CliRunner().invoke(cli, [str(one) for one in arguments], prog_name="mergeability")

    yield call
    started_as(None)
    forget_own_folders()


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(6, 5, generator=generator)}
    save_file(base, tmp_path / "base.safetensors")
    for name in ("a", "b", "c", "d"):
        tuned = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in base.items()
        }
        save_file(tuned, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_help_lists_every_command_without_importing_torch():
    code = (
        "import atexit, sys; sys.argv = ['mergeability', '--help']\n"
        "heavy = ('torch', 'pandas', 'sklearn')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        "from mergeability.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("compare", "predict", "merge", "train", "analyze", "list", "show", "dashboard"):
        assert f"\n  {command} " in ended.stdout
    assert ended.stdout.strip().endswith("[]")


def test_the_version_is_the_package_s(run):
    assert run("--version").output == f"mergeability, version {__version__}\n"


@pytest.mark.parametrize(
    "command", ["compare", "predict", "merge", "list", "show", "dashboard", "train", "analyze"]
)
def test_every_command_has_help(run, command):
    ended = run(command, "--help")
    assert ended.exit_code == 0
    assert "mergeability" in ended.output
    assert "train.py" not in ended.output
    assert "analyze.py" not in ended.output
    assert "\\b" not in ended.output


@pytest.mark.parametrize("command", ["compare", "predict", "merge"])
def test_examples_in_help_have_lines_of_their_own(run, command):
    lines = run(command, "--help").output.splitlines()
    assert any(line.startswith(f"    mergeability {command} base.safetensors") for line in lines)


def test_comparing_prints_the_numbers_of_the_function(run, files):
    ended = run("compare", "base.safetensors", "a.safetensors", "b.safetensors")
    assert ended.exit_code == 0, ended.output
    table = compare("base.safetensors", ["a.safetensors", "b.safetensors"]).table
    for name, value in table.iloc[0].items():
        assert f" {name} " in ended.output
        assert f"{value:.4g}" in ended.output
    record = json.loads(run("compare", "base.safetensors", "a.safetensors", "b.safetensors", "--json").stdout)
    np.testing.assert_array_equal([record["pairs"][0][name] for name in table], table.to_numpy()[0])


def test_a_second_comparison_finds_what_the_first_computed(run, files, tmp_path):
    run("compare", "base.safetensors", "a.safetensors", "b.safetensors")
    assert any((tmp_path / "cache" / "store").rglob("*.json"))
    run("compare", "base.safetensors", "a.safetensors", "b.safetensors", "--store", "none")
    shutil.rmtree(tmp_path / "cache")
    run("compare", "base.safetensors", "a.safetensors", "b.safetensors", "--store", "none")
    assert not (tmp_path / "cache").exists()


def test_many_pairs_are_rows_and_what_is_cut_is_said(run, files):
    ended = run("compare", "base.safetensors", *(f"{name}.safetensors" for name in "abcd"))
    assert "c + d" in ended.output
    assert "Shown: 5 of the 18 metrics. All are in --json and --report DIR." in ended.output


def test_models_are_named_on_the_command_line(run, files):
    ended = run(
        "compare", "base.safetensors", "cars=a.safetensors", "svhn=b.safetensors", "--report", "report"
    )
    assert "cars + svhn" in ended.output
    assert (files / "report" / "report.html").is_file()
    assert "Report: report/report.html" in ended.output


def test_a_merge_opens_and_is_not_overwritten_unasked(run, files):
    arguments = ("merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method", "average")
    ended = run(*arguments, "--out", "out")
    assert ended.exit_code == 0, ended.output
    mean = (load_file("a.safetensors")["layer.weight"] + load_file("b.safetensors")["layer.weight"]) / 2
    torch.testing.assert_close(load_file("out/model.safetensors")["layer.weight"], mean)
    ended = run(*arguments, "--out", "out")
    assert (ended.exit_code, ended.output) == (
        1, "Error: out exists. Choose another folder, or overwrite it with --overwrite (command line) or overwrite=True (Python).\n",
    )  # fmt: skip
    assert run(*arguments, "--out", "out", "--overwrite").exit_code == 0
    assert run(*arguments).exit_code == 0
    assert (files / "merged" / "average" / "a+b" / "model.safetensors").is_file()


def test_options_of_a_method_are_values_of_yaml(run, files):
    arguments = ("merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method", "ties")
    assert (
        run(*arguments, "-o", "density=0.5", "-o", "scope=tensor", "--alpha", "0.5", "--out", "out").exit_code
        == 0
    )
    card = json.loads((files / "out" / "card.json").read_text())
    assert (card["merge"]["density"], card["merge"]["scope"], card["alpha"]) == (0.5, "tensor", 0.5)
    assert "has no option 'densty'. Did you mean 'density'" in run(*arguments, "-o", "densty=1").output


def test_a_folder_whose_name_is_not_utf_8_is_shown_escaped(run, files):
    arguments = ("merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method", "ta")
    ended = run(*arguments, "--out", "m\udcff")
    assert ended.exit_code == 0, ended.output
    assert "m\\xff" in ended.output
    ended = run("compare", *arguments[1:4], "--report", "r\udcff")
    assert ended.exit_code == 0, ended.output
    assert "Report: r\\xff/" in ended.output


def test_the_best_method_is_the_one_that_is_predicted(run, files, tmp_path):
    base, models, images = tiny_own_models()
    # A user's own model, in ./conf: a function is called as a class is.
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("_target_: mergeability.examples.tiny_clip\n")
    evidence = [
        word
        for name in models
        for word in ("--images", f"{name}={images[name]}", "--classes", f"{name}=dark,light")
    ]
    words = (base, *models.values(), "--model", "tiny", *evidence)
    ended = run("predict", *words, "--json")
    assert ended.exit_code == 0, ended.output
    best = json.loads(ended.stdout)["recommended"]
    ended = run("merge", *words, "--method", "best", "--out", "best", "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["method"] == best


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("compare", "base.safetensors", "a.safetensors"), "Expected at least two models"),
        (
            ("compare", "base.safetensors", "a.safetensors", "none.safetensors"),
            "No checkpoint at none.safetensors",
        ),
        (("compare", "base.safetensors", "a.safetensors", "x/a.safetensors"), "Two models have the name 'a'"),
        (
            ("compare", "base.safetensors", "a.safetensors", "b.safetensors", "--metric", "rank"),
            "no metric 'rank'",
        ),
        (
            ("merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method", "best"),
            "predict requires evidence",
        ),
        (
            ("merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method", "ta", "-o", "x"),
            "NAME=…",
        ),
        (
            ("predict", "base.safetensors", "a.safetensors", "b.safetensors", "--images", "a=x"),
            "There are no images for b",
        ),
        (
            ("predict", "base.safetensors", "a.safetensors", "b.safetensors", "--include", "x"),
            "does not support --include",
        ),
        (("predict", "base.safetensors", "a.safetensors", "b.safetensors", "--fitted", "none"), "none"),
        (("list", "metric"), "metrics"),
        (("show", "tiez"), "Did you mean"),
    ],
)
def test_a_mistake_is_one_sentence(run, files, words, sentence):
    ended = run(*words)
    assert ended.exit_code == 1
    assert sentence in ended.output
    assert ended.output.startswith("Error: ")
    assert ended.output.count("\n") == 1


def test_models_of_two_architectures_are_refused(run, files):
    save_file({"layer.weight": torch.ones(2, 2)}, files / "other.safetensors")
    ended = run("compare", "base.safetensors", "a.safetensors", "other.safetensors")
    assert ended.exit_code == 1
    assert "shape" in ended.output


def test_the_scripts_are_commands_too_and_messages_name_them(run, smoke_root):
    ended = run("analyze", "suite=mini", f"paths.root={smoke_root}", "model=clip_mini_wide", "logger=csv")
    assert ended.exit_code == 1
    assert "mergeability train" in ended.output
    assert "train.py" not in ended.output
    ended = run(
        "analyze", "suite=smoke", "model=clip_mini", "metric=stable_rank", "merge=none", "predictor=none", "logger=csv",
        f"paths.root={smoke_root}", "hydra.run.dir=here",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert "Report: here/report.html" in ended.output


def test_the_list_of_failed_jobs_names_the_command_that_was_typed(run, tmp_path):
    ended = run(
        "train", "-m", "model=clip_mini", "task=digits,letters", "logger=csv", f"paths.root={tmp_path}"
    )
    assert ended.exit_code == 1
    assert "2 of 2 jobs failed" in ended.output
    assert ended.output.count("Run: mergeability train experiment=pretrain_mini") >= 2
    assert "train.py" not in ended.output


def test_commands_are_written_as_they_were_typed():
    started_as("mergeability")
    try:
        assert as_typed("Run: python train.py -m task=a, then analyze.py.") == (
            "Run: mergeability train -m task=a, then mergeability analyze."
        )
    finally:
        started_as(None)
    assert as_typed("python train.py") == "python train.py"


def test_commands_that_compute_choose_the_number_of_threads_and_others_do_not_wait(run, files, monkeypatch):
    asked = []
    monkeypatch.setattr(verb_arguments, "choose_threads", lambda began, cores: asked.append(cores))
    assert run("list", "methods").exit_code == 0
    assert asked == []
    for verb in (["compare"], ["merge", "--method", "average"]):
        ended = run(*verb, files / "base.safetensors", files / "a.safetensors", files / "b.safetensors")
        assert ended.exit_code == 0, ended.output
    assert asked == [context.cores()] * 2
