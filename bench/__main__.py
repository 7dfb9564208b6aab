"""`python -m bench`: every benchmark, one after the other; ends with the number of those that failed."""

from __future__ import annotations

import sys

from bench import latency, masks, overload, peers, photos, prototypes, roi


def main() -> int:
    failed = 0
    for part in (masks, prototypes, roi, photos, latency):
        failed += part.main() != 0
        print(flush=True)
    failed += peers.main([]) != 0
    failed += overload.main([]) != 0  # with the networks of the one before
    return failed


if __name__ == "__main__":
    sys.exit(main())
