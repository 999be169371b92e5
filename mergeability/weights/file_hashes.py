"""Hash files, either on demand or in advance in background threads.

A merge of a few models takes as long for hashing as for importing PyTorch. Hashing releases the interpreter's lock, so
both can run at the same time; therefore PyTorch is not imported here.
"""

import hashlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

# The hash of a file is reused only if the file was at least this many seconds old: time stamps of newer ones are too
# coarse to detect changes.
_SETTLED = 2
_ahead: dict[tuple[tuple[str, int], ...], "Future[str]"] = {}


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 hash of a file's bytes, as 64 hexadecimal digits.

    If the file is being hashed in the background, its hash is waited for.

    Raises:
        OSError: the file cannot be read.

    Examples:
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_task_vectors
        >>> len(checkpoints.file_hash(tiny_task_vectors().base_checkpoint.path))
        64
    """
    if _ahead and (state := file_state(path)) is not None:
        started = _ahead.get(tuple(state.items()))
        # What no thread has begun is hashed here.
        if started is not None and not started.cancel() and started.exception() is None:
            return started.result()
    return _sha256(path)


def hash_ahead(paths: Iterable[str | Path], threads: int) -> None:
    """Start hashing files in the background; `file_hash` then uses the hashes of files that have not changed.

    The threads do not keep the process from ending. Files that cannot be read are skipped: the caller of `file_hash`
    gets the error.

    Args:
        paths: the files, in the order in which their hashes are needed.
        threads: the number of threads.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.weights.file_hashes import file_hash, hash_ahead
        >>> path = tiny_task_vectors().base_checkpoint.path
        >>> hash_ahead([path], threads=2)
        >>> len(file_hash(path))
        64
    """
    queue: SimpleQueue[tuple[Future[str], str | Path]] = SimpleQueue()
    for path in paths:
        state = file_state(path)
        place = None if state is None else tuple(state.items())
        if place is not None and place not in _ahead:
            _ahead[place] = Future()
            queue.put((_ahead[place], path))
    for _ in range(min(threads, queue.qsize())):
        threading.Thread(target=_work, args=(queue,), daemon=True).start()


def file_state(path: str | Path) -> dict[str, int] | None:
    """Return what identifies the content of a file: its device, inode number, size and times.

    Returns:
        None if the file cannot be accessed, or has changed so recently that a further change might not be detected.

    Examples:
        >>> from mergeability.weights.file_hashes import file_state
        >>> file_state("missing.safetensors") is None
        True
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    # Use the change time as well, because copying tools restore the modification time but not the change time.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED * 10**9:
        return None
    return {
        "device": status.st_dev,
        "file": status.st_ino,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "changed": status.st_ctime_ns,
    }


def _work(queue: "SimpleQueue[tuple[Future[str], Any]]") -> None:
    while True:
        try:
            future, path = queue.get_nowait()
        except Empty:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(_sha256(path))
            except OSError as error:
                future.set_exception(error)


def _sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
