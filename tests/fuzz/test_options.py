"""Every setting with values of other types and sizes: each ends in a result or in one sentence that names it."""

import itertools
import random
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from safetensors.torch import save_file

from mergeability.commands.settings import check_settings
from mergeability.commands.wording import check_overrides, sentence
from mergeability.errors import UserError

CONF = Path(__file__).parent.parent.parent / "conf"
VALUES = (
    "abc",
    "-1",
    "0",
    "-0.5",
    "1000000000000",
    "1e30",
    "[1,2]",
    "{x: 1}",
    "null",
    "nan",
    "inf",
    '""',
    "true",
)
SECONDS = 60
# The slow test in so many parts, each of which can be run by itself.
PARTS = 8

SMALL = (
    *("task.source.train=64", "task.source.validation=32", "task.source.test=32", "training.epochs=1"),
    *("trainer=smoke", "+trainer.max_steps=1"),
)
# Three commands that reach all settings, small enough for hundreds of runs.
COMMANDS = {
    "train": ("train", ("task=digits", "model=clip_mini", "reg.lambda=0.01", *SMALL, "progress=null", "logger=csv")),
    "table": (
        "analyze",
        ("suite=table", "suite.table=TABLE", "metric=task_vector_cosine_similarity", "predictor=all", "logger=none",
         "prediction.permutations=0", "prediction.seeds=0", "prediction.ablation=false"),
    ),
    "checkpoints": (
        "analyze",
        ("suite=checkpoints", "suite.base=BASE", "suite.models={a: A, b: B}", "metric=weights", "merge=data_free",
         "predictor=none", "logger=none", "save=true"),
    ),
}  # fmt: skip
# Of the table's command the settings of prediction, which take no second run of everything else.
ONLY = {"table": ("prediction.", "predictor.", "fitted", "margin", "suite.", "seed")}
SKIPPED = ("hydra.", "analysis.", "settings.", "run.", "logger.")


def paths(node: DictConfig, path: str = "") -> list[str]:
    found = []
    for name in node:
        inner, full = node._get_node(name), f"{path}.{name}" if path else str(name)
        if isinstance(inner, DictConfig) and not (inner._is_none() or inner._is_interpolation()):
            found += [full, *paths(inner, full)]
        elif name not in ("_target_", "_partial_"):
            found.append(full)
    return found


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    primary, arguments = COMMANDS[name]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(primary, [*arguments, *overrides])


def cases() -> list[tuple[str, str, str]]:
    found = []
    for name in COMMANDS:
        for path in paths(composed(name)):
            if not path.startswith(SKIPPED) and path.startswith(ONLY.get(name, ("",))):
                found += [(name, path, value) for value in VALUES]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table of 28 pairs, a tiny tower and two models of it."""
    folder = tmp_path_factory.mktemp("options")
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(list(itertools.combinations("abcdef", 2)), columns=["task_a", "task_b"])
    frame["task_vector_cosine_similarity"] = generator.uniform(size=len(frame))
    frame["acc_ties"], frame["norm_acc_ties"] = generator.uniform(0.3, 0.9, (2, len(frame)))
    frame.to_csv(folder / "TABLE", index=False)
    draw = torch.Generator().manual_seed(0)
    base = {f"layer{i}.weight": torch.randn(12, 8, generator=draw) for i in range(3)}
    for name in ("BASE", "A", "B"):
        moved = {key: value + 0.05 * torch.randn(12, 8, generator=draw) for key, value in base.items()}
        save_file(base if name == "BASE" else moved, folder / f"{name}.safetensors")
    return folder


def line(files: Path, name: str) -> list[str]:
    return [
        word.replace("TABLE", str(files / "TABLE"))
        .replace("=BASE", f"={files / 'BASE.safetensors'}")
        .replace(": A", f": {files / 'A.safetensors'}")
        .replace(": B", f": {files / 'B.safetensors'}")
        for word in COMMANDS[name][1]
    ]


def run(command, files: Path, root: Path, number: int, case: tuple[str, str, str]) -> None:
    name, path, value = case
    words = [*line(files, name), f"paths.root={root}", f"hydra.run.dir={files}/runs/{number}"]
    if name == "train":
        words.append(f"variant=v{number}")
    began = time.monotonic()
    ended = command(COMMANDS[name][0], *words, f"{path}={value}")
    assert "Traceback" not in ended.output, (case, ended.output[-3000:])
    assert ended.code in (0, 1), (case, ended.output)
    if ended.code:
        *_, last = ended.output.strip().splitlines()
        assert last.startswith("Error: "), (case, ended.output[-2000:])
        assert "Error executing job" not in ended.output
    assert time.monotonic() - began < SECONDS, case


def test_a_sample_is_refused_by_name_or_passes_the_check():
    """The check alone, which is most of what refuses; without the seconds that each command takes to start."""
    sample = random.Random(0).sample(cases(), 100)
    refused = 0
    for name, path, value in sample:
        told = refusal(name, f"{path}={value}")
        if told is not None:
            refused += 1
            assert "\n" not in told
            assert path.rpartition(".")[2] in told, (path, value, told)
    assert refused > 50


def refusal(name: str, override: str) -> str | None:
    primary, arguments = COMMANDS[name]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check_overrides([override])
            check_settings(compose(primary, [*arguments, override]))
    except UserError as error:
        return str(error)
    except HydraException as error:
        return sentence(error)
    return None


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder: some values are accepted as relative paths."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_a_few_whole_commands(command, files, smoke_root):
    chosen = [
        ("train", "trainer.devices", "abc"),
        ("train", "trainer.accelerator", "abc"),
        ("table", "predictor.trees.seed", "-1"),
        ("checkpoints", "metric.subspace_overlap.k", "1000000000"),
    ]
    for number, case in enumerate(chosen):
        run(command, files, smoke_root, number, case)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("part", range(PARTS))
def test_every_setting_with_every_value(command, files, smoke_root, part):
    failed = []
    tried = list(enumerate(cases()))[part::PARTS]
    for number, case in tried:
        try:
            run(command, files, smoke_root, number, case)
        # Of any kind, warnings included: one case must not hide the others.
        except Exception as error:  # noqa: BLE001
            failed.append(f"{case}: {type(error).__name__}: {str(error)[:1500]}")
    assert not failed, f"{len(failed)} of {len(tried)}:\n" + "\n".join(failed)
