"""Each run has a folder of its own: at the same second, in a folder that was used before, beside a run that goes on."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from mergeability.commands import folders
from mergeability.files import hold_folder

ROOT = Path(__file__).parent.parent.parent
BARE = ("suite=checkpoints", f"suite.base={ROOT}/tests/golden/base.safetensors", "logger=none")
METRIC = ("metric=[task_vector_cosine_similarity]", "predictor=none")


def models(first: str, second: str) -> str:
    return f"suite.models={{{first}: {ROOT}/tests/golden/task0.safetensors, {second}: {ROOT}/tests/golden/task1.safetensors}}"


@pytest.fixture
def analyse(command, tmp_path, monkeypatch):
    """Run `analyze.py` on two checkpoints in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: command("analyze", *words, *BARE, *METRIC, "paths.root=outputs")


def test_of_runs_that_start_together_each_makes_a_folder_of_its_own(tmp_path):
    wanted = tmp_path / "runs" / "2026-01-01_00-00-00"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _number: folders._new(wanted), range(8)))
    assert sorted(path.name for path in made) == [wanted.name, *(f"{wanted.name}-{n}" for n in range(2, 9))]
    assert all(path.is_dir() for path in made)


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_a_folder_named_by_the_time_is_never_shared(tmp_path, mode):
    setup_globals()  # of Hydra: what `now` means
    moment = "${now:%Y-%m-%d}"
    found = []
    for _ in range(2):
        written = {
            "run": {"dir": f"{tmp_path}/{moment}"},
            "sweep": {"dir": f"{tmp_path}/{moment}"},
            "overrides": {"hydra": []},
        }
        config = OmegaConf.create({"hydra": written})
        start = folders.RunFolders().on_run_start if mode == "run" else folders.RunFolders().on_multirun_start
        start(config)
        found.append(Path(config.hydra[mode].dir))
        assert list(config.hydra.overrides.hydra) == (
            [f"hydra.sweep.dir='{found[-1]}'"] if mode == "sweep" and len(found) == 2 else []
        )
    assert found[0].is_dir()
    assert found[1] == found[0].with_name(f"{found[0].name}-2")


def test_a_folder_that_is_used_again_holds_one_run(analyse, tmp_path):
    folder = tmp_path / "r"
    saved = ("save=true", "hydra.run.dir=r")
    assert analyse(models("a", "b"), "merge=ties", *saved).code == 0
    (folder / "note.txt").write_text("of a person")
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    ended = analyse(models("c", "d"), "merge=average", *saved)
    assert ended.code == 0, ended.output
    assert "Report: r/report.html" in ended.output
    assert ".partial" not in ended.output
    assert pd.read_csv(folder / "pairs.csv").iloc[0, :2].tolist() == ["c", "d"]
    assert [str(path.relative_to(folder)) for path in folder.rglob("merged/*/*")] == ["merged/average/c+d"]
    assert "merge=average" in yaml.safe_load((folder / ".hydra/overrides.yaml").read_text())
    assert yaml.safe_load((folder / ".hydra/hydra.yaml").read_text())["hydra"]["runtime"][
        "output_dir"
    ] == str(folder)
    log = (folder / "analyze.log").read_text()
    assert log.count("Report:") == 1
    # What is not of a run stays.
    assert (folder / "note.txt").read_text() == "of a person"
    assert (folder / "wandb" / "offline-run-1").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"r", "outputs"}


def test_a_run_that_fails_leaves_the_earlier_results_as_they_are(analyse, tmp_path):
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}

    assert analyse(models("a", "b"), "hydra.run.dir=r").code == 0
    before = content()
    ended = analyse("suite.models={c: c.safetensors, d: d.safetensors}", "hydra.run.dir=r")
    assert ended.code == 1
    assert content() == before
    assert (
        "The earlier results in r are unchanged. The files of this run are in r.unfinished." in ended.output
    )
    assert (tmp_path / "r.unfinished" / "analyze.log").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"r", "r.unfinished", "outputs"}


def test_a_folder_that_another_run_uses_is_refused(analyse, tmp_path):
    (tmp_path / "r").mkdir()
    with contextlib.ExitStack() as held:
        assert hold_folder(tmp_path / "r", held)
        for words in (("hydra.run.dir=r",), ("-m", "merge=ties,average", "hydra.sweep.dir=r")):
            ended = analyse(*words, models("a", "b"))
            assert ended.code == 1
            assert "Error: r is in use by another run." in ended.output
            assert "Traceback" not in ended.output
        assert list((tmp_path / "r").iterdir()) == []
    assert analyse(models("a", "b"), "hydra.run.dir=r").code == 0


@pytest.mark.parametrize("place", ["taken/r", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(analyse, tmp_path, place):
    (tmp_path / "taken").write_text("a file")
    ended = analyse(models("a", "b"), f"hydra.run.dir={place}")
    assert ended.code == 1
    assert f"Error: Cannot make the folder {place}: " in ended.output
    assert "hydra.run.dir=" in ended.output
    assert "Traceback" not in ended.output


def test_the_working_folder_can_be_the_run_folder(analyse, tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    for _ in range(2):
        assert analyse(models("a", "b"), "hydra.run.dir=.").code == 0
        assert (place / "pairs.csv").exists()
        assert Path.cwd() == place
