"""Record how this command was started, so that messages suggest commands in the same form.

Messages, help and logs are written with `python train.py` and `python analyze.py`. Someone who typed
`mergeability train` has no such file, so the commands write `mergeability train` in their place.
"""

import os
import re

# Inherited by the worker processes of a sweep.
_VARIABLE = "MERGEABILITY_COMMAND"
_SCRIPT = re.compile(r"(?:python )?\b(train|analyze)\.py\b")
_DASHBOARD = "python -m mergeability.commands.dashboard"


def started_as(command: str | None) -> None:
    """Record the command that the user typed, such as `mergeability`, or None for `train.py` and `analyze.py`."""
    if command is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = command


def as_typed(text: str) -> str:
    """Replace script names, such as `train.py`, in a message by the command that the user typed.

    >>> started_as("mergeability")
    >>> print(as_typed("Train it: python train.py task=svhn"))
    Train it: mergeability train task=svhn
    >>> started_as(None)
    """
    command = os.environ.get(_VARIABLE)
    if not command:
        return text
    return _SCRIPT.sub(rf"{command} \1", text).replace(_DASHBOARD, f"{command} dashboard")
