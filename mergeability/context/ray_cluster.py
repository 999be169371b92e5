"""Prepare the environment for Ray, and check the connection to a Ray cluster."""

import os
import socket
import subprocess
import sys

from mergeability.errors import UserError, short

# Seconds to wait for the head of a cluster.
_PATIENCE = 20


def prepare_ray() -> None:
    """Set environment variables that the user has not set; call this before importing Ray."""
    # Ray would report its use, and send the working folder to workers where the command is run by uv.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A task without GPUs keeps the CUDA_VISIBLE_DEVICES of its node; unset, Ray warns of this on every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def check_answer(address: str, setting: str, instead: str, patience: float = _PATIENCE) -> None:
    """Check that a Ray cluster responds at an address within a time limit.

    Args:
        address: `auto`, `host:port`, or `ray://host:port`.
        setting: name of the setting with the address, for messages.
        instead: the alternative without a cluster, for messages.
        patience: seconds.

    Raises:
        UserError: no cluster responds, or the address is invalid.
    """
    sentence = f"No Ray cluster answers at {short(address)} ({setting}). Start one with ray start --head, or {instead}."
    if address != "auto":
        host, colon, port = address.rpartition("://")[2].partition(":")
        if not colon:
            raise UserError(f"Expected {setting} to be auto or host:port, got {short(address)}.")
        try:
            socket.create_connection((host, int(port)), timeout=patience / 2).close()
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(sentence) from error
    if address.startswith("ray://"):
        return
    # Ray waits minutes for a server that accepts connections but is not Ray.
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    try:
        answer = subprocess.run(
            [*asked, "--address", address], capture_output=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(sentence) from error
    if answer.returncode:
        raise UserError(sentence)
