"""What the commands write to the terminal and into logs."""

import logging

from mergeability.commands.invocation import as_typed
from mergeability.errors import printable


def shown_text(text: str) -> str:
    """Return a text for the terminal: control characters escaped, commands named as they were typed."""
    return as_typed(printable(text))


class PlainFormatter(logging.Formatter):
    """A formatter that escapes control characters, which names may contain, and names commands as they were typed."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return shown_text(super().format(record))
