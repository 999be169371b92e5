"""Files that are there whole or not at all, and the one form of JSON that is hashed."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeability.errors import UserError


def canonical_json(value: Any) -> str:
    """Write a value as JSON in the one form that is hashed: sorted keys, no spaces, 1.0 as 1."""
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
    """Hash any JSON-able value: the SHA-256 of its canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextlib.contextmanager
def saying_what_cannot_be_written(path: Path) -> Iterator[None]:
    """Turn a failure of the system in the block into a sentence about `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or set paths.root elsewhere."
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` only when the block ends without an error.

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
            # mkstemp makes files that only their owner reads; results are meant to be shared.
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
    """Read a JSON file that holds an object; None where there is no file.

    Raises:
        UserError: it is there but is not JSON, or something else than an object.
    """
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise UserError(
            f"Expected an object in {path}, got {type(value).__name__}. Delete it and run again what made it."
        )
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is none.

    Raises:
        UserError: it is there but cannot be read or is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Delete it and run again what made it."
        ) from error
