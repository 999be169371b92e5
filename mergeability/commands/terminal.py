"""Formatting of the commands' output in the terminal and in logs."""

import logging

from mergeability.commands.invocation import as_typed
from mergeability.errors import printable


class PlainFormatter(logging.Formatter):
    """A formatter that escapes control characters in names and shows commands in the form that was typed."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return as_typed(printable(super().format(record)))
