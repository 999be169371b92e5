"""Define the exception for errors that users can correct, and make text safe to print in a terminal."""

import difflib
from collections.abc import Iterable
from typing import Any
from unicodedata import category


class UserError(ValueError):
    """Signal an error that the user can correct; the message names the expected value, the actual value and a remedy.

    The commands print its text without a traceback and exit with a non-zero code. Any other exception is a bug in
    this package and keeps its traceback. It is a `ValueError`.

    Examples:
        >>> from mergeability import UserError
        >>> from mergeability.merging import Slerp
        >>> try:
        ...     Slerp(t=2)
        ... except UserError as error:
        ...     print(error)
        Expected t to be in [0, 1], got 2.
    """


def printable(text: str) -> str:
    r"""Escape control characters and other characters that affect a terminal; keep line breaks and tabs.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    if text.isprintable():
        return text
    kept = ("\n", "\t")
    return "".join(
        one if one in kept or one.isprintable() or category(one) == "Zs" else escaped(one) for one in text
    )


def escaped(character: str) -> str:
    r"""Escape a character; a surrogate, which stands for an invalid byte in a file name, is written as that byte.

    >>> print(escaped("\x1b"), escaped("\udce9"))
    \x1b \xe9
    """
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shown(value: Any, limit: int = 60) -> str:
    """Format a value on one line: quote text and shorten long values.

    >>> shown("a" * 100, limit=10), shown(0.5)
    ("'aaaaaaa…'", '0.5')
    """
    written = printable(repr(value))
    if len(written) <= limit:
        return written
    end = written[-1] if written[-1] in "'\")]}" else ""
    return f"{written[: limit - 1 - len(end)]}…{end}"


def short(name: str, limit: int = 60) -> str:
    """Shorten a long name, and escape its control characters.

    >>> short("accuracy", limit=5)
    'accu…'
    """
    written = printable(name).replace("\n", "\\n")
    return written if len(written) <= limit else f"{written[: limit - 1]}…"


def one_line(error: BaseException) -> str:
    r"""Return the message of an exception in one line, without its final full stop.

    Returns:
        Its message, or the name of its class if there is no message.

    Examples:
        >>> from mergeability.errors import one_line
        >>> one_line(OSError("No space\nleft on device.")), one_line(ValueError())
        ('No space left on device', 'ValueError')
    """
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence, with a leading space, that suggests the known words closest to an unknown word.

    >>> did_you_mean("tis", ["ta", "ties", "tsv"])
    " Did you mean 'ties' or 'tsv'?"
    """
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
