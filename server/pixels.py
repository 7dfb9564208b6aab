"""From an encoded picture to its pixels: the only page that knows Pillow, and who decides what Pillow does not decode.

    read("JPEG", body, size=(640, 480), orientation=6).pixels  ->  (640, 480, 3) uint8

Format classes are called by name, never through `Image.open`, so no other reader of Pillow can run. `images.py` hands
over bodies without metadata, which is what Pillow warns about: filters for warnings are not safe among threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server import jpeg
from server.errors import BadImage, TruncatedImage, UnsupportedMedia
from server.geometry import Picture

Image.MAX_IMAGE_PIXELS = None  # ours is `max_pixels`, checked before; Pillow's own limit would warn or refuse below it

READERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
}
UPRIGHT: Final = {  # EXIF orientation -> what undoes it
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
TURNED: Final[dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {  # the same for (height, width, 3)
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
# How far a JPEG may be reduced, judged by the masks of drawn objects of 20 to 50 input pixels against those of full
# decoding: barely larger than the network's input the worst IoU is 0.990, with a third to spare 0.993. libjpeg's 1/8
# would take 2 ms off the 14 of 1/4 (12 megapixels), and misses colours stored at half width by three times as much.
REDUCTIONS: Final = (4, 2)
SPARE: Final = 4 / 3
FROM_BELOW: Final = frozenset((3, 4, 7, 8))  # orientations whose upright rows begin at the far end of what is stored
FROM_THE_RIGHT: Final = frozenset((2, 3, 6, 7))  # and their columns
CONVERTIBLE: Final = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
BAND_PIXELS: Final = 1 << 18  # a band that stays in the cache: a 12 MP photograph leaves Pillow four times as fast


def read(
    name: str, body: bytes, size: tuple[int, int], orientation: int, content: tuple[int, int] | None = None
) -> Picture:
    """Decode a whole file of a known format.

    Args:
        name: a key of `READERS`.
        body: the file; of a JPEG the lean copy that its survey made.
        size: (width, height) that its header announced; the decoder must agree.
        orientation: EXIF, 1..8.
        content: (height, width) at which the upright picture will be seen; an ordinary JPEG may come reduced.

    Raises:
        BadImage, TruncatedImage, UnsupportedMedia: as `images.decode`; and anything at all on corrupt data.
    """
    if name == "JPEG" and jpeg.is_ordinary(body):
        reduction = 1 if content is None else _reduction(size, turn(content, orientation))
        stored = jpeg.decode(body, size, reduction)
        upright = np.ascontiguousarray(TURNED[orientation](stored)) if orientation in TURNED else stored
        return Picture(upright, _covers(size, reduction, orientation))
    with closing(READERS[name](BytesIO(body))) as image:  # closing: pixels go back now, not at some garbage collection
        if image.size != size:
            raise BadImage(f"{name} says two different sizes of itself; save it again")
        image.decodermaxblock = len(body)  # one step, not one for each 64 kB that would wait for Python's lock again
        image.load()
        if name == "PNG" and not _png_is_full(image, body):
            raise TruncatedImage("PNG has fewer rows of pixels than its header says; send the whole file")
        return Picture(to_rgb(image, orientation), _covers(size, 1, orientation))


def turn(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """From (width, height) as stored to (height, width) of the upright picture, and as well the other way."""
    return size if orientation >= 5 else (size[1], size[0])


def _reduction(size: tuple[int, int], content: tuple[int, int]) -> int:
    """The most that a picture can be reduced by and still be `SPARE` times as large; both sizes (width, height)."""
    spare = min(size[0] / content[0], size[1] / content[1]) / SPARE
    return next((reduction for reduction in REDUCTIONS if reduction <= spare), 1)


def _covers(size: tuple[int, int], reduction: int, orientation: int) -> tuple[int, int, int, int]:
    """xyxy in original pixels. Reduced sides are rounded up, so that what lies beyond comes last as stored, and first
    where turning it upright runs against that."""
    height, width = turn(size, orientation)
    beyond_y, beyond_x = -height % reduction, -width % reduction
    top = -beyond_y if orientation in FROM_BELOW else 0
    left = -beyond_x if orientation in FROM_THE_RIGHT else 0
    return left, top, left + width + beyond_x, top + height + beyond_y


def to_rgb(image: Image.Image, orientation: int = 1) -> NDArray[np.uint8]:
    """The pixels of a loaded picture, converted and turned band by band, so that no second full copy exists."""
    image = _eight_bit(image)
    image.info.clear()  # a transparent colour in there would change what conversion does
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image.crop(_source(image.size, orientation, top, bottom))
        if orientation in UPRIGHT:
            band = band.transpose(UPRIGHT[orientation])
        if band.mode != "RGB":
            band = band.convert("RGB")
        pixels[top:bottom] = np.frombuffer(band.tobytes(), np.uint8).reshape(bottom - top, width, 3)
    return pixels


def _source(size: tuple[int, int], orientation: int, top: int, bottom: int) -> tuple[int, int, int, int]:
    """The box of the stored picture that becomes rows `top` to `bottom` of the upright one."""
    width, height = size
    extent = width if orientation >= 5 else height
    if orientation in FROM_BELOW:
        top, bottom = extent - bottom, extent - top
    return (top, 0, bottom, height) if orientation >= 5 else (0, top, width, bottom)


def _eight_bit(image: Image.Image) -> Image.Image:
    """A picture in a mode that converts to RGB as it should."""
    if image.mode.startswith("I;16"):
        shift, white_is_zero = 8, False
        if isinstance(image, TiffImageFile):
            shift = 4 if image.tag_v2.get(258) == (12,) else 8
            white_is_zero = image.tag_v2.get(262) == 0  # Pillow inverts 8-bit samples, but not these
        grey = (np.asarray(image) >> shift).astype(np.uint8)
        return Image.fromarray(~grey if white_is_zero else grey)
    if image.mode == "La":  # colour times alpha
        return image.convert("LA")
    if image.mode not in CONVERTIBLE:
        raise UnsupportedMedia(f"pixels of type {image.mode} are not supported; save it as 8-bit RGB or grey")
    return image


def _png_is_full(image: Image.Image, body: bytes) -> bool:
    """Whether all rows were there: Pillow takes a stream that ends early, and leaves the other rows 0.

    So a last row that is not all 0 settles it; otherwise the bytes are counted.
    """
    width, height = image.size
    depth, colour, _, _, interlaced = body[24:29]
    if not interlaced and any(image.crop((0, height - 1, width, height)).tobytes()):
        return True
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    missing = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        missing += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0  # a filter byte before each row
    start = body.index(b"IDAT") + 4
    length = int.from_bytes(body[start - 8 : start - 4], "big")
    inflate, data = zlib.decompressobj(), body[start : start + length]
    while missing > 0 and data and not inflate.eof:
        missing -= len(inflate.decompress(data, 1 << 20))
        data = inflate.unconsumed_tail
    return missing <= 0


ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
