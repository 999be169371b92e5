"""End the process of a command without destroying PyTorch's objects one by one."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def end_after(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function and end the process, with code 0 or that of SystemExit; other exceptions pass.

    Where the program was started by another one, such as a profiler, a debugger or a test, the process does not end.
    """
    if not _is_started_by_python():
        function(*arguments)
        return
    try:
        function(*arguments)
    except SystemExit as stop:
        # Python prints a message that is given in place of a code.
        if not isinstance(stop.code, int | None):
            raise
        end(stop.code or 0)
    end(0)


def end(code: int) -> None:
    """End the process like `sys.exit(code)`, but leave its memory to the operating system.

    Python and the native libraries would destroy every object first. Once PyTorch is imported, this takes half a second
    and 0.1 GiB of additional memory. As usual, this function waits for all threads except daemons, calls the functions
    registered with `atexit`, and flushes the output.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        # Python reports output that could not be written.
        sys.exit(code)
    os._exit(code)


def _is_started_by_python() -> bool:
    """Return whether the main module called `end_after`, and Python itself started the main module."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "mergeability.__main__"):
        frame = frame.f_back
    main = None if frame is None else frame.f_globals
    while frame is not None and frame.f_globals is main:
        frame = frame.f_back
    # `python -m` runs the main module by these functions.
    while frame is not None and frame.f_globals.get("__name__") == "runpy":
        frame = frame.f_back
    is_main = main is not None and main.get("__name__") == "__main__"
    return is_main and frame is None and not sys.flags.inspect
