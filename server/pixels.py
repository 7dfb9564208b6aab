"""From an encoded picture to its pixels: the only page that knows Pillow.

    read("JPEG", body, size=(640, 480), orientation=6)  ->  (640, 480, 3) uint8

Format classes are called by name, never through `Image.open`, so no other reader of Pillow can run. `images.py` hands
over bodies without metadata, which is what Pillow warns about: filters for warnings are not safe among threads.
"""

from __future__ import annotations

import zlib
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

from server.errors import BadImage, TruncatedImage, UnsupportedMedia

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
CONVERTIBLE: Final = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
BAND_PIXELS: Final = 1 << 18  # a band that stays in the cache: a 12 MP photograph leaves Pillow four times as fast


def read(name: str, body: bytes, size: tuple[int, int], orientation: int) -> NDArray[np.uint8]:
    """Decode a whole file of a known format.

    Args:
        name: a key of `READERS`.
        body: the file.
        size: (width, height) that its header announced; the decoder must agree.
        orientation: EXIF, 1..8.

    Returns:
        (H, W, 3) uint8 RGB, upright, C-contiguous.

    Raises:
        BadImage, TruncatedImage, UnsupportedMedia: as `images.decode`; and anything at all on corrupt data.
    """
    with closing(READERS[name](BytesIO(body))) as image:  # closing: pixels go back now, not at some garbage collection
        if image.size != size:
            raise BadImage(f"{name} says two different sizes of itself; save it again")
        image.decodermaxblock = len(body)  # one step, not one for each 64 kB that would wait for Python's lock again
        image.load()
        if name == "PNG" and not _png_is_full(image, body):
            raise TruncatedImage("PNG has fewer rows of pixels than its header says; send the whole file")
        return to_rgb(image, orientation)


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
    if orientation in (3, 4, 7, 8):  # upright rows begin at the far end
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
