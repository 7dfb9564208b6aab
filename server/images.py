"""From the bytes of a request to an upright RGB picture.

    file = survey(open("photo.jpg", "rb").read(), max_pixels=50_000_000)
    file.size                                   ->  (3024, 4032), told by the header
    decode(file, content=(1056, 1408)).pixels   ->  (1512, 2016, 3) uint8: at half its size, in half the time

Formats: JPEG, PNG, WebP, BMP, TIFF and GIF; of several frames or pages the first. The content decides, never a file
name or a `Content-Type`. Three steps: sniff the format, survey the file (`surveys.py`: size, wholeness, orientation)
before any decoder runs, then decode (`pixels.py`). Nothing is shared: any number of threads may decode at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server import pixels
from server.errors import BadImage, ImageTooLarge, MaskServeError, TruncatedImage, UnsupportedMedia
from server.geometry import Picture
from server.surveys import PAST_THE_END, SURVEYS, Survey

SUPPORTED = "JPEG, PNG, WebP, BMP, TIFF or GIF"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file whose header is in order."""

    format: str  # a key of `SURVEYS`
    survey: Survey

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        return pixels.turn((self.survey.width, self.survey.height), self.survey.orientation)


def survey(payload: bytes, max_pixels: int) -> PictureFile:
    """What a file holds, and that it holds all of it; no decoder runs.

    Args:
        payload: the bytes off the wire.
        max_pixels: the largest width times height that is accepted.

    Raises:
        BadImage: empty, not a picture, corrupt, or dimensions that cannot be.
        TruncatedImage: the file ends before its picture does.
        ImageTooLarge: more than `max_pixels`, told from the header.
        UnsupportedMedia: a picture, but its format or pixel type is not on the list.
    """
    if not payload:
        raise BadImage(f"image is empty (0 bytes); send {SUPPORTED}")
    name = sniff(payload)
    try:
        found = SURVEYS[name](payload)
    except PAST_THE_END:
        raise TruncatedImage(f"{name} ends in its header ({len(payload)} bytes came); send the whole file") from None
    width, height = found.width, found.height
    if width < 1 or height < 1:
        raise BadImage(f"{name} says it is {width} x {height}; both sides must be at least 1")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"image is {width} x {height} ({width * height / 1e6:.1f} megapixels); "
            f"the limit is {max_pixels / 1e6:g} megapixels (MASKSERVE_MAX_MEGAPIXELS)"
        )
    if not found.whole:
        raise TruncatedImage(f"{name} ends before its picture does ({len(payload)} bytes came); send the whole file")
    return PictureFile(name, found)


def decode(file: PictureFile, content: tuple[int, int] | None = None) -> Picture:
    """The picture in a file.

    Where there was a choice: alpha is dropped, not blended, as `Image.convert("RGB")` and `cv2.imread` do, because that
    is what models are trained on. 16-bit samples keep their upper byte, whatever range the picture uses. CMYK JPEG is
    read as Adobe writes it, inverted.

    Args:
        content: (height, width) at which the network will see it: a JPEG is decoded at 1/2 or 1/4 of its size where
            that is still amply larger (`pixels.SPARE`). Without it, and in every other format, all pixels come.

    Raises:
        BadImage, TruncatedImage, UnsupportedMedia: as `survey`, for what only the decoder notices.
    """
    name, found = file.format, file.survey
    try:
        return pixels.read(name, found.body, (found.width, found.height), found.orientation, content)
    except (MaskServeError, MemoryError):
        raise
    except Exception:  # a decoder raises whatever it likes, and its words stay here
        raise BadImage(f"{name} is corrupt, or uses a feature that is not supported; save it again") from None


MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # 43 instead of 42: BigTIFF
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
FOREIGN = {  # known well enough to be refused by name
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"II\xbc": "JPEG XR",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL", b"\xff\x0a": "JPEG XL", b"8BPS": "PSD", b"gimp xcf": "XCF",
    b"\0\0\1\0": "ICO", b"\0\0\2\0": "CUR", b"icns": "ICNS", b"%PDF-": "PDF", b"AT&TFORM": "DjVu",
    b"%!PS": "EPS or PostScript", b"\xc5\xd0\xd3\xc6": "EPS or PostScript", b"\xd7\xcd\xc6\x9a": "WMF",
    b"SIMPLE  =": "FITS", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"DDS ": "DDS", b"qoif": "QOI",
    b"\x8aMNG": "MNG", b"\x8bJNG": "JNG",
}  # fmt: skip
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"hevc": "HEIC"}


def sniff(payload: bytes) -> str:
    """The name of a supported format, from the first bytes.

    Raises:
        UnsupportedMedia: a picture of another format.
        BadImage: no picture.
    """
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "WebP"
    for magic, name in MAGIC.items():
        if payload.startswith(magic):
            return name
    if foreign := _sniff_foreign(payload):
        raise UnsupportedMedia(f"image is {foreign}, which is not supported; send {SUPPORTED}")
    raise BadImage(f"content is not a known kind of picture; send {SUPPORTED}")


def _sniff_foreign(payload: bytes) -> str | None:
    for magic, name in FOREIGN.items():
        if payload.startswith(magic):
            return name
    if payload[4:8] == b"ftyp":  # ISO base media: the brands tell what is inside
        brands = (payload[at : at + 4] for at in range(8, 64, 4))
        return next((BRANDS[brand] for brand in brands if brand in BRANDS), "HEIF or a video")
    if payload[128:132] == b"DICM":
        return "DICOM"
    if re.match(rb"P[1-7]\s", payload):
        return "PNM"
    text = payload[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    return "SVG" if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text else None
