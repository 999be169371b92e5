"""Recognise files that are no checkpoints by their first bytes, so that an error can say what was given instead."""

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

_INSTEAD = "Give the safetensors or PyTorch file from which it was made."
_AGAIN = "Download the weights again."
_UNPACK = "Unpack it, and give the file or folder that it contains."
# First bytes → the kind of file, and the remedy.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "Run git lfs pull in its folder."),
    (b"GGUF", "a GGUF file, whose weights are usually quantised", _INSTEAD),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow and Keras write", _INSTEAD),
    (b"\x93NUMPY", "a NumPy array", "Save all arrays in one file with safetensors.numpy.save_file."),
    (b"\x1f\x8b", "a compressed archive", _UNPACK),
    (b"BZh", "a compressed archive", _UNPACK),
    (b"\xfd7zXZ", "a compressed archive", _UNPACK),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a compressed archive",
        _UNPACK,
    ),
    (b"\x28\xb5\x2f\xfd", "a compressed archive", _UNPACK),
    (b"<", "a web page or XML", _AGAIN),
    (b"{", "JSON text", "Give the weights file or its folder."),
    (b"[", "JSON text", "Give the weights file or its folder."),
)
# Formats without a first byte of their own, by the file's ending.
_ENDINGS = {
    ".msgpack": ("a Flax file", _INSTEAD),
    ".onnx": ("an ONNX file", _INSTEAD),
    ".tflite": ("a TensorFlow Lite file", _INSTEAD),
}
_LONGEST = 512
# Of a safetensors file, by its definition.
_LONGEST_HEADER = 100_000_000
SAFETENSORS, PYTORCH = "safetensors", "PyTorch"
# What Python's reader raises for a damaged directory of an archive.
_DAMAGE = (
    zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError, ArithmeticError, NotImplementedError,
)  # fmt: skip


def recognised(path: Path, expected: str) -> tuple[str, str] | None:
    """Return the kind of a file that could not be read as a checkpoint, and the remedy.

    Args:
        path: the file.
        expected: the kind that it was read as, `SAFETENSORS` or `PYTORCH`.

    Returns:
        Two parts of a message, "a GGUF file, …" and "Give …."; None if it is of no known kind, or of the expected kind
        but damaged.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.weights.recognition import SAFETENSORS, recognised
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     path.write_text("version https://git-lfs.github.com/spec/v1")
        ...     print(recognised(path, SAFETENSORS))
        42
        ('a Git LFS pointer, not the weights', 'Run git lfs pull in its folder.')
    """
    with path.open("rb") as file:
        begins = file.read(_LONGEST)
    if not begins:
        return "empty", _AGAIN
    # Before all others: the first byte of the header's length may be that of a pickle.
    if begins[8:9] == b"{" and int.from_bytes(begins[:8], "little") <= _LONGEST_HEADER:
        return None if expected == SAFETENSORS else ("a safetensors file", "Give it the ending .safetensors.")
    try:
        names = _members(path)
    except _DAMAGE:
        return None if expected == PYTORCH else ("a damaged zip archive", _AGAIN)
    if begins.startswith(b"\x80") or any(name.endswith("data.pkl") for name in names or ()):
        return (
            None
            if expected == PYTORCH
            else _of_pytorch(path, "pickled" if names is None else "a PyTorch file")
        )
    if names is not None:
        return _archive(names)
    if begins[257:262] == b"ustar":
        return "an archive", _UNPACK
    text = begins.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = (
        (what, cure)
        for start, what, cure in _BEGINNINGS
        if begins.startswith(start) or text.startswith(start)
    )
    return next(found, _ENDINGS.get(path.suffix.lower()))


def _members(path: Path) -> list[str] | None:
    """List the files in a zip archive; None if it is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _archive(names: Sequence[str]) -> tuple[str, str]:
    """Tell NumPy's archives from others."""
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays", "Save the arrays with safetensors.numpy.save_file."
    return "a zip archive", _UNPACK


def _of_pytorch(path: Path, what: str) -> tuple[str, str]:
    """Return the remedy for a PyTorch file that was read as safetensors."""
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return what, "Save the state dict with safetensors.torch.save_file."
    return what, "If PyTorch wrote it, give it the ending .pt."
