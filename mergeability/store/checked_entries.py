"""Add entries to the folder of a store, and check each entry when a process first uses it."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergeability.errors import UserError
from mergeability.store.entries import DamagedError, StoreEntry
from mergeability.store.folder import StoreFolder

logger = logging.getLogger(__name__)

# Signatures of the files that this process has checked.
_CHECKED: set[tuple[Path, int, int, int]] = set()


class CheckedEntries:
    """Hold the entries in a folder; several processes may read and add the same entry at the same time.

    Args:
        root: the folder.

    Attributes:
        folder: the folder, to which files are added without disturbing readers.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.store.checked_entries import CheckedEntries
        >>> from mergeability.store.entries import RecordEntry
        >>> with TemporaryDirectory() as root:
        ...     entries = CheckedEntries(Path(root))
        ...     entry = RecordEntry(Path(root) / "square" / "9.json", "square", {"of": 3})
        ...     before = entries.contains(entry)
        ...     added = entries.add(entry, lambda path: path.write_text('{"key": {"of": 3}, "value": {"is": 9}}'))
        ...     before, added, entries.contains(entry), entry.value()
        (False, True, True, {'is': 9})
    """

    def __init__(self, root: Path) -> None:
        self.folder = StoreFolder(root)

    def contains(self, entry: StoreEntry) -> bool:
        """Return whether a complete entry is stored; a damaged one is reported and treated as missing."""
        try:
            self.check(entry)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (DamagedError, OSError) as error:
            reason = error.reason if isinstance(error, DamagedError) else error.strerror
            logger.warning("Damaged entry %s (%s): computing it again.", entry.path, reason)
            return False
        return True

    def check(self, entry: StoreEntry) -> None:
        """Check an entry the first time that this process uses it.

        Raises:
            DamagedError: it differs from the stored entry.
            OSError: it does not exist or cannot be read.
        """
        state = _state(entry.path)
        if state not in _CHECKED:
            if not self._is_sealed(entry):
                self._adopt(entry)
                state = _state(entry.path)
            _CHECKED.add(state)

    def add(self, entry: StoreEntry, write: Callable[[Path], Any]) -> bool:
        """Store a file written by `write` unless another process was first; return whether it was stored.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        with self.folder.temporary(entry.path) as temporary:
            write(temporary)
            entry.seal(temporary)
            added = self.folder.publish(temporary, entry.path, lambda: self._is_whole(entry))
        _CHECKED.add(_state(entry.path))
        return added

    def _is_sealed(self, entry: StoreEntry) -> bool:
        """Check an entry; return whether it has a checksum. Without one, only old entries are accepted."""
        sealed = entry.check()
        # Newer entries always have a checksum; without one, the file was truncated or written by something else.
        if not sealed and entry.path.stat().st_mtime_ns >= self.folder.adopts_before:
            raise DamagedError(entry.path, "the checksum is missing")
        return sealed

    def _adopt(self, entry: StoreEntry) -> None:
        """Add a checksum to an entry of version 0.1.0; in a read-only folder it is left unchanged."""
        try:
            with self.folder.temporary(entry.path) as temporary:
                # Sealed in a copy, so that readers of the old file are not disturbed.
                shutil.copyfile(entry.path, temporary)
                entry.seal(temporary)
                self.folder.replace(temporary, entry.path, lambda: not self._is_sealed(entry))
        except UserError as error:
            logger.debug("%s stays without a checksum: %s", entry.path, error)

    def _is_whole(self, entry: StoreEntry) -> bool:
        try:
            self._is_sealed(entry)
        except (DamagedError, OSError):
            return False
        return True


def _state(path: Path) -> tuple[Path, int, int, int]:
    """Return a signature that changes whenever a file changes.

    Raises:
        OSError: the file does not exist or is not accessible.
    """
    status = path.stat()
    # The inode changes when a file is replaced, even if size and time are equal.
    return path, status.st_ino, status.st_size, status.st_mtime_ns
