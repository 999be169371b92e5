"""Create seeded random generators; the global random state is never used."""

import hashlib

from torch import Generator


def seeded_generator(*parts: str | int) -> Generator:
    """Return a CPU random generator that is seeded by a sequence of parts."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    # torch accepts 64-bit seeds, but some builds reject those above the signed range, so use 63 bits.
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
