"""Assign each run a folder that no other run writes to.

- A folder named after the time belongs to the run that creates it; a run that starts in the same second gets `-2`.
- A folder that is given, such as `hydra.run.dir=outputs/demo`, may hold an earlier run. The new run writes into a
  hidden folder next to it, which takes its place at the end, in one step. If the run fails, the earlier results stay
  as they are, and the files of the failed run are moved to `<folder>.unfinished`.
- Two runs cannot use one folder at the same time.
"""

import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mergeability.commands.terminal import shown_text
from mergeability.errors import UserError
from mergeability.files import (
    can_be_replaced,
    hold_folder,
    link_tree,
    replace_folder,
    sweep_folders,
    write_text,
)

logger = logging.getLogger(__name__)


@dataclass
class _Claim:
    """The folders of the command that runs in this process.

    Attributes:
        shown: the folder as it was given, for messages.
        final: where results belong.
        working: where the run writes until it ends.
        locks: open locks on both folders.
        root: the folder whose runs are listed, and the one of `latest`.
    """

    shown: Path | None = None
    final: Path = Path()
    working: Path = Path()
    locks: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    root: tuple[Path, Path] | None = None


class RunFolders(Callback):
    """Reserve the folder of a run or a sweep before Hydra writes into it."""

    claim = _Claim()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Assign the run a folder that no other run uses."""
        with read_write(config), open_dict(config):
            config.hydra.run.dir = str(_claimed(config, "run"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Assign the sweep a folder that no other sweep uses."""
        folder = _claimed(config, "sweep")
        if folder != Path(config.hydra.sweep.dir):
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = str(folder)
                # The configuration of each job is composed from the overrides.
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(str(folder))}")


def forget_merges() -> None:
    """Delete the merged models that an earlier run left in the current run's folder."""
    shutil.rmtree(run_folder() / "merged", ignore_errors=True)


def run_folder() -> Path:
    """Return the folder that the current job writes to."""
    return Path(HydraConfig.get().runtime.output_dir)


def shown_path(path: Path) -> str:
    """Return the path that a file will have after the run, relative to the working folder."""
    claim = RunFolders.claim
    if claim.shown is not None and path.is_relative_to(claim.working):
        path = claim.final / path.relative_to(claim.working)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextlib.contextmanager
def claimed_folders() -> Iterator[_Claim]:
    """Move the run's folder to its final path when the block ends; on failure, leave its files in a separate folder.

    Yields:
        The folders, known once Hydra has started.

    Raises:
        UserError: the folder cannot be moved.
    """
    claim = RunFolders.claim = _Claim()
    try:
        yield claim
        if claim.working != claim.final:
            _publish(claim)
    finally:
        RunFolders.claim = _Claim()
        with claim.locks:
            if claim.working != claim.final:
                _keep_apart(claim)


def _claimed(config: DictConfig, mode: str) -> Path:
    """Claim the folder that a configuration names; end the command if that is impossible.

    Hydra turns exceptions of callbacks into warnings, so the sentence is written here.
    """
    folder = Path(config.hydra[mode].dir)
    paths = config.get("paths")
    # Values of another type are refused later, in a sentence.
    if paths is not None and isinstance(paths.root, str) and isinstance(paths.runs, str):
        RunFolders.claim.root = (Path(paths.root).absolute(), Path(paths.runs).absolute())
    by_time = "${now:" in str(OmegaConf.to_container(config.hydra[mode], resolve=False))
    try:
        return _new(folder) if by_time else _given(folder, private=mode == "run")
    except OSError as error:
        _refuse(
            f"Cannot make the folder {folder}: {error.strerror or error}. "
            f"Choose another place with hydra.{mode}.dir=… or paths.root=…."
        )
    except UserError as error:
        _refuse(f"{error} Wait until it has ended, or choose another folder with hydra.{mode}.dir=….")


def _new(folder: Path) -> Path:
    """Make a folder that does not exist yet: the one that is asked for, or the first free one of `-2`, `-3`, …."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made, number = folder, 1
    while True:
        try:
            made.mkdir()
        except FileExistsError:
            number += 1
            made = folder.with_name(f"{folder.name}-{number}")
        else:
            claim = RunFolders.claim
            hold_folder(made, claim.locks)
            claim.shown, claim.final, claim.working = made, made.absolute(), made.absolute()
            return made


def _given(folder: Path, *, private: bool) -> Path:
    """Hold a folder that may exist already; return it, or the hidden one in which a new run replaces an earlier one.

    Raises:
        UserError: another run uses it.
        OSError: it cannot be made.
    """
    claim, final = RunFolders.claim, folder.resolve()
    sweep_folders(final)
    final.mkdir(parents=True, exist_ok=True)
    if not hold_folder(final, claim.locks):
        raise UserError(f"{folder} is in use by another run.")
    claim.shown, claim.final, claim.working = folder, final, final
    if not (private and (final / ".hydra").exists() and can_be_replaced(final)):
        return folder
    # Lock it first, because the folder created next is removed or moved at the end in any case.
    claim.working = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial"))
    claim.working.chmod(0o755)
    hold_folder(claim.working, claim.locks)
    # Existing merges are checked before they are reused; merges that this run does not create are removed.
    if (final / "merged").is_dir():
        link_tree(final / "merged", claim.working / "merged")
    return claim.working


def list_run(claim: _Claim) -> None:
    """Add a finished run to the list of all runs and link `latest` to it; a failure is only logged."""
    if claim.root is None:
        return
    from mergeability.reporting.index import record_run

    try:
        record_run(claim.final, *claim.root)
    except (OSError, UserError) as error:
        logger.warning("The list of runs was not updated: %s", error)


def _publish(claim: _Claim) -> None:
    from mergeability.data.doctor import REPORT, SHEET
    from mergeability.reporting.result_files import RESULTS

    hydra = claim.working / ".hydra" / "hydra.yaml"
    if hydra.exists():
        write_text(hydra, hydra.read_text(encoding="utf-8").replace(str(claim.working), str(claim.final)))
    # Remove files of the earlier run, but keep users' files, and W&B runs that may not have been uploaded.
    of_a_run = {*RESULTS, ".hydra", "merged", "csv", REPORT, SHEET}
    try:
        replace_folder(
            claim.working,
            claim.final,
            keep=lambda name: name not in of_a_run and not name.endswith(".log"),
        )
    except OSError as error:
        raise UserError(f"Cannot replace {claim.shown}: {error.strerror or error}.") from error
    # This path now contains the earlier run's folder.
    shutil.rmtree(claim.working, ignore_errors=True)


def _keep_apart(claim: _Claim) -> None:
    """Move the files of a run that has failed, if there are any, next to the folder it was to replace."""
    if not claim.working.exists():
        return
    apart = claim.final.with_name(f"{claim.final.name}.unfinished")
    shutil.rmtree(apart, ignore_errors=True)
    with contextlib.suppress(OSError):
        claim.working.rename(apart)
        sys.stderr.write(
            f"The earlier results in {claim.shown} are unchanged. The files of this run are in {shown_path(apart)}.\n"
        )


def _quoted(value: str) -> str:
    """Quote a value for Hydra's grammar."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Exit with the message of a user error raised in the block; otherwise Hydra would only show a warning."""
    try:
        yield
    except UserError as error:
        _refuse(str(error))


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"Error: {shown_text(sentence)}\n")
    raise SystemExit(1)
