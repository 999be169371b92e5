"""A content-addressed cache: whatever was computed once is found again, by any run and any process.

A value is filed under the SHA-256 of its key, and the key holds everything the value depends on (hashes of
checkpoints and data, every option, a version of the algorithm). So an entry never goes stale: changed input
is another key. Writes go to a temporary file that is renamed over the final one, hence a reader sees a whole
entry or none, also when two processes compute the same value or one is killed.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeability.errors import UserError
from mergeability.files import atomic_file, canonical_json, digest, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mergeability.tensor_file import TensorFile

logger = logging.getLogger(__name__)


class Store:
    """Keep computed tensors and records on disk, keyed by content.

    Args:
        root: folder of the store; `None` keeps everything in memory, for notebooks and tests.

    Attributes:
        computed: how many entries of each kind this process computed.
        found: how many entries of each kind it found ready.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = None if root is None else Path(root)
        self.computed: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._memory: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def path(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path:
        """Say where an entry lies: `<root>/<kind>/<2 digits>/<64 digits><suffix>`.

        Raises:
            UserError: the store lives in memory.
        """
        if self.root is None:
            raise UserError("A store in memory has no files: give it a folder.")
        name = digest(key)
        return self.root / kind / name[:2] / f"{name}{suffix}"

    def arrays(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, "Tensor"]]
    ) -> dict[str, "Tensor"]:
        """Return the named tensors filed under `key`, computing and keeping them the first time."""
        if self.root is None:
            return dict(self._remember(kind, key, compute))
        path = self.path(kind, key, ".safetensors")
        file = self._tensor_file(path)
        if file is not None:
            self._count(self.found, kind)
            return {name: file.tensor(name) for name in file.entries}
        from mergeability.tensor_file import write_tensors

        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        self._count(self.computed, kind)
        with atomic_file(path) as temporary:
            write_tensors(tensors, temporary, {"key": canonical_json(key)})
        return tensors

    def ensure(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, "Tensor"]]
    ) -> None:
        """See to it that tensors are filed under `key`, without reading those that are there."""
        if self.root is not None and self._tensor_file(self.path(kind, key, ".safetensors")) is not None:
            self._count(self.found, kind)
        else:
            self.arrays(kind, key, compute)

    def ensure_written(self, kind: str, key: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """See to it that a file of tensors is filed under `key`; `write` makes it at a path, piece by piece.

        Raises:
            UserError: the store lives in memory, or the disk is full.
        """
        path = self.path(kind, key, ".safetensors")
        if self._tensor_file(path) is not None:
            self._count(self.found, kind)
            return
        with atomic_file(path) as temporary:
            write(temporary)
        self._count(self.computed, kind)

    def read(self, kind: str, key: Mapping[str, Any]) -> dict[str, "Tensor"]:
        """Read the tensors that `ensure` has seen to.

        Raises:
            UserError: nothing is filed under `key`, or it is damaged.
        """
        if self.root is None:
            return dict(self._memory[kind, digest(key)])
        from mergeability.tensor_file import TensorFile

        file = TensorFile(self.path(kind, key, ".safetensors"))
        return {name: file.tensor(name) for name in file.entries}

    def file(self, kind: str, key: Mapping[str, Any]) -> "TensorFile":
        """Open the file of tensors that `ensure` has seen to.

        Raises:
            UserError: nothing is filed under `key`, it is damaged, or the store lives in memory.
        """
        from mergeability.tensor_file import TensorFile

        return TensorFile(self.path(kind, key, ".safetensors"))

    def reader(self, kind: str, key: Mapping[str, Any]) -> Callable[[str, int, int], "np.ndarray"]:
        """Return a function (name, start, stop) that reads a range of one flattened tensor of an entry, as float32.

        Raises:
            UserError: nothing is filed under `key`, or it is damaged.
        """
        if self.root is None:
            tensors = self._memory[kind, digest(key)]
            return lambda name, start, stop: tensors[name].flatten()[start:stop].float().numpy()
        from mergeability.tensor_file import TensorFile

        return TensorFile(self.path(kind, key, ".safetensors")).read_float32

    def _tensor_file(self, path: Path) -> "TensorFile | None":
        """Open an entry; None where there is none, or a damaged one."""
        if not path.exists():
            return None
        from mergeability.tensor_file import TensorFile

        try:
            return TensorFile(path)
        except UserError:
            # Cannot come from a killed writer (renames are atomic), only from a damaged disk or a hand edit.
            logger.warning("Damaged entry %s: computing it again.", path)
            return None

    def record(
        self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the JSON-able record filed under `key`, computing and keeping it the first time."""
        if self.root is None:
            return dict(self._remember(kind, key, compute))
        path = self.path(kind, key, ".json")
        if path.exists():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))["value"]
            except (ValueError, KeyError, TypeError):
                # Not JSON, not even text, or JSON of something else.
                logger.warning("Damaged entry %s: computing it again.", path)
            else:
                self._count(self.found, kind)
                return value
        value = dict(compute())
        self._count(self.computed, kind)
        write_text(path, json.dumps({"key": key, "value": value}, indent=1, allow_nan=False))
        return value

    def _remember(self, kind: str, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> Any:
        place = (kind, digest(key))
        if place in self._memory:
            self._count(self.found, kind)
        else:
            self._memory[place] = dict(compute())
            self._count(self.computed, kind)
        return self._memory[place]

    def _count(self, counter: Counter[str], kind: str) -> None:
        # Worker threads share a store, and `+= 1` is two steps.
        with self._lock:
            counter[kind] += 1
