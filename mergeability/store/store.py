"""Cache computed values under a hash of their key, for all runs and processes.

A value is stored under the SHA-256 of its key, which contains everything that determines the value (hashes of
checkpoints and data, every option, a version of the algorithm). So entries never become stale: changed inputs
give another key. Files are written under a temporary name and then renamed, unless another process was first, so
readers see complete entries only. Each entry is checked when a process first
uses it (`store.checked_entries`), and a damaged one is computed again.
"""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.store.checked_entries import CheckedEntries
from mergeability.store.entries import RecordEntry, StoreEntry, TensorEntry, hash_without_seal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mergeability.weights.safetensors_file import TensorFile


@dataclass
class Made:
    """Hold the entries computed during `collecting`, until they are added to another store.

    Attributes:
        computed: number of computed entries of each kind.
        found: number of entries of each kind that were found.
        files: bytes of entries by path in the folder; only for a store that does not share the folder.
        memory: entries of a store in memory.
    """

    computed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    memory: dict[tuple[str, str], Any] = field(default_factory=dict)


class Store:
    """Cache computed tensors and records on disk, under a hash of all inputs on which they depend.

    Args:
        root: folder of the store; None keeps everything in memory, for notebooks and tests.

    Attributes:
        root: folder of the store; None if it is in memory.
        computed: kind → number of entries that this process computed.
        found: kind → number of entries that were already in the store.

    Examples:
        >>> from mergeability import Store
        >>> store = Store()
        >>> for _ in range(2):
        ...     value = store.record("square", {"of": 3, "version": 1}, lambda: {"value": 3**2})
        >>> value, store.computed, store.found
        ({'value': 9}, Counter({'square': 1}), Counter({'square': 1}))
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = None if root is None else Path(root)
        self.computed: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._memory: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        # Entries added during `collecting`, and a file by which a shared folder is recognised.
        self._filed: list[Path | tuple[str, str]] | None = None
        self._witness: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Pickled for a worker process, which counts separately.
        if self.root is not None and self._witness is None:
            self._witness = self._entries.folder.witness()
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_entries")}
        return {**kept, "computed": Counter(), "found": Counter(), "_filed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @staticmethod
    def content_hash(path: Path) -> str:
        """Return the SHA-256 hash, as 64 hexadecimal digits, of an entry's file without the stored checksum."""
        return hash_without_seal(path)

    def path(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path:
        """Return the path of an entry: `<root>/<kind>/<2 digits>/<64 digits><suffix>`.

        Raises:
            UserError: the store is in memory.
        """
        if self.root is None:
            raise UserError("A store in memory has no files. Create the store with a folder.")
        name = digest(key)
        return self.root / kind / name[:2] / f"{name}{suffix}"

    def arrays(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, "Tensor"]]
    ) -> dict[str, "Tensor"]:
        """Return the named tensors stored under `key`; compute and store them if they are missing."""
        if self.root is None:
            return dict(self._remember(kind, key, compute))
        if self._found(self._tensors(kind, key)):
            return self.read(kind, key)
        return self._compute(kind, key, compute) or self.read(kind, key)

    def ensure(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, "Tensor"]]
    ) -> None:
        """Compute and store tensors under `key` if they are missing, without reading existing ones."""
        if self.root is None:
            self._remember(kind, key, compute)
        elif not self._found(self._tensors(kind, key)):
            self._compute(kind, key, compute)

    def ensure_written(self, kind: str, key: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Store a file of tensors under `key` if it is missing; the function `write` creates the file in pieces.

        Raises:
            UserError: the store is in memory, or the disk is full.
        """
        entry = self._tensors(kind, key)
        if not self._found(entry):
            self._file(entry, write)
            self._count(self.computed, kind)

    def read(self, kind: str, key: Mapping[str, Any]) -> dict[str, "Tensor"]:
        """Read the tensors stored by `ensure`.

        Raises:
            UserError: nothing is stored under `key`, or it is damaged.
        """
        if self.root is None:
            return dict(self._memory[kind, digest(key)])
        file = self.file(kind, key)
        return {name: file.tensor(name) for name in file.entries}

    def file(self, kind: str, key: Mapping[str, Any]) -> "TensorFile":
        """Open the file of tensors stored by `ensure`.

        Raises:
            UserError: nothing is stored under `key`, it is damaged, or the store is in memory.
        """
        from mergeability.weights.safetensors_file import TensorFile

        entry = self._tensors(kind, key)
        try:
            # A damaged entry is never returned: it is computed again and replaced.
            self._entries.check(entry)
        except OSError as error:
            raise UserError(
                f"Cannot read {entry.path}: {error.strerror or error}. Start the command again."
            ) from error
        return TensorFile(entry.path)

    def reader(self, kind: str, key: Mapping[str, Any]) -> Callable[[str, int, int], "np.ndarray"]:
        """Return a function of (name, start, stop) that reads part of a flattened tensor of an entry, as float32.

        Raises:
            UserError: nothing is stored under `key`, or it is damaged.
        """
        if self.root is None:
            tensors = self._memory[kind, digest(key)]
            return lambda name, start, stop: tensors[name].flatten()[start:stop].float().numpy()
        return self.file(kind, key).read_float32

    def record(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the JSON-compatible record stored under `key`; compute and store it if it is missing.

        Args:
            kind: name of this kind of entry, a folder of the store.
            key: JSON-able record of everything that the value depends on.
            compute: returns the value, without NaN or Inf.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        found = self.found_record(kind, key)
        return self.add_record(kind, key, compute()) if found is None else found

    def found_record(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the record stored under `key`, or None if it is missing.

        With `add_record`, for values that are computed for several keys at once.
        """
        if self.root is None:
            place = (kind, digest(key))
            if place not in self._memory:
                return None
            self._count(self.found, kind)
            return dict(self._memory[place])
        entry = RecordEntry(self.path(kind, key, RecordEntry.suffix), kind, key)
        return entry.value() if self._found(entry) else None

    def add_record(self, kind: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
        """Store a computed record and return it; if another process was first, return the record of that process.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if self.root is None:
            return dict(self._remember(kind, key, lambda: value))
        entry = RecordEntry(self.path(kind, key, RecordEntry.suffix), kind, key)
        self._count(self.computed, kind)
        text = json.dumps({"key": key, "value": dict(value)}, allow_nan=False)
        filed = self._file(entry, lambda path: path.write_text(text, encoding="utf-8"))
        return dict(value) if filed else entry.value()

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Made]:
        """Collect the entries computed during the block, so that they can be sent to the parent process."""
        made, self._filed = Made(), []
        computed, found = self.computed.copy(), self.found.copy()
        try:
            yield made
        finally:
            filed, self._filed = self._filed, None
        made.computed, made.found = self.computed - computed, self.found - found
        if self.root is None:
            made.memory = {place: self._memory[place] for place in filed if isinstance(place, tuple)}
        elif self._witness is not None and not (self.root / self._witness).exists():
            files = [path for path in filed if isinstance(path, Path)]
            made.files = {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

    def take(self, made: Made) -> None:
        """Add the entries that a worker computed, and count them as computed."""
        self.computed.update(made.computed)
        self.found.update(made.found)
        self._memory.update(made.memory)
        for name, content in made.files.items():
            assert self.root is not None
            path = self.root / name
            with self._entries.folder.temporary(path) as temporary:
                temporary.write_bytes(content)
                # Like every entry, it is checked on first use.
                self._entries.folder.publish(temporary, path, lambda: True)

    @cached_property
    def _entries(self) -> CheckedEntries:
        assert self.root is not None
        return CheckedEntries(self.root)

    def _tensors(self, kind: str, key: Mapping[str, Any]) -> TensorEntry:
        return TensorEntry(self.path(kind, key, TensorEntry.suffix), kind, key)

    def _compute(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, "Tensor"]]
    ) -> dict[str, "Tensor"] | None:
        """Compute and store tensors; None if another process was first, whose tensors are then used."""
        from mergeability.weights.safetensors_file import write_tensors

        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        self._count(self.computed, kind)
        entry = self._tensors(kind, key)
        filed = self._file(entry, lambda path: write_tensors(tensors, path, entry.metadata))
        return tensors if filed else None

    def _found(self, entry: StoreEntry) -> bool:
        """Return whether an entry is stored, and count it if so."""
        found = self._entries.contains(entry)
        if found:
            self._count(self.found, entry.kind)
        return found

    def _file(self, entry: StoreEntry, write: Callable[[Path], Any]) -> bool:
        """Store a file written by `write` unless another process was first; return whether it was stored."""
        filed = self._entries.add(entry, write)
        if self._filed is not None:
            self._filed.append(entry.path)
        return filed

    def _remember(self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> Any:
        place = (kind, digest(key))
        if place in self._memory:
            self._count(self.found, kind)
        else:
            self._memory[place] = dict(compute())
            self._count(self.computed, kind)
            if self._filed is not None:
                self._filed.append(place)
        return self._memory[place]

    def _count(self, counter: Counter[str], kind: str) -> None:
        # Worker threads share a store, and `+= 1` is not atomic.
        with self._lock:
            counter[kind] += 1
