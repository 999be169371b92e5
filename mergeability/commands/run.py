"""Run a Hydra entry point: errors in one sentence, an exit code that tells the truth."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mergeability.commands.repeated_keys import refuse_repeated_keys
from mergeability.commands.sweep import Ledger, close_sweep, user_error
from mergeability.context import cores
from mergeability.errors import UserError
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
    code = 0
    try:
        refuse_repeated_keys(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What is finished is kept: start the same command again.\n")
        code = 130
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if verbose:
            traceback.print_exception(error)
        sys.stderr.write(f"Error: {user_error(error) or _without_search_path(error)}\n")
        code = 1
    except ValueError as error:
        if verbose or not _raised_by_hydra(error):
            raise
        sys.stderr.write(f"Error: {error}\n")
        code = 1
    finally:
        failed = close_sweep()
    if code or failed or Ledger.summary_failed:
        sys.exit(code or 1)


def prepare() -> None:
    """Choose the number of threads; to be called by a job before it imports anything that computes."""
    choose_threads(_BEGAN, cores())


def _raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra itself refused something, such as `predictor=null`, rather than a job."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals.get("__name__", "").split(".")[0] == "hydra"


def _without_search_path(error: Exception) -> str:
    """Keep what Hydra says about a wrong choice and what there is, not where it looked; name a missing extra."""
    sentence = str(error).split("\nConfig search path")[0].rstrip()
    if "hydra/sweeper/optuna" in sentence:
        return "Searching needs the Optuna sweeper: uv pip install 'mergeability[sweep]'."
    return sentence
