"""The real pictures beside the checkout, in `../shared`: too big for git, and absent from most laptops.

    shared("data/images")  ->  its path, or the end of the test

Where it ends depends on who asks: on a laptop the test is skipped, on a machine with `CI=true` it fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(path: str) -> Path:
    """A file or folder under `../shared`; without it the test that asks is skipped, or failed where `CI` is `true`."""
    found = SHARED / path
    if not found.exists():
        reason = f"no {path} in ../shared beside this checkout"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; CI must have it", pytrace=False)
        pytest.skip(reason)
    return found
