"""Recognise files that are no checkpoints by their first bytes, so that an error can say what was given instead."""

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

_INSTEAD = "Give the safetensors or PyTorch file from which it was made."
_AGAIN = "Download the weights again."
# First bytes → what such a file is, and what to do about it.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "Run git lfs pull in its folder."),
    (b"GGUF", "a GGUF file, whose weights are usually quantised", _INSTEAD),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow and Keras write", _INSTEAD),
    (b"\x93NUMPY", "a NumPy array", "Save all arrays in one file with safetensors.numpy.save_file."),
    (b"\x1f\x8b", "a compressed archive", "Unpack it, and give the file or folder that it contains."),
    (b"BZh", "a compressed archive", "Unpack it, and give the file or folder that it contains."),
    (b"\xfd7zXZ", "a compressed archive", "Unpack it, and give the file or folder that it contains."),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a compressed archive",
        "Unpack it, and give the file or folder that it contains.",
    ),
    (b"\x28\xb5\x2f\xfd", "a compressed archive", "Unpack it, and give the file or folder that it contains."),
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
DAMAGED_ARCHIVE = "a damaged zip archive"
# What Python's reader raises for a damaged directory of an archive.
_DAMAGE = (
    zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError, ArithmeticError, NotImplementedError,
)  # fmt: skip


def recognised(path: Path) -> tuple[str, str] | None:
    """Return what a file is that could not be read as a checkpoint, and what to do about it.

    Args:
        path: the file.

    Returns:
        Two parts of a message, "a GGUF file, …" and "Give …."; None if the file is of no known kind.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.weights.recognition import recognised
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     path.write_text("version https://git-lfs.github.com/spec/v1")
        ...     print(recognised(path))
        42
        ('a Git LFS pointer, not the weights', 'Run git lfs pull in its folder.')
    """
    with path.open("rb") as file:
        begins = file.read(_LONGEST)
    if not begins:
        return "empty", _AGAIN
    try:
        names = _members(path)
    except _DAMAGE:
        return DAMAGED_ARCHIVE, _AGAIN
    if names is not None:
        return _archive(path, names)
    if begins.startswith(b"\x80"):
        return "pickled", _of_pytorch(path)
    if begins[257:262] == b"ustar":
        return "an archive", "Unpack it, and give the file or folder that it contains."
    if begins[8:9] == b"{" and int.from_bytes(begins[:8], "little") < path.stat().st_size:
        return "a safetensors file", "Give it the ending .safetensors."
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


def _archive(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """Tell PyTorch's archives from NumPy's and others."""
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file", _of_pytorch(path)
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays", "Save the arrays with safetensors.numpy.save_file."
    return "a zip archive", "Unpack it, and give the file or folder that it contains."


def _of_pytorch(path: Path) -> str:
    """Say what to do with a PyTorch file that is read as safetensors."""
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return "Save the state dict with safetensors.torch.save_file."
    return "If PyTorch wrote it, give it the ending .pt."
