"""Ordinary JPEG files to pixels, by libjpeg-turbo itself: the same pixels as Pillow's, in half the time.

Ordinary is what cameras and programs write: 8 bits, Huffman coding, grey or three colours. CMYK, lossless and
arithmetically coded files are left to Pillow.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive, all with Huffman coding
NOT_FRAMES: Final = frozenset((0xC4, 0xC8, 0xCC))  # tables and extensions among the frame markers
SCAN: Final = 0xDA


def is_ordinary(body: bytes) -> bool:
    """Whether `decode` takes it.

    Args:
        body: a lean copy: the start marker, then one segment (FF, marker, length, data) after the other up to a scan.
    """
    at = 2
    while body[at] == 0xFF and body[at + 1] != SCAN:
        marker = body[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES:
            precision, components = body[at + 4], body[at + 9]
            return marker in FRAMES and precision == 8 and components in (1, 3)
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return False


def decode(body: bytes, size: tuple[int, int], reduction: int) -> NDArray[np.uint8]:
    """
    Args:
        body: as above, and ordinary.
        size: (width, height) that its header announced.
        reduction: 1, 2 or 4: every side is divided by it, and rounded up.

    Returns:
        (ceil(height / reduction), ceil(width / reduction), 3), as stored.

    Raises:
        ValueError: the decoder cannot go on. Damage that it can go over is gone over, as browsers do.
    """
    width, height = (-(-side // reduction) for side in size)
    # The decoder takes the smallest of its factors, an eighth to one in eighths, that gives at least this size.
    pixels = simplejpeg.decode_jpeg(
        body, "RGB", min_height=height, min_width=width, min_factor=float(reduction), strict=False
    )
    if pixels.shape != (height, width, 3):
        raise ValueError(f"decoded to {pixels.shape}, not to {(height, width, 3)}")
    return np.asarray(pixels, np.uint8)
