"""Weights & Biases: online with an account, offline without one, never a prompt."""

import pytest
import wandb
import wandb.errors

from mergeability.reporting.tracking import open_run, wandb_mode


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
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


def test_without_an_answer_the_run_goes_on_offline(tmp_path, monkeypatch, caplog):
    init, asked = wandb.init, []

    def unreachable(**options):
        asked.append((options["mode"], options["settings"].init_timeout))
        if options["mode"] == "online":
            raise wandb.errors.CommError("Timed out")
        return init(**options)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", unreachable)
    with open_run(tmp_path, project="mergeability"):
        pass
    assert [mode for mode, _ in asked] == ["online", "offline"]
    assert asked[0][1] <= 20
    assert "Timed out" in caplog.text
