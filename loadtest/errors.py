"""What ends a load test before it has measured anything."""

from __future__ import annotations


class CannotRun(Exception):
    """The message is one line that says what to do next; the exit code is 2."""
