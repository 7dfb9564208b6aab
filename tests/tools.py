"""Programs that some tests run and pip does not bring: `tool("promtool")` is its path, or the end of the test.

Where it ends depends on who asks: on a laptop the test is skipped and says why, on a machine with `CI=true` it fails.
"""

from __future__ import annotations

import os
import shutil

import pytest


def tool(name: str) -> str:
    """The path of a program; without it the test that asks is skipped, or failed where `CI` is `true`."""
    found = shutil.which(name)
    if found is None:
        reason = f"no program '{name}' on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; CI must have it", pytrace=False)
        pytest.skip(reason)
    return found
