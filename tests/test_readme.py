"""The README's commands do what they say, as typed; those that need ten trained models run on four."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mergeability.prediction import Scorer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SMALL = {
    "experiment=pretrain_mini": ["pretraining.steps=2", "pretraining.images_per_subject=20"],
    "task=": [
        "task.source.train=128",
        "task.source.validation=32",
        "task.source.test=64",
        "training.epochs=1",
    ],
}


# Hours of an ablation, cut to one job or two.
FEW = ["suite=smoke", "reg=l2_to_init", "merge=average", "metric=[task_vector_l2_distance]", "predictor=none"]
# Two models for each setting, and not four.
FEW += ["pairs=[[digits,letters]]"]
ABLATIONS = {
    "experiment=regularisation": [*FEW, "seed=0", "reg.lambda=0,0.1"],
    "experiment=regularisation_sweep": [*FEW, "hydra.sweeper.n_trials=1"],
    "train.missing=true": FEW[2:],
    "experiment=evidence": [
        "suite=smoke",
        "model=clip_mini",
        "merge=average",
        "metric=[functional,task_vector_l2_distance]",
        "predictor=none",
        "seed=0",
        "images=[8,2]",
    ],
}


# The study of all thirteen predictors is run on these models by tests/pipeline/test_pipeline.py, and here in the slow tier.
QUICK = ["prediction.permutations=9", "prediction.seeds=0", "prediction.ablation=false"]
FEW_PREDICTORS = "predictor=[mean,additive,ridge]"


def words(command: str) -> list[str]:
    """Split a command line as a shell does."""
    import shlex

    return shlex.split(command)


def test_the_readme_shows_the_commands_this_file_knows():
    assert len(COMMANDS) == 25
    assert COMMANDS[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in COMMANDS[:2])


PYTHON = [line for line in COMMANDS if line.startswith("python") and not line.startswith("python -m")]
MODULES = [line for line in COMMANDS if line.startswith("python -m")]


@pytest.fixture(scope="module")
def store(smoke_root, tmp_path_factory) -> Path:
    """What these commands compute of the same models, so that one finds what another computed."""
    return Path(shutil.copytree(smoke_root / "store", tmp_path_factory.mktemp("readme") / "store"))


@pytest.mark.parametrize("line", PYTHON)
def test_every_command_runs(line, smoke_root, store, command, tmp_path, monkeypatch):
    few = [] if "predictor=" in line else [FEW_PREDICTORS]
    if "alpha=both" in line or "alpha=tuned" in line:
        few.append("alpha_grid=[0.3,1.0]")
    run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, [*few, f"paths.store={store}"])


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in PYTHON if "analyze.py" in line])
def test_every_analysis_runs_with_all_predictors_on_a_fresh_store(
    line, smoke_root, command, tmp_path, monkeypatch
):
    run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, ["prediction.seeds=2"])


def run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, quicker):
    """Run a line of the README in an empty folder, on four models where it names the ten."""
    monkeypatch.chdir(tmp_path)
    for ours, theirs in (("base", "base"), ("a", "task0"), ("b", "task1")):
        shutil.copy(ROOT / f"tests/golden/{theirs}.safetensors", tmp_path / f"{ours}.safetensors")
    tasks = list("abcde")
    pairs = [(a, b, i) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    frame = pd.DataFrame(pairs, columns=["task_a", "task_b", "stable_rank"])
    frame["stable_rank"] = 1 + frame["stable_rank"] / 10
    frame.assign(norm_acc_ties=frame["stable_rank"] ** 2 / 9).to_csv("pairs.csv", index=False)
    _, script, *arguments = words(line.replace("suite=mini", "suite=smoke"))
    root = tmp_path / "outputs"
    if "fitted=outputs/demo" in line:
        scorer = Scorer.fit(
            pd.read_csv("pairs.csv", dtype={"task_a": str, "task_b": str}), ["stable_rank"], ["ties"]
        )
        scorer.save(root / "demo" / "fitted.json")
    shutil.copytree(smoke_root / "checkpoints", root / "checkpoints")
    if "suite.models=mine.yaml" in line:
        as_described(smoke_root / "checkpoints/clip_mini", tmp_path)
    # The folder of what a penalised training leaves.
    expected = (
        f"{'l2_to_init' if 'l2_to_init' in line else 'grad_magnitude'}-0.01"
        if "reg.lambda=0.01" in line
        else ""
    )
    small = [one for key, extra in SMALL.items() if key in line and "analyze" not in script for one in extra]
    if "pretrain" in line or "grad_magnitude-0.01" in expected:
        shutil.rmtree(root / "checkpoints/clip_mini" / ("base" if "pretrain" in line else "none-0"))
    if script == "analyze.py":
        # Of a study, what takes long is done less often.
        small = [*QUICK, *quicker, *next((few for name, few in ABLATIONS.items() if name in arguments), [])]
    ended = command(script.removesuffix(".py"), *arguments, *small, f"paths.root={root}", "logger=csv")
    assert ended.code == 0, ended.output
    if script == "analyze.py":
        assert list(root.rglob("report.html"))
    if "save=true" in line or "export=hf" in line:
        assert list((root / "runs").rglob("merged/*/*/card.json"))
    if "experiment=regularisation" in line:
        assert list(root.rglob("ablation.html"))
    if "experiment=evidence" in line:
        assert list(root.rglob("evidence.html"))
    if "pretrain" in line:
        assert (root / "checkpoints/clip_mini/base/card.json").exists()
    if expected:
        assert (root / f"checkpoints/clip_mini/{expected}/seed-0/digits/card.json").exists()


@pytest.mark.parametrize("line", MODULES)
def test_every_module_runs(line, smoke_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_root / "checkpoints", tmp_path / "outputs/checkpoints")
    _, _, module, *arguments = words(line)
    assert import_module(module).main(arguments) == 0
    assert "trainings: 4" in capsys.readouterr().out
    assert (tmp_path / "outputs/dashboard.html").is_file()


def as_described(trained, folder):
    """Lay out what the README's mine.yaml describes, with `shapes` in the place of `colours`."""
    (described,) = re.findall(r"```yaml\n(base: .*?)```", README, re.DOTALL)
    (folder / "mine.yaml").write_text(described)
    shutil.copy(trained / "base/model.safetensors", folder / "base.safetensors")
    for name, model in (("digits", "digits"), ("colours", "shapes")):
        shutil.copy(trained / f"none-0/seed-0/{model}/model.safetensors", folder / f"{name}.safetensors")
        shutil.copy(trained / f"none-0/seed-0/{model}/head.safetensors", folder / f"{name}_head.safetensors")
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (32, 32), (31 * index, 90, 0)).save(folder / "photos" / name / f"{index}.png")


def test_the_notebook_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for ours, theirs in (("base", "base"), ("a", "task0"), ("b", "task1")):
        shutil.copy(ROOT / f"tests/golden/{theirs}.safetensors", tmp_path / f"{ours}.safetensors")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["table"].shape == (1, 18)
    assert (tmp_path / "merged.safetensors").exists()
    assert set(names["weights"]) >= set(names["merged"])
