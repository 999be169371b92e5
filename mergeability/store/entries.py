"""Define the file formats of cache entries, which contain their kind, key and checksum.

The checksum is the SHA-256 of the file with the 64 digits of the checksum set to zero, so that no byte of the file is
excluded. It is at a fixed position: first in a record, first in the metadata of a file of tensors. Files written
without it, by version 0.1.0 or by other writers, are plain entries, to which it is added afterwards ("sealing").
"""

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from mergeability.errors import UserError
from mergeability.files import canonical_json

CHECKSUM = "checksum"
_ZEROS = "0" * 64
_JSON_START = b'{\n "checksum": "'
_TENSORS_START = b'{"__metadata__":{"checksum":"'
# Number of bytes read at a time.
_CHUNK = 2**20
# The maximum header length of safetensors.
_LONGEST_HEADER = 10**8


class DamagedError(UserError):
    """Signal that an entry of the store is damaged.

    Attributes:
        reason: description of the damage.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"Damaged entry {path}: {reason}. Start the command again: damaged entries are computed again."
        )
        self.reason = reason


@dataclass(frozen=True)
class StoreEntry(ABC):
    """Define the interface of the file formats of store entries.

    Attributes:
        path: path of the file.
        kind: kind of entry.
        key: everything that determines the value.
    """

    path: Path
    kind: str
    key: Mapping[str, Any]

    suffix: ClassVar[str]

    @abstractmethod
    def check(self) -> bool:
        """Check the whole file, and return whether it contains a checksum.

        Raises:
            DamagedError: it is not a complete entry of this kind and key.
            OSError: it does not exist or cannot be read.
        """

    @abstractmethod
    def seal(self, path: Path) -> None:
        """Add kind, key and checksum to an entry in a temporary file at `path`."""

    def _damaged(self, reason: str) -> DamagedError:
        return DamagedError(self.path, reason)

    def _check_key(self, kind: Any, key: Any) -> None:
        expected = canonical_json(self.key)
        # JSON turns numeric keys into text, which sorts differently, so also compare with the key after a round trip.
        if kind != self.kind or key not in (expected, canonical_json(json.loads(expected))):
            raise self._damaged("it belongs to another key")


class RecordEntry(StoreEntry):
    """Store a record as a JSON file with its key and value."""

    suffix = ".json"

    def check(self) -> bool:
        """Check the whole file, and return whether it contains a checksum."""
        return self._read()[1]

    def value(self) -> dict[str, Any]:
        """Check the whole file and return the value."""
        return self._read()[0]

    def seal(self, path: Path) -> None:
        """Add kind, key and checksum to a record."""
        value = json.loads(path.read_bytes())["value"]
        path.write_bytes(sealed_json({"kind": self.kind, "key": self.key, "value": value}))

    def _read(self) -> tuple[dict[str, Any], bool]:
        data = self.path.read_bytes()
        content, sealed = checked_json(self.path, data), data.startswith(_JSON_START)
        expected = {CHECKSUM, "kind", "key", "value"} if sealed else {"key", "value"}
        if set(content) != expected or not isinstance(content["value"], dict):
            raise self._damaged("it is not a record")
        self._check_key(content.get("kind", self.kind), canonical_json(content["key"]))
        return content["value"], sealed


class TensorEntry(StoreEntry):
    """Store tensors as a safetensors file with the key in its metadata."""

    suffix = ".safetensors"

    @property
    def metadata(self) -> dict[str, str]:
        """The initial metadata of a file, with reserved space for kind, key and checksum."""
        return {CHECKSUM: _ZEROS, "kind": self.kind, "key": canonical_json(self.key)}

    def check(self) -> bool:
        """Check the whole file, and return whether it contains a checksum."""
        with self.path.open("rb") as file:
            header = _header(self.path, file)
            sealed = header.startswith(_TENSORS_START)
            if sealed:
                _compare(self.path, file, 8 + len(_TENSORS_START))
        metadata = _parsed(self.path, header).get("__metadata__", {})
        if not sealed:
            self._check_extent()
        # Version 0.1.0 stored some images without their key.
        if sealed or "key" in metadata:
            self._check_key(metadata.get("kind", self.kind), metadata.get("key"))
        return sealed

    def seal(self, path: Path) -> None:
        """Write kind, key and checksum into the reserved space in the header of a file of tensors."""
        with path.open("r+b") as file:
            before = _header(path, file)
            described = _parsed(path, before)
            metadata = {**described.pop("__metadata__", {}), **self.metadata}
            del metadata[CHECKSUM]
            # safetensors writes metadata in arbitrary order; sorted here, so that equal tensors give equal bytes.
            fields = {CHECKSUM: _ZEROS, **dict(sorted(metadata.items()))}
            header = _compact({"__metadata__": fields, **described})
            # The header never shrinks, so that tensors are moved at most in one direction.
            room = _rounded(max(len(header), len(before)))
            _move(file, 8 + len(before), room - len(before))
            file.seek(0)
            file.write(_framed(header, room))
            _, digits = _digits(file, 8 + len(_TENSORS_START))
            file.seek(8 + len(_TENSORS_START))
            file.write(digits)

    def _check_extent(self) -> None:
        """Check, for files without a checksum, that tensor positions agree with the header."""
        from mergeability.weights.safetensors_file import TensorFile

        try:
            TensorFile(self.path)
        except UserError as error:
            raise self._damaged("it is not a complete file of tensors") from error


def sealed_json(fields: Mapping[str, Any]) -> bytes:
    """Convert fields to JSON that starts with a checksum."""
    text = json.dumps({CHECKSUM: _ZEROS, **fields}, indent=1, allow_nan=False).encode()
    digits = hashlib.sha256(text).hexdigest().encode()
    return text.replace(_ZEROS.encode(), digits, 1)


def checked_json(path: Path, data: bytes) -> dict[str, Any]:
    """Read a JSON object and verify its checksum, if present.

    Args:
        path: path of the file, for messages.
        data: its bytes.

    Raises:
        DamagedError: it is not a JSON object, or was changed.
    """
    if data.startswith(_JSON_START):
        _compare(path, io.BytesIO(data), len(_JSON_START))
    return _parsed(path, data)


def hash_without_seal(path: Path) -> str:
    """Hash a file of tensors without its stored kind and checksum, so that hashes contained in older keys stay valid.

    Returns:
        The SHA-256 of the file that version 0.1.0 wrote, 64 hexadecimal digits.
    """
    with path.open("rb") as file:
        header = _header(path, file)
        if header.startswith(_TENSORS_START):
            described = _parsed(path, header)
            del described["__metadata__"][CHECKSUM], described["__metadata__"]["kind"]
            header = _compact(described)
        found = hashlib.sha256(_framed(header, len(header)))
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, "the content is not JSON") from error
    if not isinstance(content, dict):
        raise DamagedError(path, "the content is not a JSON object")
    return content


def _header(path: Path, file: BinaryIO) -> bytes:
    """Read the header of a safetensors file: eight bytes of length, then JSON; the data follow."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise DamagedError(path, "it is truncated")
    return file.read(length)


def _framed(header: bytes, room: int) -> bytes:
    """Prepend the length to a header, which is padded with spaces."""
    return room.to_bytes(8, "little") + header.ljust(room)


def _compact(header: Mapping[str, Any]) -> bytes:
    """Write a header as the library does."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(_rounded(len(text)))


def _rounded(size: int) -> int:
    """Round up to a multiple of eight bytes, the alignment of tensors."""
    return size + -size % 8


def _digits(file: BinaryIO, place: int) -> tuple[bytes, bytes]:
    """Return the checksum stored in a file, and the actual one."""
    file.seek(0)
    found = hashlib.sha256(file.read(place))
    stored = file.read(len(_ZEROS))
    # The checksum covers the whole file, with zeros in place of its own digits.
    found.update(_ZEROS.encode())
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return stored, found.hexdigest().encode()


def _compare(path: Path, file: BinaryIO, place: int) -> None:
    stored, found = _digits(file, place)
    if stored != found:
        raise DamagedError(path, "the checksum does not match the content")


def _move(file: BinaryIO, start: int, by: int) -> None:
    """Shift the data of a file towards its new end, the last part first."""
    end = file.seek(0, os.SEEK_END)
    while by and end > start:
        # From the end, so that no unread part is overwritten.
        begin = max(start, end - _CHUNK)
        file.seek(begin)
        data = file.read(end - begin)
        file.seek(begin + by)
        file.write(data)
        end = begin
