"""Format the output of commands for the terminal and for logs."""

import logging

from mergeability.commands.invocation import as_typed
from mergeability.errors import printable


def shown_text(text: str) -> str:
    """Escape control characters in a text, and replace script names by the command that the user typed."""
    return as_typed(printable(text))


class PlainFormatter(logging.Formatter):
    """Format log records: escape control characters, and write suggested commands in the form that the user uses."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record."""
        return shown_text(super().format(record))
