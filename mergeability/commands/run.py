"""Run a Hydra entry point: errors in one sentence, an exit code that tells the truth."""

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
from mergeability.commands.repeated_keys import refuse_repeated_keys
from mergeability.commands.search_path import use_own_folders
from mergeability.commands.sweep import close_sweep, user_error
from mergeability.commands.terminal import shown_text
from mergeability.commands.wording import check_overrides, flags_first, known_settings, sentence
from mergeability.context import cores
from mergeability.threads import choose_threads, sample

# Taken while Hydra composes, so that looking at the machine costs no time.
_BEGAN = sample()


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra entry point: errors in one sentence, failed jobs listed, an exit code that tells the truth.

    Hydra is asked for whole exceptions and does not get to print its own version of them, which shows a
    traceback for what a user can cause. Whoever sets HYDRA_FULL_ERROR gets the traceback of everything.
    """
    verbose = bool(os.environ.setdefault("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.captureWarnings(True)
    # A full disk fails to take the log too, which needs no traceback for each line.
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
        sys.stderr.write("\nInterrupted. What is finished is kept: start the same command again.\n")
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
    """Let Hydra add an option whose help is written when it is read, which Python 3.14 refuses as no text."""
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
    """Return a sentence on an error that a user can correct; None for a defect of the package."""
    mistake = user_error(error)
    if mistake is not None:
        return str(mistake)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return sentence(error, known_settings(error))
    return str(error) if isinstance(error, ValueError) and _raised_by_hydra(error) else None


def prepare() -> None:
    """Choose the number of threads; to be called by a job before it imports anything that computes."""
    choose_threads(_BEGAN, cores())


def _raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra itself refused something, such as `predictor=null`, rather than a job."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").split(".")[0] == "hydra"
