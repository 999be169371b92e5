"""Weights & Biases: online with an account, offline without one, never a prompt."""

import pytest

from mergeability.reporting.tracking import wandb_mode


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
