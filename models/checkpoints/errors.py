"""What stops the reading of a checkpoint, told in one sentence: what was expected, what was found, what to do."""

from __future__ import annotations


class CheckpointError(Exception):
    """The file is not a checkpoint that can be read, or not one of this network. Nothing in it was run."""
