"""`python -m bench`: every benchmark, one after the other."""

from __future__ import annotations

import sys

from bench import masks, photos

BENCHMARKS = (masks.main, photos.main)


def main() -> int:
    """0 when every benchmark found its answers to be right."""
    failures = 0
    for benchmark in BENCHMARKS:
        failures += benchmark()
        print()
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
