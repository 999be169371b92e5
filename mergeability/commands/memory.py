"""Set how a command's process looks for garbage and keeps freed memory."""

import ctypes
import gc
import os

# Look for garbage after so many new objects, and not after 700: importing PyTorch creates a million.
_GARBAGE = (100_000, 10, 10)
# glibc's options, the variables by which users set them, and values in bytes: the free memory that a thread keeps,
# and the size from which memory is taken from the system and returned at once.
_KEPT = (-1, "MALLOC_TRIM_THRESHOLD_", 2**25)
_LARGE = (-3, "MALLOC_MMAP_THRESHOLD_", 2**22)


def look_for_garbage_less_often() -> None:
    """Save the fifth of PyTorch's import in which garbage is looked for among objects that all stay."""
    gc.set_threshold(*max(_GARBAGE, gc.get_threshold()))


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed blocks for the next ones, where it is glibc.

    Otherwise it returns their memory to the system and takes it again page by page, which is a tenth of the time in
    which a large language model is merged.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        # Other C libraries have no such function.
        return
    for option, variable, size in (_KEPT, _LARGE):
        if variable not in os.environ:
            mallopt(option, size)
