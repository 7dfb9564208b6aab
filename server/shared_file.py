"""Files in memory, for what several processes read or write."""

from __future__ import annotations

import os
import tempfile


def shared_file(name: str, size: int) -> int:
    """A descriptor of `size` zero bytes in memory that take no room until they are written.

    The file has no name in any file system, so it cannot be left behind, and needs neither /dev/shm nor a disk.

    Args:
        name: for people who read /proc/<pid>/maps.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(f"maskserve-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:  # macOS: a file that is removed before it is used
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
