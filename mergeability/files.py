"""Write files and folders atomically, lock them, and compute hashes of values from their canonical JSON."""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeability.errors import UserError

if sys.platform != "win32":
    import fcntl

# Age in seconds after which unlocked temporary files and folders count as left over.
LEFT_OVER = 24 * 60 * 60


def canonical_json(value: Any) -> str:
    """Convert a value to canonical JSON: sorted keys, no spaces, 1.0 as 1."""
    return json.dumps(
        _plain_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain_numbers(value: Any) -> Any:
    """Write whole floats as integers: `lambda=1` and `lambda=1.0` are one setting."""
    if isinstance(value, Mapping):
        return {name: _plain_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(value: Any) -> str:
    """Return the SHA-256 hash of a value's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextlib.contextmanager
def saying_what_cannot_be_written(path: Path) -> Iterator[None]:
    """Convert an OSError raised in the `with` block to a UserError about `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Free some space, or set paths.root to another"
            " place."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` if the block ends without an error.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing half-written remains.
    """
    temporary = None
    with saying_what_cannot_be_written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
            os.close(handle)
            temporary = Path(name)
            yield temporary
            # mkstemp creates files that only their owner can read, but results are meant to be shared.
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that contains an object; return None if the file does not exist.

    Raises:
        UserError: the file exists but does not contain a JSON object.
    """
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise UserError(
            f"Expected a JSON object in {path}, got {type(value).__name__}. Delete the file and repeat the"
            " command that created it."
        )
    return value


def read_json(path: Path, cure: str = "Delete the file and repeat the command that created it.") -> Any:
    """Read a JSON file; return None if it does not exist.

    Args:
        path: the file.
        cure: what to do about a file that is not JSON, for the message.

    Raises:
        UserError: the file exists but cannot be read or is not JSON.
    """
    if not path.is_file():
        return None
    try:
        # From bytes, because editors on Windows begin a file with a byte-order mark.
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). {cure}") from error


def lock(file: int, *, wait: bool) -> bool | None:
    """Lock an open file or folder until it is closed.

    Args:
        file: its descriptor.
        wait: whether to wait for another process that holds the lock.

    Returns:
        True if this process holds the lock, False if another one does, None if the system has no such lock.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty, locked folder in the parent folder of `beside`, and remove it at the end if it still exists.

    Raises:
        OSError: it cannot be made there.
    """
    folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=f".{beside.name}.", suffix=".partial"))
    try:
        # mkdtemp creates folders that only their owner can read, but results are meant to be shared.
        folder.chmod(0o755)
        with contextlib.ExitStack() as held:
            hold_folder(folder, held)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hold_folder(folder: Path, held: contextlib.ExitStack) -> bool:
    """Try to lock a folder until `held` is closed; return False if another process holds the lock.

    On systems without folder locks, the folder counts as locked.
    """
    if sys.platform == "win32":
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    if lock(descriptor, wait=False) is False:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return True


def sweep_folders(beside: Path) -> list[Path]:
    """Remove old temporary folders that killed processes left in the parent folder of `beside`.

    A folder that an interrupted `replace_folder` moved away is moved back.

    Returns:
        The folders that were removed.
    """
    removed = []
    # Names are compared directly, because they may contain special characters of glob patterns.
    for path in list(beside.parent.iterdir()) if beside.parent.is_dir() else ():
        if not path.name.startswith(f".{beside.name}.") or not path.is_dir():
            continue
        if path.name.endswith(".partial.old") and not beside.exists():
            path.rename(beside)
        elif path.name.endswith((".partial", ".partial.old")):
            with contextlib.ExitStack() as held, contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_OVER and hold_folder(path, held):
                    shutil.rmtree(path)
                    removed.append(path)
    return removed


def can_be_replaced(folder: Path) -> bool:
    """Return whether another folder can replace this one.

    It cannot if a disk is mounted there, if it is or holds the working folder of this process, if nothing can be made
    next to it, and on Windows, which does not move folders with open files.
    """
    folder = folder.resolve()
    return (
        sys.platform != "win32"
        and not os.path.ismount(folder)
        and not Path.cwd().is_relative_to(folder)
        and os.access(folder.parent, os.W_OK | os.X_OK)
    )


def replace_folder(new: Path, folder: Path, *, keep: Callable[[str], bool]) -> None:
    """Replace a folder atomically by a finished one, so that readers never see a mixture of both.

    Files of the old folder that are not in the new one are linked into it first, if selected by `keep`. Linux and macOS
    exchange two folders atomically. On other systems the old folder is moved away first: a
    process killed at this moment leaves `folder` missing and the old one next to it.

    Args:
        new: the finished folder, on the disk of `folder`. Afterwards this path contains the old folder, if any.
        folder: the path to replace; need not exist.
        keep: whether a file or folder of the old one, by its name, is kept.

    Raises:
        OSError: the folder cannot be moved: another disk is mounted there, or its parent cannot be written.
    """
    if not folder.exists():
        new.rename(folder)
        return
    for path in folder.iterdir():
        if keep(path.name):
            link_tree(path, new / path.name, move=True)
    if not _exchanged(new, folder):
        aside = new.with_name(f"{new.name}.old")
        folder.rename(aside)
        new.rename(folder)
        aside.rename(new)


def link_tree(source: Path, target: Path, *, move: bool = False) -> None:
    """Hard-link the files of a folder into another folder; do not replace existing files.

    Args:
        source: a file or folder.
        target: its other name, on the same disk.
        move: whether to move a file on a file system without hard links; if not, it is left out there.
    """
    if source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            link_tree(path, target / path.name, move=move)
    elif not os.path.lexists(target):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            if move:
                source.rename(target)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders atomically; return False if the system or file system does not support it."""
    # renameat2(…, RENAME_EXCHANGE) and renamex_np(…, RENAME_SWAP): both flags are 2.
    names, here = (os.fsencode(first), os.fsencode(second)), -100  # AT_FDCWD on Linux
    libc = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        return libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(2)) == 0
    if hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, ctypes.c_uint(2)) == 0
    return False
