"""Tracking never ends the work: Weights & Biases without an account or a network, loggers that fail, odd names."""

import logging

import lightning.pytorch.loggers as lightning_loggers
import pandas as pd
import plotly.graph_objects as go
import pytest
import wandb
import wandb.errors

from mergeability.pipeline.result import Analysis
from mergeability.prediction.validation.evaluate import PredictionResult
from mergeability.reporting import logged_names as names
from mergeability.reporting.tracking import (
    Guarded,
    log_analysis,
    log_summary,
    log_training,
    model_artifact_name,
    open_run,
    summary_metrics,
    tracked_progress,
    wandb_logger,
    wandb_mode,
    weights_and_biases,
)
from mergeability.reporting.tracking.figures import figures_of, with_menu
from mergeability.reporting.tracking.records import _plain, key
from mergeability.reporting.tracking.weights_and_biases import _failed


@pytest.fixture(autouse=True)
def nothing_failed_before():
    _failed.clear()
    yield
    _failed.clear()


@pytest.mark.parametrize(
    ("environment", "credentials", "mode"),
    [
        ({}, None, "offline"),
        ({}, "machine api.wandb.ai login user password key\n", "online"),
        ({}, "machine example.org login user password key\n", "offline"),
        ({}, "this is no netrc file at all", "offline"),
        ({"WANDB_API_KEY": "key"}, None, "online"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "disabled"}, None, "disabled"),
        ({"WANDB_MODE": ""}, None, "offline"),
    ],
)
def test_mode(tmp_path, environment, credentials, mode):
    if credentials is not None:
        (tmp_path / ".netrc").write_text(credentials)
        (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode(environment, tmp_path) == mode


def test_a_key_that_is_refused_is_one_sentence_and_the_run_goes_on_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with open_run(tmp_path, project="mergeability") as run:
        run.log({"value": 1})
    (warning,) = [one.getMessage() for one in caplog.records if "Weights & Biases" in one.getMessage()]
    assert "WANDB_API_KEY invalid" in warning
    assert "logged offline" in warning
    assert "\n" not in warning
    assert run.offline
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(run.id)


@pytest.fixture
def inits(monkeypatch):
    """Record how `wandb.init` is called, and let each mode answer as it is told to."""
    init, asked, answers = wandb.init, [], {}

    def told(**options):
        asked.append((options["mode"], options["settings"].init_timeout))
        if options["mode"] in answers:
            raise answers[options["mode"]]
        return init(**options)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", told)
    return asked, answers


@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.CommError("Timed out"),
        wandb.errors.UsageError("quota\nexceeded."),
        OSError(28, "No space left on device"),
        ValueError("mode"),
    ],
)
def test_without_an_answer_the_run_goes_on_offline(tmp_path, inits, caplog, error):
    asked, answers = inits
    answers["online"] = error
    with open_run(tmp_path, project="mergeability"):
        pass
    assert [mode for mode, _ in asked] == ["online", "offline"]
    assert asked[0][1] <= 20
    with open_run(tmp_path, project="mergeability"):
        pass
    assert [mode for mode, _ in asked] == ["online", "offline", "offline"], "each job of a sweep would wait"
    assert str(error).split("\n")[0] in caplog.text


def test_where_not_even_files_can_be_written_the_work_goes_on_without(tmp_path, inits, caplog):
    inits[1].update(
        online=wandb.errors.CommError("Timed out"), offline=OSError(28, "No space left on device")
    )
    assert wandb_logger(str(tmp_path)) is None
    assert "not used in this run: [Errno 28] No space left on device" in caplog.text


def test_a_run_that_is_resumed_with_other_settings_names_them(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = wandb_logger(str(tmp_path), name="x" * 300, tags=["t" * 100, None])
    made.log_hyperparams({"seed": 0, "reg": {"lambda": 1}})
    assert "other settings" not in caplog.text
    made.log_hyperparams({"seed": 0, "reg": {"lambda": 2}})
    made.end(failed=False)
    assert "other settings, which are overwritten: reg. Remove logger.wandb.id" in caplog.text


class Failing(lightning_loggers.Logger):
    """A logger whose every call raises the same exception."""

    name, version, asked = "failing", 0, 0

    def __init__(self, error: BaseException):
        super().__init__()
        self.error = error

    def _fail(self, *_arguments, **_options):
        self.asked += 1
        raise self.error

    log_metrics = log_hyperparams = save = finalize = after_save_checkpoint = _fail


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), wandb.errors.CommError("down"), ValueError("*")]
)
def test_a_logger_that_fails_is_named_once_and_left_out(caplog, error):
    inner = Failing(error)
    guarded = Guarded(inner, "comet")
    log_training([guarded], {"seconds": 1.0}, None)
    guarded.log_hyperparams({})
    guarded.finalize("success")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"logger=comet failed and is no longer used in this run: {error}."
    assert inner.asked == 1


def test_a_defect_of_the_package_is_not_taken_for_a_failure_of_tracking():
    with pytest.raises(AssertionError):
        Guarded(Failing(AssertionError()), "csv").log_metrics({})


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("norm_acc_ties/mean", "norm_acc_ties/mean"),
        ("r/loto/acc/a*b:c", "r/loto/acc/a_b_c"),
        ("α=0.3", "α=0.3"),
        ("/", "unnamed"),
        ('"<x>"', "x"),
    ],
)
def test_names_that_services_refuse(name, taken, tmp_path, monkeypatch):
    assert key(name) == taken
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_run(tmp_path) as run:
        run.define_metric(key(name), summary="max")
        run.log({key(name): 1.0})


def test_the_artifact_of_a_model_is_named_by_task_and_content():
    assert model_artifact_name("my task/ä", "0123456789abcdef") == "my_task_-0123456789ab"
    assert len(model_artifact_name("x" * 500, "0" * 64)) <= 128


def test_means_are_over_pairs_and_say_which_direction_is_better():
    pairs = pd.DataFrame(
        {
            "task_a": ["a", "a"],
            "task_b": ["b", "c"],
            "norm_acc_ties": [0.5, 0.75],
            "acc_ties": [0.25, None],
            "metric": [1, 2],
        }
    )
    models = pd.DataFrame({"finetuned_accuracy": [0.5, 1.0]}, index=["a", "b"])
    found = summary_metrics(
        Analysis("t", pairs, ["metric"], ["ties"], models=models, run={"seconds": {"a": 1.5, "b": 2}})
    )
    assert found == {
        "norm_acc_ties/mean": (0.625, "max"),
        "norm_acc_ties/worst": (0.5, "max"),
        "acc_ties/mean": (0.25, "max"),
        "acc_ties/worst": (0.25, "max"),
        "finetuned_accuracy/mean": (0.75, "max"),
        "seconds": (3.5, "min"),
    }


def test_the_progress_of_a_loop_is_logged_and_its_items_are_unchanged(tmp_path):
    class Keeping(Failing):
        def log_metrics(self, metrics, step=None):
            self.kept = metrics

    inner = Keeping(ValueError())
    csv = Keeping(ValueError())
    csv.__class__ = type("Csv", (Keeping, lightning_loggers.CSVLogger), {})
    followed = tracked_progress(
        lambda items, _description, _total: items, [Guarded(inner, "x"), Guarded(csv, "csv")]
    )
    assert list(followed(range(5), "merging pairs", 5)) == [0, 1, 2, 3, 4]
    assert inner.kept == {"progress/merging pairs": 1.0}
    assert not hasattr(csv, "kept")


def test_a_menu_shows_one_figure_at_a_time():
    both = with_menu(
        {"first": go.Figure(go.Bar(y=[1])), "second_one": go.Figure([go.Bar(y=[2]), go.Bar(y=[3])])}
    )
    assert [trace.visible for trace in both.data] == [True, False, False]
    buttons = both.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["first", "second one"]
    assert buttons[1].args[0]["visible"] == [False, True, True]
    assert with_menu({}) is None


def test_the_name_of_an_experiment_is_passed_on_until_it_fails(caplog):
    class Named(Failing):
        @property
        def name(self):
            return "mine" if self.asked == 0 else self._fail()

    inner = Named(OSError(28, "No space left on device"))
    guarded = Guarded(inner, "comet")
    assert guarded.name == "mine"
    inner.asked = 1
    assert guarded.name is None
    assert guarded.lost
    assert "logger=comet failed" in caplog.text


def test_a_summary_goes_to_mlflow_with_its_tables(tmp_path):
    logged = []

    class Client:
        def log_artifact(self, run, path):
            logged.append((run, path))

    class Mlflow(lightning_loggers.MLFlowLogger):
        experiment, run_id = Client(), "r1"

        def __init__(self):
            pass

    for name in ("summary.html", "methods.csv", "agreement.csv", "notes.txt"):
        (tmp_path / name).write_text("")
    log_summary([Guarded(Mlflow(), "mlflow")], tmp_path / "summary.html")
    assert logged == [
        ("r1", str(tmp_path / name)) for name in ("summary.html", "agreement.csv", "methods.csv")
    ]


def test_only_the_first_of_several_processes_opens_and_ends_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_and_biases.rank_zero_only, "rank", 1)
    monkeypatch.setattr(weights_and_biases, "open_run", pytest.fail)
    made = wandb_logger(str(tmp_path), log_model=True)
    assert made.keeps_weights
    assert made.end(failed=False) is None


def test_cells_of_one_column_are_texts_or_missing():
    frame = pd.DataFrame({"mixed": pd.Series([1, "a", None, 2.5], dtype=object), "number": [1.5, 2, 3, 4]})
    plain = _plain(frame)
    assert plain["mixed"].drop(2).tolist() == ["1", "a", "2.5"]
    assert pd.isna(plain["mixed"][2])
    assert plain["number"].tolist() == [1.5, 2, 3, 4]
    assert frame["mixed"].tolist() == [1, "a", None, 2.5]


@pytest.mark.parametrize("there", [("model.safetensors", "head.safetensors", "card.json"), ("card.json",)])
def test_weights_are_logged_with_the_files_that_are_there(tmp_path, monkeypatch, there):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in there:
        (tmp_path / name).write_text("x")
    artifacts = []
    made = wandb_logger(str(tmp_path / "logs"), mode="disabled", log_model=True)
    monkeypatch.setattr(type(made.experiment), "log_artifact", lambda _run, one: artifacts.append(one))
    log_training([Guarded(made, "wandb")], {"task": "digits", "sha256": "0123456789abcdef"}, tmp_path)
    assert [one.type for one in artifacts] == ["model", "weights"]
    assert sorted(artifacts[1].manifest.entries) == sorted(there)


def test_methods_without_predictions_of_their_best_predictor_have_no_figure():
    records = [
        {"method": method, "predictor": "ridge", "protocol": "loto", "situation": "known partner",
         "target": "norm_acc", "r_mean": 0.5, "r_std": 0.1, "rho_mean": 0.5, "train_r_mean": 0.6, "pooled_r": 0.5,
         "mae": 0.1, "r2_over_training_mean": 0.2, "n_folds": 2, "n_pairs": 1, "n_undefined": 0} for method in ("ties", "tsv")
    ]  # fmt: skip
    keys = {"protocol": "loto", "method": "ties", "target": "norm_acc", "predictor": "ridge", "held_out": "a"}
    prediction = PredictionResult(
        records,
        coefficients=pd.DataFrame([{**keys, "metric": "m", "coefficient": 0.5}]),
        predictions=pd.DataFrame([{**keys, "task_a": "a", "task_b": "b", "measured": 0.5, "predicted": 0.6}]),
    )
    pairs = pd.DataFrame(
        [("a", "b", 0.5, 0.6)], columns=["task_a", "task_b", "norm_acc_ties", "norm_acc_tsv"]
    )
    found = figures_of(Analysis("t", pairs, ["m"], ["ties", "tsv"], prediction=prediction))
    assert len(found[names.HEAT_MAP].layout.updatemenus) == 1
    for name in (names.PREDICTED, names.COEFFICIENTS):
        assert len(found[name].layout.updatemenus) == 0


def test_a_run_with_a_network_uses_the_models_that_were_analysed(tmp_path, monkeypatch):
    made = wandb_logger(str(tmp_path / "logs"), mode="disabled")
    kind, used = type(made.experiment), []
    monkeypatch.setattr(kind, "offline", property(lambda _run: False))
    monkeypatch.setattr(kind, "use_artifact", lambda _run, one: used.append((one.type, one.name)))
    (tmp_path / "report.html").write_text("a report")
    pairs = pd.DataFrame([("a", "b", 0.5)], columns=["task_a", "task_b", "norm_acc_ties"])
    hashes = {"a": "0123456789abcdef", "b": "fedcba9876543210"}
    guarded = Guarded(made, "wandb")
    log_analysis(
        [guarded],
        Analysis("t", pairs, [], ["ties"], run={"checkpoint_sha256": hashes}),
        tmp_path / "report.html",
    )
    assert not guarded.lost
    assert used == [("model", model_artifact_name(task, sha256)) for task, sha256 in hashes.items()]
