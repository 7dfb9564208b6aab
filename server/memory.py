"""Freed memory back to the system. glibc keeps what large pictures took, per thread, for the next one of their kind."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def _trimmer() -> Callable[[], None]:
    """glibc's malloc_trim(3); elsewhere (musl, macOS, Windows) nothing."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return lambda: None

    def give() -> None:
        trim(0)

    return give


give_back = _trimmer()
