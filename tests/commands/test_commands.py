"""What a person types wrong: an exit code, one clear sentence, no traceback, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from mergeability.weights import checkpoints

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("task0", "task1", "task2", "task3")


def golden_arguments(folder: Path = GOLDEN, names=NAMES) -> list[str]:
    models = ", ".join(f"{name}: '{folder / name}.safetensors'" for name in names)
    return ["suite=checkpoints", f"suite.base='{GOLDEN / 'base.safetensors'}'", f"suite.models={{{models}}}"]


def written(folder: Path) -> list[str]:
    """Name the results in a folder; Hydra's own records of the run are no results."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts)
    return sorted(str(path.relative_to(folder)) for path in files if path.suffix != ".log")


@pytest.fixture
def root(tmp_path) -> list[str]:
    return [f"paths.root={tmp_path / 'outputs'}", "logger=csv"]


def refused(ended, *parts: str) -> None:
    assert ended.code != 0
    assert "Traceback" not in ended.output, ended.output
    for part in parts:
        assert part in ended.output, ended.output


@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("train", ["task=digitz"], ["task=digitz", "Did you mean 'digits'"]),
        ("train", ["reg=typo"], ["reg=typo", "grad_magnitude", "l2_to_init"]),
        ("train", ["model=typo"], ["model=typo", "clip_mini"]),
        ("analyze", ["merge=typo"], ["merge=typo", "ties"]),
        ("analyze", ["metric=typo"], ["metric=typo", "stable_rank"]),
        ("analyze", ["suite=typo"], ["suite=typo", "mini"]),
        ("train", ["no.such.setting=1"], ["no.such.setting"]),
        ("analyze", ["predictor=null"], ["Expected predictor to be one of", "additive", "got null"]),
    ],
)
def test_an_unknown_choice_names_the_choices(command, root, script, arguments, parts):
    refused(command(script, *arguments, *root), *parts)


def test_training_without_a_base_names_the_command_that_makes_it(command, root, tmp_path):
    ended = command("train", "task=digits", "model=clip_mini", *root)
    refused(ended, "There is no base model", "python train.py experiment=pretrain_mini")
    assert not (tmp_path / "outputs/checkpoints").exists()


@pytest.mark.parametrize("strength", ["-1", "nan", "inf"])
def test_a_strength_that_is_none_is_refused(command, smoke_root, strength):
    where = (f"paths.root={smoke_root}", "logger=csv")
    refused(command("train", "task=digits", f"reg.lambda={strength}", *where), "reg.lambda", "finite number")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reg=subspace", "reg.penalty.k=1000"], "subspace: reg.penalty.k is 1000, but the encoder has a matrix of"),
        (["reg=singular_alignment", "reg.penalty.k=0"], "Expected reg.penalty.k to be a whole number of at least 1"),
        (["reg=subspace", "reg.penalty.side=left"], "Expected reg.penalty.side to be u, v or uv, got 'left'"),
        (["reg.penalty.estimator=guess"], "Expected reg.penalty.estimator to be finite_difference or exact, got 'guess'"),
        (["reg=mergeability", "reg.penalty.terms.subspace.strength=-2"], "the strength of penalty subspace (reg.lambda, or a weight in a sum of penalties)"),
        (["reg=l2_to_init", "reg.lambda=1e38"], "gradient with the penalty l2_to_init became NaN or Inf at step 1"),
    ],
)  # fmt: skip
def test_a_penalty_that_cannot_be_is_one_sentence_and_leaves_no_model(
    command, smoke_root, tmp_path, words, sentence
):
    strength = [] if "reg.lambda=1e38" in words else ["reg.lambda=1"]
    few = ("task.source.train=96", "task.source.validation=32", "task.source.test=32", "training.epochs=1")
    where = (
        f"paths.root={smoke_root}",
        "logger=csv",
        "progress=null",
        "variant=bad",
        f"hydra.run.dir={tmp_path}",
    )
    refused(command("train", "task=digits", "model=clip_mini", *few, *strength, *words, *where), sentence)
    assert not list((smoke_root / "checkpoints").rglob("*+bad/**/card.json"))


def test_missing_models_name_the_command_that_makes_them(command, root):
    ended = command("analyze", "suite=smoke", "reg=l2_to_init", "reg.lambda=0.5", *root)
    refused(ended, "'digits', 'letters'", "l2_to_init-0.5/seed-0",
            "python train.py -m model=clip_mini reg=l2_to_init reg.lambda=0.5", " task=digits,letters,shapes,orientation")  # fmt: skip


def test_a_suite_too_small_for_prediction_or_merging(command, smoke_root):
    where = (f"paths.root={smoke_root}", "logger=csv", "suite=smoke")
    three, one = (
        ["~suite.tasks.digits"],
        ["~suite.tasks.digits", "~suite.tasks.letters", "~suite.tasks.shapes"],
    )
    refused(command("analyze", *three, *where), "at least 4 tasks, but the suite has 3", "predictor=none")
    refused(command("analyze", *one, *where), "at least two models")
    ended = command("analyze", *three, "predictor=none", "merge=average", *where)
    assert ended.code == 0, ended.output


def test_one_checkpoint_is_no_suite(command, root):
    refused(command("analyze", *golden_arguments(names=("task0",)), *root), "at least two models")


def test_the_weight_space_metrics_of_bare_checkpoints_are_the_golden_ones(command, root, tmp_path):
    folder = tmp_path / "run"
    ended = command("analyze", *golden_arguments(), f"hydra.run.dir={folder}", *root)
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(folder / "pairs.csv").set_index(["task_a", "task_b"])
    expected = json.loads((GOLDEN / "expected.json").read_text())["pairs"]
    assert len(pairs) == len(expected) == 6
    for pair, values in expected.items():
        assert len(values) == 18
        for metric, value in values.items():
            found = pairs.loc[tuple(pair.split("__")), metric]
            assert found == pytest.approx(value, rel=1e-4, abs=1e-5 if abs(value) < 0.1 else None), (
                pair,
                metric,
            )
    assert json.loads((folder / "prediction.json").read_text()) == []
    assert (folder / "report.html").exists()


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(GOLDEN / f"{name}.safetensors", folder)
    return folder


def spoil(folder: Path, change) -> None:
    path = folder / "task1.safetensors"
    checkpoints.save(path, change(safetensors.torch.load_file(path)))


def with_nan(state: dict) -> dict:
    state["visual.proj"][3, 5] = torch.nan
    return state


def without_a_key(state: dict) -> dict:
    del state["visual.ln_post.weight"]
    return state


def of_another_shape(state: dict) -> dict:
    return {**state, "visual.proj": torch.zeros(7, 7)}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (with_nan, ["visual.proj", "task1", "NaN"]),
        (without_a_key, ["visual.ln_post.weight", "task1"]),
        (of_another_shape, ["visual.proj", "(7, 7)", "architectures differ"]),
    ],
)
def test_weights_that_cannot_be_compared(command, root, models, tmp_path, change, parts):
    spoil(models, change)
    folder = tmp_path / "run"
    refused(command("analyze", *golden_arguments(models), f"hydra.run.dir={folder}", *root), *parts)
    assert written(folder) == []


def test_a_truncated_and_a_foreign_file(command, root, models, tmp_path):
    path, folder = models / "task2.safetensors", tmp_path / "run"
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:5], b"", b"PK\x03\x04 a zip file, as torch.save writes"):
        path.write_bytes(damaged)
        ended = command("analyze", *golden_arguments(models), f"hydra.run.dir={folder}", *root)
        refused(ended, "task2.safetensors", "not a complete safetensors file")
    path.unlink()
    ended = command("analyze", *golden_arguments(models), f"hydra.run.dir={folder}", *root)
    refused(ended, "No checkpoint at", "task2.safetensors")
    assert written(folder) == []


def test_a_table_that_is_not_there_or_has_no_metrics(command, root, tmp_path):
    refused(command("analyze", "suite=table", "suite.table=gone.csv", *root), "No table at gone.csv")
    table = tmp_path / "pairs.csv"
    table.write_text("task_a,task_b,norm_acc_ties\na,b,0.5\n")
    refused(command("analyze", "suite=table", f"suite.table={table}", *root), "none of the requested metrics")


def test_a_ready_table_is_predicted(command, root, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tasks = "abcdef"
    rows = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    frame = pd.DataFrame(rows, columns=["task_a", "task_b"])
    frame["stable_rank"] = 1 + torch.rand(len(rows), generator=generator).numpy()
    frame["norm_acc_ties"] = 0.1 + 0.4 * frame["stable_rank"]
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    folder = tmp_path / "run"
    ended = command(
        "analyze", "suite=table", f"suite.table={tmp_path / 'pairs.csv'}", "predictor=ols",
        "prediction.permutations=9", f"hydra.run.dir={folder}", *root,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    records = json.loads((folder / "prediction.json").read_text())
    assert [(record["method"], record["protocol"]) for record in records] == [
        ("ties", "loto"),
        ("ties", "l2to"),
    ]
    known_partner, both_new = records
    assert known_partner["r_mean"] == pytest.approx(1), "the outcome is linear in the metric"
    assert (both_new["pooled_r"], both_new["r_beyond_mean"]) == (pytest.approx(1), pytest.approx(1))


def test_a_failed_job_of_a_sweep_is_named_and_the_rest_is_kept(command, smoke_root, tmp_path):
    where = (
        f"paths.root={smoke_root}",
        f"hydra.sweep.dir={tmp_path}",
        "logger=csv",
        "suite=smoke",
        "predictor=ols",
        "prediction.permutations=9",
    )
    ended = command("analyze", "-m", "merge=average", "profile.samples=10,1000", *where)
    refused(
        ended, "1 of 2 jobs failed", "profile.samples=1000", "at least 1 and at most 32 calibration samples"
    )
    assert (tmp_path / "0/report.html").exists()
    assert not (tmp_path / "1/report.html").exists()
    assert list(pd.read_csv(tmp_path / "summary.csv")["method"]) == ["average"]


def test_help_answers_without_heavy_imports():
    for script in ("train", "analyze"):
        code = (
            "import atexit, sys, runpy; sys.argv = ['x.py', '--help']\n"
            "heavy = ('torch', 'lightning', 'open_clip', 'sklearn', 'pandas', 'plotly')\n"
            "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
            f"runpy.run_path('{script}.py', run_name='__main__')"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        assert "Choices (group=option)" in ended.stdout
        assert ended.stdout.strip().endswith("[]")


def test_importing_the_package_leaves_torch_out():
    code = (
        "import sys, mergeability; assert 'torch' not in sys.modules; assert 'measure' in dir(mergeability)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ctrl_c_ends_with_130_and_a_second_start_continues(smoke_root, command_process, tmp_path):
    """A real process, a real SIGINT in the middle of a training of many epochs."""
    for part in ("checkpoints/clip_mini/base",):
        shutil.copytree(smoke_root / part, tmp_path / part)
    arguments = (
        "train", "task=digits", "task.source.train=256", "task.source.validation=32",
        "task.source.test=64", "training.epochs=6", f"paths.root={tmp_path}", "logger=csv", "progress=null",
    )  # fmt: skip
    folder = tmp_path / "checkpoints/clip_mini/none-0/seed-0/digits"
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    process = command_process(first, *arguments)
    deadline = time.monotonic() + 240
    while not (folder / "unfinished/last.ckpt").exists():
        assert process.exitcode is None, first.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    output = first.read_text()
    assert process.exitcode == 130, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert not (folder / "card.json").exists()
    assert not (folder / "model.safetensors").exists()
    process = command_process(second, *arguments)
    process.join(240)
    assert process.exitcode == 0, second.read_text()
    assert "Continuing the unfinished training" in second.read_text()
    assert (folder / "card.json").exists()


@pytest.fixture
def spoilt(smoke_root, tmp_path) -> Path:
    """A copy of the small suite, and of what is known of it, that a test may spoil."""
    shutil.copytree(smoke_root / "checkpoints", tmp_path / "outputs/checkpoints")
    shutil.copytree(smoke_root / "store", tmp_path / "outputs/store")
    return tmp_path / "outputs"


def analysed(command, root: Path, *arguments: str):
    return command(
        "analyze",
        "suite=smoke",
        "merge=average",
        "predictor=none",
        *arguments,
        f"paths.root={root}",
        "logger=csv",
    )


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
def test_files_that_changed_since_training_are_refused(command, spoilt, file):
    path = spoilt / "checkpoints/clip_mini/none-0/seed-0/digits" / file
    checkpoints.save(
        path, {name: tensor * 1.01 for name, tensor in safetensors.torch.load_file(path).items()}
    )
    refused(analysed(command, spoilt), file, "changed", "task=digits overwrite=true")
    path.unlink()
    refused(analysed(command, spoilt), "No checkpoint for 'digits'")


def test_other_class_names_than_in_training_are_refused(command, spoilt):
    names = "suite.tasks.digits.class_names=[nine,one,two,three,four,five,six,seven,eight,zero]"
    refused(analysed(command, spoilt, names), "class names", "digits", "overwrite=true")


def test_another_depth_or_another_number_of_heads_is_noticed(command, spoilt):
    assert analysed(command, spoilt, f"hydra.run.dir={spoilt}/a").code == 0
    vision = "model.architecture.vision_cfg"
    refused(analysed(command, spoilt, f"{vision}.layers=2"), "the architectures differ")
    ended = analysed(command, spoilt, f"{vision}.head_width=64", f"hydra.run.dir={spoilt}/b")
    assert ended.code == 0
    computed = json.loads((spoilt / "b/run.json").read_text())["computed"]
    assert set(computed) == {"accuracy", "activation", "gradient", "gram"}, (
        "what depends on the heads, and nothing else"
    )


def test_a_truncated_base_is_one_sentence(command, spoilt):
    base = spoilt / "checkpoints/clip_mini/base/model.safetensors"
    base.write_bytes(base.read_bytes()[:-10])
    refused(
        command("train", "task=dots", f"paths.root={spoilt}", "logger=csv"), "not a complete safetensors file"
    )


def test_names_that_look_like_numbers_are_names(command, root, models, tmp_path):
    folder = tmp_path / "run"
    chosen = f"suite.models={{1: '{models / 'task0.safetensors'}', 2: '{models / 'task1.safetensors'}'}}"
    base = f"suite.base='{GOLDEN / 'base.safetensors'}'"
    ended = command("analyze", "suite=checkpoints", base, chosen, f"hydra.run.dir={folder}", *root)
    assert ended.code == 0, ended.output
    assert pd.read_csv(folder / "pairs.csv", dtype=str).loc[0, ["task_a", "task_b"]].tolist() == ["1", "2"]


@pytest.mark.parametrize("models", ["[a, b]", "{a: null, b: b.safetensors}"])
def test_models_that_are_no_named_files_are_refused(command, root, models):
    base = f"suite.base='{GOLDEN / 'base.safetensors'}'"
    refused(
        command("analyze", "suite=checkpoints", base, f"suite.models={models}", *root),
        "suite.models names files",
    )


def test_text_where_a_number_belongs_names_the_option(command, root):
    ended = command("analyze", *golden_arguments(), "merge=ties", "merge.ties.density=abc", *root)
    refused(ended, "merge", "abc")


def test_a_table_with_unlike_outcomes_predicts_what_it_has_and_names_the_rest(command, root, tmp_path):
    tasks = ["1", "2", "NA", "4", "5"]
    rows = [(a, b, i * 7 % 5 + j) for i, a in enumerate(tasks) for j, b in enumerate(tasks) if i < j]
    frame = pd.DataFrame(rows, columns=["task_a", "task_b", "stable_rank"])
    frame["stable_rank"] = 1 + frame["stable_rank"] / 10
    frame["norm_acc_ties"], frame["acc_ta"] = frame["stable_rank"] * 0.1, frame["stable_rank"] * 0.2
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    folder = tmp_path / "run"
    table = f"suite.table={tmp_path / 'pairs.csv'}"
    few = ("predictor=ols", "prediction.permutations=9")
    ended = command("analyze", "suite=table", table, *few, f"hydra.run.dir={folder}", *root)
    assert ended.code == 0, ended.output
    records = json.loads((folder / "prediction.json").read_text())
    assert {(record["method"], record["target"]) for record in records} == {
        ("ties", "norm_acc"),
        ("ta", "acc"),
    }
    assert {(record["protocol"], record["n_folds"], record["n_pairs"]) for record in records} == {
        ("loto", 5, 10),
        ("l2to", 10, 10),
    }
    assert "acc_ties" in (folder / "report.html").read_text()
    refused(command("analyze", "suite=table", table, "suite.metrics=[gone]", *root), "no column gone")


def test_a_later_run_in_the_same_folder_replaces_every_result(command, smoke_root, root, tmp_path):
    folder = tmp_path / "run"
    assert analysed(command, smoke_root, f"hydra.run.dir={folder}").code == 0
    assert (folder / "models.csv").exists()
    ended = command("analyze", *golden_arguments(), f"hydra.run.dir={folder}", *root)
    assert ended.code == 0, ended.output
    assert written(folder) == [
        "coefficients.csv", "layers.csv", "pairs.csv", "prediction.json", "predictions.csv", "report.html", "run.json",
        "verdict.txt",
    ]  # fmt: skip
    assert len(pd.read_csv(folder / "pairs.csv")) == 6
    assert len(pd.read_csv(folder / "layers.csv")[["task_a", "task_b"]].drop_duplicates()) == 6
