"""Find the image files in a folder, and report the files that are left out."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath

from PIL import Image

from mergeability.errors import escaped

# Formats that Pillow recognises but cannot decode, or decodes by starting another program.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# Formats that are identified by their first bytes in files without an extension: text cannot begin with these bytes.
_TOLD_BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PSD", "QOI", "TIFF", "WEBP")
# Files and folders created by operating systems, in addition to names that begin with a dot.
_OF_THE_SYSTEM = frozenset(
    {
        "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found",
        "system volume information", "thumbs.db",
    }
)  # fmt: skip
_NAMED = 3

HIDDEN = "hidden files and folders"
NO_ENDING = "files without an ending that are no images"
TWICE = "links to folders that were read already"
DANGLING = "links that lead nowhere"
SPECIAL = "pipes, sockets and devices"
CLOSED = "files and folders that cannot be opened"
EMPTY = "empty folders"


@cache
def formats() -> tuple[str, ...]:
    """Return the image formats that Pillow decodes without external programs."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_READ))


@cache
def endings() -> frozenset[str]:
    """Return the extensions of image files, in lower case, with the dot.

    >>> {".jpg", ".jfif", ".tif", ".webp"} <= endings(), endings() & {".txt", ".eps", ".mp4"}
    (True, frozenset())
    """
    read = {*formats(), "MPO"}  # Pillow reads MPO files with its JPEG reader.
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in read)


def shown(path: PurePath | str) -> str:
    r"""Format a path for a message, with control characters and invalid UTF-8 escaped.

    >>> shown("caf\udce9\n.png")
    'caf\\xe9\\n.png'
    """
    return "".join(one if one.isprintable() else escaped(one) for one in str(path))


def some(names: Sequence[str]) -> str:
    """Format the first few names as a list.

    >>> some(["a", "b", "c", "d"])
    'a, b, c, …'
    """
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder was created by the system or an editor and is not data."""
    return name.startswith(".") or name.casefold() in _OF_THE_SYSTEM


def existing_folder(path: Path | str) -> Path | None:
    """Return a folder with `~` expanded; None if no folder was given or the name is invalid."""
    try:
        place = Path(path).expanduser()
        return place if place.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


@dataclass(frozen=True)
class Listing:
    """Hold the image files in a folder and its subfolders.

    Attributes:
        files: all image files, sorted.
        dangling: broken links with the extension of an image, sorted.
        left_out: reason → relative paths, formatted for messages.
        odd: image names that are not valid UTF-8, formatted for messages.
    """

    files: tuple[Path, ...]
    dangling: tuple[Path, ...]
    left_out: Mapping[str, tuple[str, ...]]
    odd: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """Return messages about files that were left out, and about names that are not valid UTF-8."""
        found = []
        if self.left_out:
            reasons = (
                f"{reason} are left out: {len(names)} ({some(names)})"
                for reason, names in self.left_out.items()
            )
            found.append(f"{'; '.join(reasons)}.")
        if self.odd:
            found.append(f"image names that are not valid UTF-8: {len(self.odd)} ({some(self.odd)}).")
        return found


def list_images(folder: Path) -> Listing:
    """Find the image files in a folder and its subfolders.

    An image is a regular file with the extension of a supported format, or without an extension and with the first
    bytes of one. Links are followed. Each folder is read once, under its real name if possible, so that cyclic links
    terminate.
    """
    return _Walk(folder).listing()


@dataclass
class _Walk:
    folder: Path
    files: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def listing(self) -> Listing:
        # A link to a parent folder would also include its other contents.
        seen = {_identity(one) for one in (self.folder, *self.folder.resolve().parents)}
        folders, links = [self.folder], deque[Path]()
        while folders or links:
            # Follow links last, so that folders are first listed under their real names.
            linked = not folders
            current = links.popleft() if linked else folders.pop()
            if current != self.folder:
                found = _identity(current)
                if found in seen:
                    self._leave_out(TWICE, current)
                    continue
                seen.add(found)
            for entry in self._entries(current):
                self._file_away(entry, folders, links)
        odd = [shown(path.relative_to(self.folder)) for path in sorted(self.files) if not _is_text(path.name)]
        return Listing(
            tuple(sorted(self.files)),
            tuple(sorted(self.dangling)),
            {reason: tuple(sorted(names)) for reason, names in sorted(self.left_out.items())},
            tuple(odd),
        )

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError:
            self._leave_out(CLOSED, folder)
            return []
        if not entries and folder != self.folder:
            self._leave_out(EMPTY, folder)
        return entries

    def _file_away(self, entry: os.DirEntry[str], folders: list[Path], links: deque[Path]) -> None:
        path = Path(entry.path)
        if is_hidden(entry.name):
            self._leave_out(HIDDEN, path)
        elif _asked(entry.is_dir):
            if entry.is_symlink():
                links.append(path)
            else:
                folders.append(path)
        elif _asked(entry.is_file):
            reason = self._no_image(path)
            if reason is None:
                self.files.append(path)
            else:
                self._leave_out(reason, path)
        elif not entry.is_symlink() or _exists(path):
            self._leave_out(SPECIAL, path)
        elif ending_of(path) in endings():
            self.dangling.append(path)
        else:
            self._leave_out(DANGLING, path)

    def _no_image(self, path: Path) -> str | None:
        """Return the reason why a regular file is not an image; None if it is one."""
        ending = ending_of(path)
        if ending in endings():
            return None
        if ending:
            return f"files ending in {shown(ending)}"
        try:
            with path.open("rb") as file:
                beginning = file.read(32)
        except OSError:
            return CLOSED
        return None if _looks_like_an_image(beginning) else NO_ENDING

    def _leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(shown(path.relative_to(self.folder)))


def ending_of(path: PurePath) -> str:
    """Return a file's extension in lower case, with the dot; empty if it has no extension.

    >>> ending_of(PurePath("a.b.JPG "))
    '.jpg'
    """
    return path.suffix.strip().lower()


def _looks_like_an_image(beginning: bytes) -> bool:
    Image.init()
    for kind in _TOLD_BY_CONTENT:
        accept = Image.OPEN[kind][1] if kind in Image.OPEN else None
        # If Pillow was built without a reader, `accept` returns an error message instead of True.
        if accept is not None and accept(beginning) is True:
            # Text may begin with BM, so also check the reserved zero bytes.
            return kind != "BMP" or beginning[6:10] == bytes(4)
    return False


def _asked(question: Callable[[], bool]) -> bool:
    """Query the type of an entry; a cyclic link is neither file nor folder."""
    try:
        return question()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int] | Path:
    try:
        status = folder.stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def by_folder(paths: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by their folder relative to the root; the root itself is named `.`."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
    return found


def top_folders(root: Path) -> list[Path]:
    """List the direct subfolders of a folder, except hidden folders and links to parent folders."""
    try:
        inside = sorted(root.iterdir())
        above = {_identity(one) for one in (root, *root.resolve().parents)}
    except OSError:
        return []
    found = [path for path in inside if not is_hidden(path.name) and existing_folder(path) is not None]
    return [path for path in found if _identity(path) not in above]
