"""What the commands write to the terminal and into logs."""

import logging

from mergeability.errors import printable


class PlainFormatter(logging.Formatter):
    """A formatter that escapes control characters, which names of files and tensors may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return printable(super().format(record))
