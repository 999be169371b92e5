"""Run a command with Hydra, print each error as one sentence, and set the correct exit code."""

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mergeability.commands.folders import claimed_folders, list_run
from mergeability.commands.launchers import forget_schemas
from mergeability.commands.memory import look_for_garbage_less_often
from mergeability.commands.repeated_keys import refuse_repeated_keys
from mergeability.commands.search_path import use_own_folders
from mergeability.commands.sweep import close_sweep, user_error
from mergeability.commands.terminal import shown_text
from mergeability.commands.wording import check_overrides, flags_first, known_settings, sentence
from mergeability.context import cores
from mergeability.threads import choose_threads, sample

# Measured while Hydra composes the configuration, so that it takes no extra time.
_BEGAN = sample()


def run(main: Callable[[], Any]) -> None:
    """Run a command with Hydra, print each error as one sentence, list failed jobs, and set the correct exit code.

    Hydra is set to raise exceptions instead of printing them, because its output shows a
    traceback even for user errors. If HYDRA_FULL_ERROR is set, all tracebacks are shown.
    """
    verbose = bool(os.environ.setdefault("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.captureWarnings(True)
    # On a full disk logging fails as well; do not print a traceback for every line.
    logging.raiseExceptions = verbose
    sys.argv[1:] = flags_first(sys.argv[1:])
    code, claim = 0, None
    try:
        use_own_folders(sys.argv[1:])
        refuse_repeated_keys(sys.argv[1:])
        check_overrides(sys.argv[1:])
        forget_schemas()
        with claimed_folders() as claim, _lazy_help():
            main()
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nInterrupted. Finished results were saved; start the same command again to continue.\n"
        )
        code = 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError, MemoryError, RuntimeError) as error:
        told = _told(error)
        if verbose and told is not None:
            traceback.print_exception(error)
        if told is None:
            raise
        sys.stderr.write(f"Error: {shown_text(told)}\n")
        code = 1
    finally:
        failed = close_sweep(interrupted=code == 130)
    if claim is not None and not code:
        list_run(claim)
    if code or failed:
        sys.exit(code or 1)


@contextlib.contextmanager
def _lazy_help() -> Iterator[None]:
    """Let Hydra add an option with lazily formatted help, which Python 3.14 rejects because it is not a string."""
    name = "_check_help"
    check = getattr(argparse.ArgumentParser, name, None)
    if check is None:
        yield
        return
    setattr(argparse.ArgumentParser, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(argparse.ArgumentParser, name, check)


def _told(error: Exception) -> str | None:
    """Return the message of an error that a user can correct; None for a bug in the package."""
    mistake = user_error(error)
    if mistake is not None:
        return str(mistake)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return sentence(error, known_settings(error))
    return str(error) if isinstance(error, ValueError) and _raised_by_hydra(error) else None


def prepare() -> None:
    """Set the number of threads; jobs must call this before importing torch or NumPy."""
    look_for_garbage_less_often()
    choose_threads(_BEGAN, cores())


def _raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra itself raised an error, such as for `predictor=null`, rather than a job."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").split(".")[0] == "hydra"
