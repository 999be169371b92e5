"""Manage the folder of a store, which several processes may use at the same time.

A killed process leaves only a temporary file, because the system releases its locks.
"""

import atexit
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mergeability.errors import UserError
from mergeability.files import LEFT_OVER, lock, saying_what_cannot_be_written
from mergeability.store.entries import DamagedError, checked_json, sealed_json

logger = logging.getLogger(__name__)

_FORMAT = 2
# Folders from which this process has removed left-over files.
_SWEPT: set[Path] = set()


class StoreFolder:
    """Manage the files in the folder of a store.

    `store.json` contains the time until which entries without a checksum are accepted, because version 0.1.0 wrote
    none.

    Attributes:
        root: the folder.
        adopts_before: that moment, in nanoseconds of a file's time.
    """

    def __init__(self, root: Path) -> None:
        """Open the folder, which need not exist, and remove left-over files of killed processes.

        Raises:
            UserError: the folder was created by a later version.
        """
        self.root = root
        self._marker, self._temporary = root / "store.json", root / ".partial"
        self._sweep()
        self.adopts_before = self._adoption()

    @contextlib.contextmanager
    def temporary(self, path: Path) -> Iterator[Path]:
        """Yield an empty temporary file that exists during the block and that other processes do not delete.

        Args:
            path: final path, for messages.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        with saying_what_cannot_be_written(path):
            self._temporary.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._temporary, suffix=".partial")
            temporary = Path(name)
            with open(handle, "rb") as file:  # noqa: PTH123
                try:
                    if not lock(file.fileno(), wait=False):
                        # Systems without locks (Windows) may not allow removing or renaming open files.
                        file.close()
                    yield temporary
                finally:
                    temporary.unlink(missing_ok=True)

    def witness(self) -> str | None:
        """Create a file by which other processes can check that they see the same folder.

        The file exists until this process ends.

        Returns:
            Its path in the folder; None if the folder is not writable.
        """
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._temporary, suffix=".partial")
        except OSError:
            return None
        # Locked, so that other processes do not remove it as a left-over file.
        lock(handle, wait=False)
        atexit.register(Path(name).unlink, missing_ok=True)
        return Path(name).relative_to(self.root).as_posix()

    def publish(self, temporary: Path, path: Path, is_whole: Callable[[], bool]) -> bool:
        """Move a finished temporary file to its final path unless another process has already created the entry.

        Args:
            temporary: from `temporary`.
            path: final path.
            is_whole: returns whether an existing file is usable; otherwise it is replaced.

        Returns:
            Whether the file was moved; otherwise the path contains another process's file.
        """
        # Written before the first entry, because a folder with entries but no marker counts as an old one.
        if not self._marker.exists():
            self._mark(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp creates files that only their owner can read, but results are meant to be shared.
        temporary.chmod(0o644)
        # A hard link fails if the name exists, so exactly one of several writers wins without a lock.
        return _linked(temporary, path) or self.replace(temporary, path, lambda: not is_whole())

    def replace(self, temporary: Path, path: Path, should: Callable[[], bool]) -> bool:
        """Replace an entry by a finished temporary file if the entry is unchanged; return whether this succeeded."""
        with self._locked():
            # Check again under the lock, because another process may have replaced it.
            if not should():
                return False
            temporary.chmod(0o644)
            temporary.replace(path)
            return True

    def _adoption(self) -> int:
        try:
            return self._read_marker()
        except FileNotFoundError:
            return self._begin()
        except DamagedError as error:
            logger.warning(
                "The file %s is damaged (%s). As a precaution, entries without a checksum are not used.",
                self._marker,
                error.reason,
            )
            with contextlib.suppress(UserError):
                self._mark(0)
        except OSError:
            # The write that follows will report the error.
            pass
        return 0

    def _read_marker(self) -> int:
        fields = checked_json(self._marker, self._marker.read_bytes())
        if fields.get("format", _FORMAT) != _FORMAT:
            raise UserError(
                f"{self.root} has format {fields['format']}, but this version reads format {_FORMAT}. "
                "Update mergeability, or set paths.store to another folder."
            )
        # The format is checked first, so that a later version with other fields gives the clearer message.
        if set(fields) != {"checksum", "format", "adopts_before_ns"}:
            raise DamagedError(self._marker, "the creation time is missing")
        return fields["adopts_before_ns"]

    def _begin(self) -> int:
        """Mark a folder that already has entries; a new one is marked with its first entry."""
        if not self._has_entries():
            return 0
        for path in self.root.glob("[!.]*/*/.*.partial"):
            _remove_left_over(path)
        try:
            self._mark(None)
            return self._read_marker()
        except (UserError, OSError):
            # The folder is read-only.
            return time.time_ns()

    def _has_entries(self) -> bool:
        if not self.root.is_dir():
            return False
        return any(path.is_dir() and not path.name.startswith(".") for path in self.root.iterdir())

    def _mark(self, adopts_before: int | None) -> None:
        """Write the marker; None stands for the current time of the file system's clock."""
        with self.temporary(self._marker) as temporary:
            if adopts_before is None:
                # Taken from a file, because the clock of a network file system may differ from this machine's.
                adopts_before = temporary.stat().st_mtime_ns
            temporary.write_bytes(sealed_json({"format": _FORMAT, "adopts_before_ns": adopts_before}))
            temporary.chmod(0o644)
            if not _linked(temporary, self._marker):
                self.replace(temporary, self._marker, lambda: not self._is_marked())

    def _is_marked(self) -> bool:
        try:
            self._read_marker()
        except (DamagedError, OSError):
            return False
        return True

    def _sweep(self) -> None:
        """Remove left-over files of killed processes, once per process."""
        if self.root.absolute() not in _SWEPT:
            _SWEPT.add(self.root.absolute())
            for path in self._temporary.glob("*.partial"):
                _remove_left_over(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Prevent other processes and threads from replacing files of this folder, if the system has locks."""
        with contextlib.ExitStack() as stack:
            # Continue without a lock; if the folder is not writable, the write itself reports it.
            with contextlib.suppress(OSError):
                lock(stack.enter_context(_opened(self.root / ".lock")).fileno(), wait=True)
            yield


def _opened(path: Path) -> BinaryIO:
    """Open a lock file, which may belong to another user: read access suffices for locking."""
    try:
        return path.open("ab")
    except PermissionError:
        return path.open("rb")


def _linked(temporary: Path, path: Path) -> bool:
    """Hard-link a file to its final name unless the name exists; False also if hard links are unsupported."""
    try:
        os.link(temporary, path)
    except OSError:
        return False
    return True


def _remove_left_over(path: Path) -> None:
    """Remove a temporary file if it is old and not locked."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        age = time.time() - os.fstat(file.fileno()).st_mtime
        if age > LEFT_OVER and lock(file.fileno(), wait=False):
            path.unlink()
