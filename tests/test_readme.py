"""The commands of the README and of docs/ do what they say, as typed; those that need ten trained models run on four.

Commands that would take hours or a GPU are composed instead (`COMPOSED`).
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from mergeability.commands import catalogue, dashboard
from mergeability.commands.cli import cli
from mergeability.prediction import Scorer

ROOT = Path(__file__).parent.parent
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
README = PAGES[ROOT / "README.md"]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines behind a prompt."""
    lines = [line for block in blocks("console", text) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


# Each once, wherever it is shown.
COMMANDS = list(dict.fromkeys(line for text in PAGES.values() for line in commands(text)))
# Parts of commands that take hours, a GPU or several processes.
# Models of texts need an extra that the default tests do not install; tests/pipeline/test_text_suite.py runs them small.
COMPOSED = ("experiment=paper_", "mini20", "experiment=import", "hydra/launcher=", "minilm", "text8")
JOBS = [line for line in COMMANDS if re.match(r"mergeability (train|analyze) ", line)]
RUN = [line for line in JOBS if not any(part in line for part in COMPOSED)]
LONG = [line for line in JOBS if line not in RUN]
# In sentences: complete commands, which nothing runs.
INLINE = list(
    dict.fromkeys(
        line
        for text in PAGES.values()
        for line in re.findall(r"`(mergeability (?:train|analyze) [^`…]*=[^`…]*)`", text)
        if line not in COMMANDS
    )
)
VERBS = [line for line in COMMANDS if re.match(r"mergeability (compare|predict|merge) ", line)]
SHOWN = [line for line in COMMANDS if re.match(r"mergeability (list|show) ", line)]
DASHBOARDS = [line for line in COMMANDS if line.startswith("mergeability dashboard ")]
INSTALLING = [line for line in COMMANDS if line.startswith("pip ")]
MAKING = [line for line in COMMANDS if line.startswith("make ")]
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
    "experiment=architectures": [
        "architecture=clip_mini",
        "suite=smoke",
        "merge=average",
        "metric=[functional,task_vector_l2_distance]",
        "predictor=none",
        "seed=0",
        "profile.unlabelled=8",
        "profile.samples=2",
    ],
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


def test_every_command_is_of_a_kind_that_is_checked():
    kinds = [RUN, LONG, VERBS, SHOWN, DASHBOARDS, INSTALLING, MAKING]
    assert sorted(COMMANDS) == sorted(line for kind in kinds for line in kind)
    assert [len(kind) for kind in kinds] == [23, 9, 10, 11, 1, 2, 2]
    assert len(INLINE) == 6


def test_prompts_are_in_console_blocks_and_no_command_lacks_one():
    """Otherwise it would be shown and not checked; docs/results.md has commands of the published table, without prompts."""
    for path, text in PAGES.items():
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert not re.search(r"^\s*\$ ", outside, re.MULTILINE), path
        if path.parent.name != "decisions" and path.name != "results.md":
            lines = [line for block in blocks("console", text) for line in block.splitlines()]
            assert [line for line in lines if not line.startswith("$ ")] == [], path


def test_the_readme_shows_the_two_commands_of_a_checkout():
    assert MAKING == ["make demo", "make test"]
    assert "```console\n$ make demo\n$ make test\n```" in README
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}:" in makefile for command in MAKING)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_what_is_installed_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in INSTALLING:
        for word in shlex.split(line)[2:]:
            name = re.match(r"[a-z_-]+", word)
            if name and not word.startswith("-") and "://" not in word:
                known = {re.match(r"[\w-]+", one)[0] for one in project["dependencies"]} | {project["name"]}
                assert name[0] in known, line
    extras = set(project["optional-dependencies"])
    for path in ("README.md", "docs/index.md"):
        table = re.search(r"\| extra \| adds \|\n.*?\n\n", PAGES[ROOT / path], re.DOTALL)[0]
        named = {
            one for row in table.strip().splitlines()[2:] for one in re.findall(r"`(\w+)`", row.split("|")[1])
        }
        assert named == extras - {"dev"} - ({"docs"} if path == "README.md" else set()), path
    for text in PAGES.values():
        assert set(re.findall(r"mergeability\[(\w+)\]", text)) <= extras


@pytest.fixture(scope="module")
def store(smoke_root, tmp_path_factory) -> Path:
    """What these commands compute of the same models, so that one finds what another computed."""
    return Path(shutil.copytree(smoke_root / "store", tmp_path_factory.mktemp("readme") / "store"))


@pytest.mark.parametrize("line", RUN)
def test_every_command_runs(line, smoke_root, store, command, tmp_path, monkeypatch):
    few = [] if "predictor=" in line else [FEW_PREDICTORS]
    few += [] if "test_images=" in line else ["test_images=16"]
    if "alpha=both" in line or "alpha=tuned" in line:
        few.append("alpha_grid=[0.3,1.0]")
    run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, [*few, f"paths.store={store}"])


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in RUN if "analyze" in line])
def test_every_analysis_runs_with_all_predictors_on_a_fresh_store(
    line, smoke_root, command, tmp_path, monkeypatch
):
    run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, ["prediction.seeds=2"])


def run_as_typed(line, smoke_root, command, tmp_path, monkeypatch, quicker):
    """Run a line in an empty folder, on four models where it names the ten."""
    monkeypatch.chdir(tmp_path)
    for ours, theirs in (("base", "base"), ("a", "task0"), ("b", "task1")):
        shutil.copy(ROOT / f"tests/golden/{theirs}.safetensors", tmp_path / f"{ours}.safetensors")
    tasks = list("abcde")
    pairs = [(a, b, i) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    frame = pd.DataFrame(pairs, columns=["task_a", "task_b", "stable_rank"])
    frame["stable_rank"] = 1 + frame["stable_rank"] / 10
    frame.assign(norm_acc_ties=frame["stable_rank"] ** 2 / 9).to_csv("pairs.csv", index=False)
    _, script, *arguments = shlex.split(line.replace("suite=mini", "suite=smoke"))
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
    small = [one for key, extra in SMALL.items() if key in line and script == "train" for one in extra]
    if "pretrain" in line or "grad_magnitude-0.01" in expected:
        shutil.rmtree(root / "checkpoints/clip_mini" / ("base" if "pretrain" in line else "none-0"))
    if script == "analyze":
        # Of a study, what takes long is done less often.
        small = [*QUICK, *quicker, *next((few for name, few in ABLATIONS.items() if name in arguments), [])]
    ended = command(script, *arguments, *small, f"paths.root={root}", "logger=csv")
    assert ended.code == 0, ended.output
    if script == "analyze":
        assert list(root.rglob("report.html"))
    if "save=true" in line or "export=hf" in line:
        assert list((root / "runs").rglob("merged/*/*/card.json"))
    if "experiment=regularisation" in line:
        assert list(root.rglob("ablation.html"))
    if "experiment=architectures" in line:
        assert list(root.rglob("architectures.html"))
    if "experiment=evidence" in line:
        assert list(root.rglob("evidence.html"))
    if "pretrain" in line:
        assert (root / "checkpoints/clip_mini/base/card.json").exists()
    if expected:
        assert (root / f"checkpoints/clip_mini/{expected}/seed-0/digits/card.json").exists()


@pytest.mark.parametrize("line", [*LONG, *INLINE])
def test_a_long_command_composes(line):
    """Its first job; every value of a sweep is an option that exists."""
    _, script, *arguments = shlex.split(line)
    overrides = []
    for word in [argument for argument in arguments if argument != "-m"]:
        override = OverridesParser.create().parse_override(word)
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        assert not values or "-m" in arguments
        if (ROOT / "conf" / override.key_or_group).is_dir():
            options = values or str(override.value()).strip("[]").split(", ")
            assert [one for one in options if not is_option(override.key_or_group, one)] == []
        # Launchers have schemas of their own, with which tests/commands/test_launchers.py runs them.
        if override.key_or_group != "hydra/launcher":
            overrides.append(f"{override.key_or_group}={values[0]}" if values else word)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose(script, overrides, return_hydra_config=True)


def is_option(group, name):
    derived = ("all", "data_free", "weights", "functional", "shared")
    return (ROOT / "conf" / group / f"{name}.yaml").is_file() or name in derived


@pytest.mark.parametrize("line", VERBS)
def test_a_verb_runs_as_typed(line, smoke_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Set by the command for its jobs; undone after the test.
    monkeypatch.setenv("MERGEABILITY_COMMAND", "mergeability")
    trained = smoke_root / "checkpoints/clip_mini"
    if "predict" in line:
        as_described(trained, tmp_path)
    else:
        for ours, theirs in (
            ("base", "base"),
            ("digits", "task0"),
            ("letters", "task1"),
            ("a", "task0"),
            ("b", "task1"),
        ):
            shutil.copy(ROOT / f"tests/golden/{theirs}.safetensors", tmp_path / f"{ours}.safetensors")
    ended = CliRunner().invoke(cli, [*shlex.split(line)[1:], "--store", "none"], prog_name="mergeability")
    assert ended.exit_code == 0, ended.output
    if "compare" in line:
        assert (
            "stable_rank" if "--metric task" not in line else "task_vector_cosine_similarity"
        ) in ended.output
    if "--report" in line:
        assert list(tmp_path.rglob("report.html"))
    if "predict" in line:
        assert "Merge by " in ended.output
    if "merge " in line:
        assert list(tmp_path.rglob("card.json"))


def test_every_option_of_the_verbs_is_documented():
    page = PAGES[ROOT / "docs/reference/commands.md"]
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^|]*\| ([^|]*)\|", page, re.MULTILINE))
    documented = {(verb, option) for option, verbs in rows.items() for verb in re.findall(r"`(\w+)`", verbs)}
    evidence = {"--images", "--classes", "--head", "--template", "--model", "--fitted", "--device"}
    options = {
        (verb, max(one.opts, key=len))
        for verb in ("compare", "predict", "merge")
        for one in cli.commands[verb].params
        if isinstance(one, click.Option)
    }
    # `predict` takes whole encoders; `merge` takes the evidence of `predict` for --method best.
    options -= {
        ("predict", "--include"),
        ("predict", "--exclude"),
        *(("merge", option) for option in evidence),
    }
    assert documented == options
    assert set(re.findall(r"^\| `mergeability (\w+)", page, re.MULTILINE)) == set(cli.commands)


@pytest.mark.parametrize("line", SHOWN)
def test_what_is_listed_or_shown_is_there(line):
    _, verb, name = shlex.split(line)
    if verb == "list":
        assert len(catalogue.listing(name).splitlines()) >= 4
    else:
        assert catalogue.text(catalogue.entry(name)).startswith(f"{name} (")


@pytest.mark.parametrize("line", DASHBOARDS)
def test_a_dashboard_is_made(line, smoke_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_root / "checkpoints", tmp_path / "outputs/checkpoints")
    _, _, *arguments = shlex.split(line)
    assert dashboard.main(arguments) == 0
    assert "trainings: 4" in capsys.readouterr().out
    assert (tmp_path / "outputs/dashboard.html").is_file()


def as_described(trained, folder):
    """Lay out what the guide's mine.yaml describes, with `shapes` in the place of `colours`."""
    (described,) = blocks("yaml", PAGES[ROOT / "docs/guides/checkpoints.md"])
    (folder / "mine.yaml").write_text(described)
    (folder / "digits.txt").write_text(
        "\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    )
    (folder / "letters.txt").write_text("\n".join("ABCDEFGHIJKL"))
    shutil.copy(trained / "base/model.safetensors", folder / "base.safetensors")
    for name, model in (("digits", "digits"), ("colours", "shapes"), ("letters", "letters")):
        shutil.copy(trained / f"none-0/seed-0/{model}/model.safetensors", folder / f"{name}.safetensors")
        shutil.copy(trained / f"none-0/seed-0/{model}/head.safetensors", folder / f"{name}_head.safetensors")
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (32, 32), (31 * index, 90, 0)).save(folder / "photos" / name / f"{index}.png")


EXPORTED = set(re.findall(r"as (\w+)$", (ROOT / "mergeability/__init__.pyi").read_text(), re.MULTILINE))
SNIPPETS = [
    pytest.param(block, id=f"{path.stem}-{index}")
    for path, text in PAGES.items()
    if path.name != "results.md"  # of the published table, which is not part of this repository
    for index, block in enumerate(blocks("python", text))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet, tmp_path, monkeypatch):
    used = set(re.findall(r"\bmergeability\.(\w+)\(", snippet))
    assert used <= EXPORTED
    monkeypatch.chdir(tmp_path)
    for ours, theirs in (
        ("base", "base"),
        ("a", "task0"),
        ("b", "task1"),
        ("digits", "task0"),
        ("letters", "task1"),
    ):
        shutil.copy(ROOT / f"tests/golden/{theirs}.safetensors", tmp_path / f"{ours}.safetensors")
    names: dict = {}
    exec(compile(snippet, "snippet", "exec"), names)
    if "table" in names and not used:
        assert names["table"].shape == (1, 18)
        assert (tmp_path / "merged.safetensors").exists()
        assert set(names["weights"]) >= set(names["merged"])


def test_the_snippets_are_found():
    assert len(SNIPPETS) == 3
