"""What trainings, analyses and sweeps leave in tracking services, read back from their files."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from wandb.proto import wandb_internal_pb2

SIZES = ("task.source.train=64", "task.source.validation=32", "task.source.test=32", "training.epochs=1")
ANALYSIS = ("suite=smoke", "model=clip_mini", "metric=minimal", "test_images=20")
# W&B writes a log as LevelDB does: seven bytes of header, then blocks of 32 KiB; a record is a checksum of four bytes,
# its length in two, its kind in one (whole, first, middle, last), and its part of a message.
HEADER, BLOCK, WHOLE, LAST = 7, 32 * 1024, 1, 4
# Tenths of a second.
PATIENCE = 100


def messages(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    data, place, message = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + HEADER + length > len(data):
            return
        message += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def ended_messages(file: Path) -> list[wandb_internal_pb2.Record]:
    """Records of a run that has ended: W&B's service may write the last of them just after `finish` has returned."""
    for _ in range(PATIENCE):
        found = list(messages(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no record of the run's end")


class Read:
    """A W&B run as its offline file tells it."""

    def __init__(self, folder: Path):
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.config: dict = {}
        self.summary: dict = {}
        self.directions: dict[str, str] = {}
        self.artifacts: dict[str, tuple[str, dict, list[str]]] = {}
        self.exit: int | None = None
        for record in ended_messages(file):
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                case "config":
                    self.config |= {one.key: json.loads(one.value_json) for one in record.config.update}
                case "summary":
                    for one in record.summary.update:
                        name, value = (
                            "/".join([one.key, *one.nested_key]).strip("/"),
                            json.loads(one.value_json),
                        )
                        parts = value.items() if isinstance(value, dict) else ()
                        self.summary |= {f"{name}/{key}": part for key, part in parts} or {name: value}
                case "metric":
                    kinds = record.metric.summary
                    self.directions[record.metric.name] = "max" if kinds.max else "min" if kinds.min else ""
                case "artifact":
                    one = record.artifact
                    files = [entry.path for entry in one.manifest.contents]
                    self.artifacts[one.name] = (one.type, json.loads(one.metadata or "{}"), files)
                case "exit":
                    self.exit = record.exit.exit_code


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        yield patch


def only_run(root: Path, script: str) -> Path:
    (folder,) = (root / "runs" / script).iterdir()
    return folder


def test_a_training_has_its_configuration_its_name_and_its_accuracies(command, smoke_root, tmp_path, offline):
    ended = command(
        "train", "task=digits", "model=clip_mini", "reg=l2_to_init", "reg.lambda=0.1", *SIZES, "progress=null",
        f"paths.root={tmp_path}", f"base={smoke_root}/checkpoints/clip_mini/base", "logger=[wandb,csv]",
        "logger.wandb.notes=first", "trainer.log_every_n_steps=1", "logger.wandb.log_model=true",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    folder = only_run(tmp_path, "train")
    run = Read(folder)
    assert "wandb sync" in ended.output
    assert str(next(folder.glob("wandb/offline-run-*"))) in ended.output
    assert run.run.display_name == "digits/l2_to_init-0.1/s0"
    assert run.run.run_group == f"train/{folder.name}"
    assert (run.run.job_type, run.run.notes, sorted(run.run.tags)) == (
        "train",
        "first",
        ["clip_mini", "l2_to_init"],
    )
    assert run.exit == 0
    assert run.config["task"]["name"] == "digits"
    assert run.config["reg"]["lambda"] == 0.1
    assert run.config["training"]["epochs"] == 1
    assert run.config["seed"] == 0
    card = json.loads(next(tmp_path.rglob("digits/card.json")).read_text())
    assert run.summary["test_accuracy"] == card["accuracy"]["test"]
    assert run.summary["base_test_accuracy"] == card["base_accuracy"]["test"]
    assert (
        run.summary["parameters/trained"]
        == card["parameters"]["trained"]
        == card["parameters"]["encoder"]
        > 10_000
    )
    for name in ("train/loss", "validation/accuracy", "lr-AdamW", "seconds", "peak_memory_gib"):
        assert run.summary[name] >= 0, name
    (model,) = [(name, found) for name, found in run.artifacts.items() if found[0] == "model"]
    assert model[0] == f"digits-{card['sha256'][:12]}"
    assert model[1][1]["sha256"] == card["sha256"]
    (weights,) = [found for found in run.artifacts.values() if found[0] == "weights"]
    assert sorted(weights[2]) == ["card.json", "head.safetensors", "model.safetensors"]
    written = pd.read_csv(folder / "csv" / "metrics.csv")
    assert written["test_accuracy"].dropna().tolist() == [card["accuracy"]["test"]]


@pytest.fixture(scope="module")
def sweep(command, smoke_root, tmp_path_factory, offline) -> tuple[str, Path]:
    """Two jobs of one sweep: what the command said, and the sweep's folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "both"
    ended = command(
        "analyze", "-m", *ANALYSIS, "merge=ties,ta", "predictor=ridge", "prediction.permutations=0", "logger=wandb",
        "prediction.seeds=0", "prediction.protocols=[loto]", "prediction.targets=[norm_acc]", "prediction.ablation=false", f"paths.root={smoke_root}", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    return ended.output, folder


def test_the_jobs_of_a_sweep_are_one_group(sweep):
    runs = [Read(sweep[1] / number) for number in "01"]
    assert {run.run.run_group for run in runs} == {"/".join(sweep[1].parts[-2:])}
    assert {run.run.display_name for run in runs} == {"smoke/clip_mini/none-0/s0"}
    assert {run.run.job_type for run in runs} == {"analyze"}
    assert [run.exit for run in runs] == [0, 0]
    assert [list(run.config["merge"]) for run in runs] == [["ties"], ["ta"]]


def test_the_summary_of_a_sweep_is_a_run_of_its_group(sweep):
    output, folder = sweep
    run = Read(folder)
    assert run.run.job_type == "summary"
    assert run.run.run_group == "/".join(folder.parts[-2:])
    assert run.exit == 0
    assert run.summary["report/_type"] == "html-file"
    assert run.summary["summary/nrows"] == len(pd.read_csv(folder / "summary.csv")) == 2
    ((kind, _, files),) = [found for name, found in run.artifacts.items() if name.startswith("summary-")]
    assert kind == "summary"
    assert {"summary.html", "summary.csv", "fingerprints.csv"} <= set(files)
    assert output.index("Summary of the sweep") < output.rindex("wandb sync")


def test_an_analysis_logs_means_tables_figures_verdict_and_lineage(sweep, smoke_root):
    output, folder = sweep[0], sweep[1] / "0"
    assert output.index("report.html") < output.index("wandb sync")
    run, pairs = Read(folder), pd.read_csv(folder / "pairs.csv")
    assert run.summary["norm_acc_ties/mean/max"] == pytest.approx(pairs["norm_acc_ties"].mean(), rel=1e-12)
    assert run.summary["norm_acc_ties/worst/max"] == pytest.approx(pairs["norm_acc_ties"].min(), rel=1e-12)
    assert run.directions["norm_acc_ties/mean"] == "max"
    assert run.directions["seconds"] == "min"
    assert run.summary["pairs/nrows"] == len(pairs)
    assert run.summary["pairs/ncols"] == len(pairs.columns)
    for table in ("models", "accuracies", "prediction/fingerprints"):
        assert run.summary.get(f"{table}/_type") in ("table-file", None), table
    assert run.summary["models/nrows"] == 4
    for figure in ("pairs", "predicted", "coefficients", "fingerprints"):
        assert run.summary[f"figures/{figure}/_type"] == "plotly-file", figure
    drawn = json.loads(next(folder.glob("wandb/offline-run-*/files/media/plotly/figures/pairs*")).read_text())
    assert drawn["data"][0]["type"] == "heatmap"
    assert run.summary["report/_type"] == run.summary["verdict/_type"] == "html-file"
    assert run.summary["verdict_text"] == (folder / "verdict.txt").read_text().rstrip("\n")
    ((kind, facts, files),) = [found for name, found in run.artifacts.items() if name.startswith("analysis-")]
    assert kind == "analysis"
    assert {"pairs.csv", "run.json", "report.html", "verdict.txt", "prediction.json"} <= set(files)
    cards = [
        json.loads(path.read_text())
        for path in smoke_root.glob("checkpoints/clip_mini/none-0/seed-0/*/card.json")
    ]
    used = {card["task"]: f"{card['task']}-{card['sha256'][:12]}" for card in cards}
    assert facts["models"] == {task: used[task] for task in facts["models"]}
    assert len(facts["models"]) == 4


def test_progress_is_logged_while_an_analysis_runs(sweep):
    run = Read(sweep[1] / "0")
    shares = {name: value for name, value in run.summary.items() if name.startswith("progress/")}
    assert shares
    assert set(shares.values()) == {1}


def test_an_analysis_that_fails_is_a_failed_run(command, smoke_root, tmp_path, offline):
    folder = tmp_path / "run"
    ended = command(
        "analyze",
        *ANALYSIS,
        "merge=ties",
        "seed=77",
        "logger=wandb",
        f"paths.root={smoke_root}",
        f"hydra.run.dir={folder}",
    )
    assert ended.code == 1
    assert "Traceback" not in ended.output
    run = Read(folder)
    assert run.exit == 1
    assert run.config["seed"] == 77
    assert run.run.run_group == f"{tmp_path.name}/run"


def test_in_a_folder_that_was_used_before_the_upload_is_told_by_its_last_place(
    command, smoke_root, tmp_path, offline
):
    folder = tmp_path / "run"
    words = (
        *ANALYSIS, "merge=none", "predictor=none", "logger=wandb", f"paths.root={smoke_root}", f"hydra.run.dir={folder}",
    )  # fmt: skip
    for number in (1, 2):
        ended = command("analyze", *words)
        assert ended.code == 0, ended.output
        told = ended.output.rpartition("wandb sync ")[2].split()[0]
        assert list(Path(told).glob("*.wandb")), told
        assert len(list(folder.glob("wandb/offline-run-*"))) == number


def test_a_wrong_mode_is_one_sentence_and_the_run_goes_on_offline(command, smoke_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "on")
    folder = tmp_path / "run"
    ended = command(
        "analyze", *ANALYSIS, "merge=none", "predictor=none", "logger=wandb", f"paths.root={smoke_root}",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert "Weights & Biases cannot be used with mode on" in ended.output
    assert Read(folder).exit == 0


def test_a_logger_whose_package_is_missing_is_refused_before_the_work(
    command, smoke_root, tmp_path, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    ended = command(
        "analyze", *ANALYSIS, "logger=comet", f"paths.root={smoke_root}", f"hydra.run.dir={tmp_path}/run",
        # Not even a model is trained before.
        "train.missing=true", "seed=55",
    )  # fmt: skip
    assert ended.code == 1
    assert "logger=comet needs the package comet_ml" in ended.output
    assert "uv pip install comet-ml" in ended.output
    assert "Model 1 of" not in ended.output
    assert not (tmp_path / "run" / "pairs.csv").exists()


def test_tensorboard_and_mlflow_hold_what_was_found(command, smoke_root, tmp_path, offline):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = pytest.importorskip("mlflow.tracking")
    where = (f"paths.root={tmp_path}", "logger=[tensorboard,mlflow]")
    checkpoints = smoke_root / "checkpoints"
    training = command(
        "train",
        "task=digits",
        "model=clip_mini",
        *SIZES,
        "progress=null",
        *where,
        f"base={checkpoints}/clip_mini/base",
    )
    assert training.code == 0, training.output
    analysis = command(
        "analyze", *ANALYSIS, "merge=ta", "predictor=ridge", *where, f"paths.checkpoints={checkpoints}"
    )
    assert analysis.code == 0, analysis.output
    client = tracking.MlflowClient(f"file:{tmp_path}/mlruns")
    (experiment,) = [one for one in client.search_experiments() if one.name == "mergeability"]
    runs = {run.data.tags["job_type"]: run for run in client.search_runs([experiment.experiment_id])}
    card = json.loads(next(tmp_path.rglob("digits/card.json")).read_text())
    trained, analysed = runs["train"], runs["analyze"]
    assert trained.info.run_name == "digits/none-0/s0"
    assert trained.data.metrics["test_accuracy"] == card["accuracy"]["test"]
    assert trained.data.params["training/epochs"] == "1"
    folder = only_run(tmp_path, "analyze")
    mean = pd.read_csv(folder / "pairs.csv")["norm_acc_ta"].mean()
    assert analysed.data.metrics["norm_acc_ta/mean"] == pytest.approx(mean)
    assert {"pairs.csv", "report.html", "figures"} <= {
        one.path for one in client.list_artifacts(analysed.info.run_id)
    }
    for script, name, value in (
        ("train", "test_accuracy", card["accuracy"]["test"]),
        ("analyze", "norm_acc_ta/mean", mean),
    ):
        events = accumulator.EventAccumulator(str(only_run(tmp_path, script) / "tensorboard"))
        events.Reload()
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    assert "verdict/text_summary" in events.Tags()["tensors"]
