"""What stops an export. The message is one line that says what was expected, what was found, and what to do next."""

from __future__ import annotations


class ExportError(Exception):
    """The export stops; nothing was written."""
