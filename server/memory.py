"""What happens to freed memory. Both are about glibc's malloc; with another one (musl, macOS, Windows) nothing is done.

Left alone it returns a picture's megabyte to the system as soon as it is freed, and takes it back page by page for the
next one: a thousand page faults, 2 ms of a 640 x 480 picture's 3 in the decoder. `keep_small` has it kept; and once a
large picture is done, `give_back` returns what that took.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BLOCK = 8 << 20  # bytes: larger blocks go back at once
KEPT_IN_ALL = 32 << 20  # bytes free at the end of an arena before it gives back


def _glibc(function: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), function, None)


def keep_small() -> None:
    """Keep freed blocks of ordinary pictures for the next one. Once, before the workers start."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_IN_ALL)


def give_back() -> None:
    """Return what is free to the system: malloc_trim(3)."""
    if _trim is not None:
        _trim(0)


_trim = _glibc("malloc_trim")
