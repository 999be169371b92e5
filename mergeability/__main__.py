"""Run the command `mergeability` when Python is started with `python -m mergeability`."""

import io
import sys
from functools import partial
from typing import TextIO


def main() -> None:
    """Run the command line."""
    from mergeability.commands.cli import cli
    from mergeability.commands.ending import end_after

    for stream in (sys.stdout, sys.stderr):
        write_utf8(stream)
    end_after(partial(cli, prog_name="mergeability"))


def write_utf8(stream: TextIO) -> None:
    """Write UTF-8 to files and pipes, because Windows code pages cannot encode the symbols in formulas."""
    if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
        stream.reconfigure(encoding="utf-8")


if __name__ == "__main__":
    main()
