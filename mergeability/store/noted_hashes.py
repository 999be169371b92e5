"""Keep the hashes of unchanged files, so that a file is hashed once and not by every command that reads it."""

from collections.abc import Callable
from pathlib import Path

from mergeability.store.entries import RecordEntry
from mergeability.store.store import Store
from mergeability.weights.file_hashes import file_state


def noted_hash(path: Path, hash_of: Callable[[Path], str], store: Store) -> str:
    """Return the hash of a file; use the stored hash if the file is unchanged.

    Args:
        path: the file.
        hash_of: hashes the file.
        store: where the hash is kept.

    Raises:
        OSError: the file cannot be read.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.store import Store
        >>> from mergeability.store.noted_hashes import noted_hash
        >>> from mergeability.weights.file_hashes import file_hash
        >>> path = tiny_task_vectors().base_checkpoint.path
        >>> noted_hash(path, file_hash, Store()) == file_hash(path)
        True
    """
    state = file_state(path)
    if store.root is None or state is None:
        return hash_of(path)
    # A separate store, so that the counts of the main store include only results.
    notes = Store(store.root)
    return notes.record("file_hash", state, lambda: {"sha256": hash_of(path)})["sha256"]


def is_noted(path: str | Path, store: Store) -> bool:
    """Return whether the hash of a file is stored and the file is unchanged; the stored hash is not verified.

    Examples:
        >>> from mergeability.store import Store
        >>> from mergeability.store.noted_hashes import is_noted
        >>> is_noted("missing.safetensors", Store())
        False
    """
    state = file_state(path)
    if store.root is None or state is None:
        return False
    return store.path("file_hash", state, RecordEntry.suffix).exists()
