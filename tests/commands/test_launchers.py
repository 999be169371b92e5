"""A sweep gives the same summary, list of failed jobs and exit code with every launcher."""

import contextlib
import importlib
import os
import signal
import socket
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest

from mergeability.commands import launchers
from mergeability.commands.job_records import KILLED
from mergeability.commands.launchers import shares
from mergeability.context import cores
from mergeability.context.ray_cluster import check_answer
from mergeability.errors import UserError
from mergeability.files import hold_folder, read_object

ROOT = Path(__file__).parent.parent.parent
# As little work as there is: one pair, evaluated on a few images.
LITTLE = (
    *("suite=smoke", "model=clip_mini", "metric=[task_vector_cosine_similarity]", "predictor=none"),
    *("pairs=[[digits,letters]]", "test_images=16", "validation_images=16", "logger=none"),
)
LAUNCHERS = ["joblib", "submitit_local", "ray"]
PLUGIN = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}


def records(sweep: Path) -> dict[int, dict]:
    found = [read_object(path) for path in sweep.glob(".jobs/*/*.json")]
    return {record["number"]: record for record in found if record is not None}


def kill_first(sweep: Path, done: list[int]) -> None:
    """Kill the process of the first job as soon as that has begun."""
    for _ in range(6000):
        first = records(sweep).get(0)
        if first is not None and first["ended"] is None:
            os.kill(first["pid"], signal.SIGKILL)
            done.append(first["pid"])
            return
        time.sleep(0.01)


@pytest.fixture
def cluster(request):
    """A Ray cluster of two workers, where the launcher is Ray."""
    launcher = request.getfixturevalue("launcher")
    pytest.importorskip(
        f"hydra_plugins.{PLUGIN[launcher]}", reason=f"the extra for {launcher} is not installed"
    )
    if launcher != "ray":
        yield ()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test_utils = importlib.import_module("ray.cluster_utils")
        made = test_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        made.add_node(num_cpus=1)
        yield (f"hydra.launcher.address={made.address}",)
        made.shutdown()


# A command that leaves a table as `analyze.py` does, without PyTorch, so that a process starts fast.
APP = """
import os
import signal
from pathlib import Path

import hydra

from mergeability.commands import run
from mergeability.commands.folders import run_folder
from mergeability.errors import UserError


@hydra.main(version_base="1.3", config_path={conf!r}, config_name="analyze")
def main(cfg):
    (method,) = cfg.merge
    if cfg.seed == 1:
        raise UserError("There is no seed 1.")
    if cfg.seed == 2:
        raise KeyError("a defect")
    killed = Path(cfg.paths.root) / "killed"
    if method == "ties" and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"{{method}} was merged with {{os.environ['OMP_NUM_THREADS']}} threads")
    (run_folder() / "pairs.csv").write_text(f"task_a,task_b,norm_acc_{{method}},acc_{{method}}\\na,b,0.9,0.8\\n")


if __name__ == "__main__":
    run.run(main)
"""


@pytest.fixture
def app(command, tmp_path):
    """Run the command above as a sweep in one folder."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
    (tmp_path / "app.py").write_text(APP.format(conf=str(ROOT / "conf")))
    where = (f"paths.root={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra/launcher=joblib")
    return lambda *words: command(str(tmp_path / "app"), "-m", "suite=smoke", *words, *where)


def test_jobs_in_other_processes_are_summarised_killed_ones_named_and_done_by_a_second_start(app, tmp_path):
    ended = app("merge=ties,ta", "seed=0,1", "hydra.launcher.n_jobs=2")
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert ended.output.count("Error") == 1
    assert "3 of 4 jobs failed:" in ended.output
    own = f"paths.root={tmp_path}: "
    assert f"  suite=smoke merge=ties seed=0 {own}{KILLED}\n" in ended.output
    for method in ("ties", "ta"):
        assert f"  suite=smoke merge={method} seed=1 {own}There is no seed 1.\n" in ended.output
    sweep = tmp_path / "sweep"
    assert f"Summary of the sweep: {sweep / 'summary.html'}" in ended.output
    assert pd.read_csv(sweep / "summary.csv")["method"].tolist() == ["ta"]
    assert "4 jobs, 2 in parallel" in ended.output
    # What a job prints is in its own file.
    assert "ta was merged with" in (sweep / "2" / "terminal.log").read_text()
    assert "was merged with" not in ended.output
    assert os.getpid() not in {record["pid"] for record in records(sweep).values()}

    again = app("merge=ties,ta", "seed=0", "hydra.launcher.n_jobs=1")
    assert again.code == 0, again.output
    assert sorted(pd.read_csv(sweep / "summary.csv")["method"]) == ["ta", "ties"]
    assert len(records(sweep)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_job_and_a_failed_one_are_listed_and_a_second_start_completes(
    launcher, cluster, command, smoke_root, tmp_path
):
    sweep = tmp_path / "sweep"
    where = (f"paths.root={smoke_root}", f"hydra.sweep.dir={sweep}", f"hydra/launcher={launcher}", *cluster)
    killed: list[int] = []
    killer = threading.Thread(target=kill_first, args=(sweep, killed))
    killer.start()
    ended = command(
        "analyze", "-m", "merge=ties,ta", "on_error=raise,typo", *LITTLE, *where, "hydra.launcher.n_jobs=2"
    )
    killer.join()
    assert killed
    assert os.getpid() not in killed
    assert ended.code == 1
    assert "3 of 4 jobs failed" in ended.output
    assert f"merge=ties on_error=raise {' '.join(LITTLE)} paths.root={smoke_root}: {KILLED}" in ended.output
    assert "Expected on_error='raise' or on_error='nan', got" in ended.output
    assert "Traceback" not in ended.output
    assert "1 of 4 jobs ended" in ended.output or "2 of 4 jobs ended" in ended.output
    assert pd.read_csv(sweep / "summary.csv")["method"].tolist() == ["ta"]
    # What a job prints is in a file of its own.
    assert "on_error=raise" not in ended.output.partition("jobs failed")[0].partition("#3")[2]
    assert "Report: " in (sweep / "2" / "terminal.log").read_text()
    assert "Report: " not in ended.output
    pids = {record["pid"] for record in records(sweep).values()}
    assert os.getpid() not in pids

    again = command("analyze", "-m", "merge=ties,ta,tsv", *LITTLE, *where, "hydra.launcher.n_jobs=2")
    assert again.code == 0, again.output
    assert sorted(pd.read_csv(sweep / "summary.csv")["method"]) == ["ta", "ties", "tsv"]
    assert f"Summary of the sweep: {sweep / 'summary.html'}" in again.output
    assert len(records(sweep)) == 3


def test_a_defect_in_a_job_is_a_sentence_that_names_the_file_with_its_traceback(app, tmp_path):
    log = tmp_path / "sweep" / "0" / "terminal.log"
    ended = app("merge=ta", "seed=2")
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert f"Error: KeyError: 'a defect'. The traceback is in {log}." in ended.output
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "submitit_slurm", "ray"])
def test_a_sweep_folder_in_use_is_refused_with_every_launcher(launcher, command, tmp_path):
    (tmp_path / "sweep").mkdir()
    with contextlib.ExitStack() as driver:
        hold_folder(tmp_path / "sweep", driver)
        where = (f"paths.root={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
        ended = command("analyze", "-m", f"hydra/launcher={launcher}", "merge=ties,ta", *LITTLE, *where)
    assert ended.code == 1
    assert ended.output.startswith("Error: ")
    assert "is in use by another run. Wait until it has ended" in ended.output
    assert not (tmp_path / "sweep" / ".jobs").exists()


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray")],
)
def test_a_launcher_whose_extra_is_missing_names_it(launcher, extra, command, tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    where = (f"paths.root={tmp_path}", f"hydra/launcher={launcher}")
    ended = command("analyze", "-m", "merge=ties,ta", *LITTLE, *where)
    assert ended.code == 1
    assert (
        f"Error: This launcher requires the extra {extra}. Install it with uv pip install 'mergeability[{extra}]'"
        in ended.output
    )
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("launcher", "plugin", "words", "sentence"),
    [
        (
            "submitit_slurm",
            "hydra_submitit_launcher",
            (),
            "needs the Slurm commands sbatch and srun, which are not installed on this machine.",
        ),
        (
            "ray",
            "hydra_ray_launcher",
            ("hydra.launcher.address=127.0.0.1:9",),
            "No Ray cluster answers at 127.0.0.1:9",
        ),
        (
            "ray",
            "hydra_ray_launcher",
            ("hydra.launcher.address=here",),
            "Expected hydra.launcher.address to be auto or",
        ),
        (
            "joblib",
            "hydra_joblib_launcher",
            ("hydra.launcher.n_jobs=0",),
            "Expected hydra.launcher.n_jobs to be",
        ),
        (
            "joblib",
            "hydra_joblib_launcher",
            ("hydra.launcher.threads=two",),
            "Expected hydra.launcher.threads to be",
        ),
        ("joblib", "hydra_joblib_launcher", ("hydra.launcher.gpus=1",), "Each job requires 1 GPUs"),
    ],
)
def test_what_a_launcher_cannot_do_is_one_sentence(
    launcher, plugin, words, sentence, command, tmp_path, monkeypatch
):
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"the extra for {launcher} is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    where = (f"paths.root={tmp_path}", f"hydra/launcher={launcher}", *words)
    ended = command("analyze", "-m", "merge=ties,ta", *LITTLE, *where)
    assert ended.code == 1
    assert f"Error: {sentence}" in ended.output.replace("hydra/launcher=submitit_slurm ", "")
    assert "Traceback" not in ended.output


def test_an_address_that_accepts_connections_and_is_no_ray_cluster_is_given_up_soon():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(UserError, match="No Ray cluster answers"):
            check_answer(f"127.0.0.1:{silent.getsockname()[1]}", "workers", "go without", patience=2)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("jobs", "wanted", "machine", "found"),
    [
        (12, {}, (8, 0), (8, 1, 0)),
        (3, {}, (8, 0), (3, 2, 0)),
        (12, {"threads": 4}, (8, 0), (2, 4, 0)),
        (12, {"n_jobs": 2}, (8, 0), (2, 4, 0)),
        (12, {"n_jobs": -1}, (8, 0), (8, 1, 0)),
        (12, {}, (8, 2), (2, 4, 1)),
        (12, {"gpus": 0.5}, (8, 2), (4, 2, 0.5)),
        (12, {"gpus": 2}, (8, 4), (2, 4, 2)),
        (12, {"gpus": 0}, (8, 4), (8, 1, 0)),
        (1, {}, (8, 4), (1, 8, 1)),
    ],
)
def test_jobs_at_once_times_threads_are_the_cores(jobs, wanted, machine, found):
    given = {"n_jobs": None, "threads": None, "gpus": None, **wanted}
    division = shares.share(jobs, **given, cores=machine[0], devices=machine[1])
    assert division == shares.Share(*found)
    assert division.at_once * division.threads <= machine[0]
    devices = [str(number) for number in range(machine[1])]
    own = [shares.slot_devices(slot, division.gpus, devices) for slot in range(division.at_once)]
    times = [sum(device in one for one in own) for device in devices]
    assert max(times, default=0) <= (1 / division.gpus if 0 < division.gpus < 1 else 1)
    assert {len(one) for one in own} == {max(1, int(division.gpus)) if division.gpus else 0}


@pytest.mark.parametrize(
    "wanted", [{"gpus": 3}, {"gpus": -1}, {"n_jobs": 3, "gpus": 1}, {"threads": 0}, {"n_jobs": True}]
)
def test_a_share_that_a_machine_cannot_give_is_refused(wanted):
    given = {"n_jobs": None, "threads": None, "gpus": None, **wanted}
    with pytest.raises(UserError, match=r"hydra\.launcher\."):
        shares.share(4, **given, cores=8, devices=2)


@pytest.mark.parametrize(
    ("value", "found"), [("0,3", ["0", "3"]), ("", []), ("-1", []), ("GPU-a", ["GPU-a"])]
)
def test_the_gpus_of_a_process_are_those_it_may_see(monkeypatch, value, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert shares.visible_devices() == found


def test_a_job_uses_no_more_cores_than_its_share(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert cores() == 1
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1000000")
    assert 1 <= cores() < 1000000
