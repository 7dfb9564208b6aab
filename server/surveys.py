"""What a picture file says of itself, told from its own structure before any decoder runs.

    SURVEYS["PNG"](payload)  ->  Survey(width=640, height=480, whole=True, body=b"...", orientation=1)

A survey tells

- the size, so that a picture beyond the limit costs no more than its upload;
- whether the file is whole: decoders fill what is missing with black or grey and call it a picture;
- the EXIF orientation;
- a lean copy for the decoder: the pixels and what they need. ICC profiles (all colours are taken as sRGB), comments,
  thumbnails and further frames do not reach it, nor does whatever is wrong with them.

Reading beyond the last byte raises one of `PAST_THE_END`, which `images.survey` tells as a truncated file. Why this is
our own code: docs/decisions/0004.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import BadImage, UnsupportedMedia

MAX_PARTS = 10_000  # segments, chunks or blocks in one file, beside those that its length explains
MAX_SCANS = 100  # of a progressive JPEG: each of them visits every pixel
MAX_JUNK = 4096  # bytes between two JPEG segments
MAX_STRIPS = 65_536  # strips or tiles of a TIFF
PAST_THE_END = (struct.error, IndexError, ValueError, OverflowError)  # what reading beyond the last byte raises


class Survey(NamedTuple):
    """What a file says of itself."""

    width: int  # as stored, before the orientation
    height: int
    whole: bool  # all that the picture needs is there
    body: bytes  # the lean copy
    orientation: int = 1  # EXIF, 1..8


def survey_jpeg(payload: bytes) -> Survey:
    """Segments (FF, marker, length, data) up to the first scan, whose end is the marker FFD9.

    Application data and comments stay behind, except JFIF and Adobe, which tell the colour space.
    """
    width = height = frame = orientation = 0
    kept = [payload[:2]]
    position = 2
    for _ in range(MAX_PARTS):
        start = payload.index(b"\xff", position)
        marker = payload[start + 1]
        if start - position > MAX_JUNK or marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # padding, or a marker that has no data
            position = start + 1
        elif marker == 0xDA:  # the first scan
            # FFDA also turns up by chance, once in 64 kB of whatever lies after the end.
            if frame & 3 == 2 and payload.count(b"\xff\xda", start) > MAX_SCANS + len(payload) // 32_768:
                raise BadImage(f"progressive JPEG has more than {MAX_SCANS} scans; save it again")
            whole = payload.rfind(b"\xff\xd9") > start
            return Survey(width, height, whole, b"".join([*kept, payload[start:]]), orientation or 1)
        else:
            (length,) = struct.unpack_from(">H", payload, start + 2)
            position = start + 2 + length
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                frame = marker
                height, width = struct.unpack_from(">HH", payload, start + 5)
            if marker == 0xE1 and not orientation and payload[start + 4 : start + 10] == b"Exif\0\0":
                orientation = exif_orientation(payload[start + 10 : position])
            if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
                kept.append(payload[start:position])
    raise BadImage("JPEG has no picture after its header; save it again")


def survey_png(payload: bytes) -> Survey:
    """Chunks (length, kind, data, CRC) up to IEND. Those that shape the pixels are kept, the pixels in one piece."""
    kind, width, height, _, colour = struct.unpack_from(">4sIIBB", payload, 12)
    if kind != b"IHDR" or max(width, height) >= 1 << 31:
        raise BadImage("PNG does not begin with a header chunk; save it again")
    orientation = 1
    kept: dict[bytes, list[memoryview]] = {b"IHDR": [], b"PLTE": [], b"tRNS": [], b"IDAT": [], b"IEND": []}
    position = 8
    for _ in range(MAX_PARTS + len(payload) // 1024):
        if position + 8 > len(payload):
            return Survey(width, height, False, b"")
        length, kind = struct.unpack_from(">I4s", payload, position)
        data = memoryview(payload)[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"eXIf":
            orientation = exif_orientation(bytes(data))
        if kind not in kept or position > len(payload):
            continue
        if zlib.crc32(data, zlib.crc32(kind)) != struct.unpack_from(">I", payload, position - 4)[0]:
            raise BadImage("PNG is corrupt: a checksum does not match; send it again")
        kept[kind].append(data)
        if kind == b"IEND":
            if not kept[b"IDAT"] or (colour == 3 and not kept[b"PLTE"]):
                raise BadImage("PNG has no pixels, or no palette for them; save it again")
            chunks = [_png_chunk(kind, b"".join(datas)) for kind, datas in kept.items() if datas]
            return Survey(width, height, True, b"".join([payload[:8], *chunks]), orientation)
    raise BadImage("PNG is cut into too many chunks; save it again")


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def survey_webp(payload: bytes) -> Survey:
    """RIFF chunks (kind, length, data, padded to even); the first is of one of three kinds, and tells the size."""
    riff_length, kind = struct.unpack_from("<I4x4s", payload, 4)
    orientation = 1
    match kind:
        case b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", payload, 26))
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", payload, 21)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            flags, *sides = struct.unpack_from("<B3xHBHB", payload, 20)
            width, height = (sides[0] | sides[1] << 16) + 1, (sides[2] | sides[3] << 16) + 1
            if flags & 8:  # promises EXIF
                orientation = exif_orientation(_webp_chunk(payload, b"EXIF"))
        case _:
            raise BadImage("WebP does not begin with a picture; save it again")
    return Survey(width, height, 8 + riff_length <= len(payload), payload, orientation)


def _webp_chunk(payload: bytes, wanted: bytes) -> bytes:
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(payload):
            break
        kind, length = struct.unpack_from("<4sI", payload, position)
        if kind == wanted:
            return payload[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)
    return b""


def survey_bmp(payload: bytes) -> Survey:
    """A header, then rows padded to four bytes."""
    offset, header = struct.unpack_from("<II", payload, 10)
    compression = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", payload, 18)
    elif header in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", payload, 18)
    else:
        raise BadImage("content begins like BMP, but has no BMP header; save it again")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise BadImage(f"BMP says it has {bits} bits for a pixel; save it again with 24")
    if compression not in (0, 3):  # as it is, or with bit masks
        raise UnsupportedMedia("compressed BMP is not supported; send it uncompressed, or as PNG")
    height = abs(height)  # negative: top row first
    last_row = offset + (width * bits + 31) // 32 * 4 * (height - 1)
    return Survey(width, height, last_row + (width * bits + 7) // 8 <= len(payload), payload)


def survey_gif(payload: bytes) -> Survey:
    """Screen, palette, then blocks that are chains of sub-blocks (length, data), ended by length 0; all after the first
    picture stays behind."""
    width, height, flags = struct.unpack_from("<HHB", payload, 6)
    position = 13 + _gif_palette(flags)
    in_chain = in_picture = False
    for _ in range(MAX_PARTS + len(payload) // 32):
        if position >= len(payload):
            return Survey(width, height, False, b"")
        head = payload[position]
        if in_chain:
            position += 1 + head
            in_chain = head > 0
            if in_picture and not in_chain:
                return Survey(width, height, True, payload[:position] + b";")
        elif head == ord("!"):  # an extension
            position += 2
            in_chain = True
        elif head == ord(","):
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", payload, position + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            position += 11 + _gif_palette(flags)
            in_chain = in_picture = True
        elif head == 0:
            position += 1
        else:
            break
    raise BadImage("GIF has no picture in it; save it again")


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # 42, or 43 for BigTIFF, in both byte orders
TIFF_SINGLE = frozenset((256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323))  # tags of one number
TIFF_NEEDED = TIFF_SINGLE | {258, 273, 279, 320, 324, 325, 338, 339, 347, 529, 530, 531, 532}
TIFF_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000))  # none, fax, LZW, JPEG, deflate, zstd
TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 5: "u8", 7: "u1", 16: "u8"}


class TiffDirectory:
    """The first directory of a TIFF file, which is also the form of EXIF.

    `entries` maps a tag to its entry as it stands in the file.
    """

    def __init__(self, tiff: bytes) -> None:
        if tiff[:4] not in TIFF_MAGIC:
            raise BadImage("TIFF has no header; save it again")
        self.tiff = tiff
        self.order = "<" if tiff[:2] == b"II" else ">"
        big = 43 in tiff[2:4]
        self.count, self.offset, size, self.head = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
        (start,) = struct.unpack_from(self.order + self.offset, tiff, self.head)
        (count,) = struct.unpack_from(self.order + self.count, tiff, start)
        start += struct.calcsize(self.count)
        if start + count * size > len(tiff):
            raise IndexError
        if count > MAX_PARTS:
            raise BadImage("TIFF has too many tags; save it again")
        entries = (tiff[at : at + size] for at in range(start, start + count * size, size))
        self.entries = {int.from_bytes(entry[:2], "little" if self.order == "<" else "big"): entry for entry in entries}

    def numbers(self, tag: int) -> NDArray[np.unsignedinteger]:
        """The numbers of a tag, which stand in its entry where they fit. Fails when they lie beyond the end."""
        entry = self.entries[tag]
        kind, count = struct.unpack_from(f"{self.order}H{self.offset}", entry, 2)
        if kind not in TIFF_TYPES:
            raise BadImage(f"TIFF has a tag {tag} of a type that does not fit; save it again")
        dtype = np.dtype(self.order + TIFF_TYPES[kind])
        field = entry[-struct.calcsize(self.offset) :]
        if count * dtype.itemsize <= len(field):
            return np.frombuffer(field, dtype, count)
        return np.frombuffer(self.tiff, dtype, count, *struct.unpack(self.order + self.offset, field))

    def lean(self, tags: Iterable[int]) -> bytes:
        """The same file with only these tags, in a new directory at its end."""
        entries = [self.entries[tag] for tag in sorted(tags)]
        head = self.tiff[: self.head] + struct.pack(self.order + self.offset, len(self.tiff))
        count = struct.pack(self.order + self.count, len(entries))
        return b"".join([head, self.tiff[len(head) :], count, *entries, bytes(struct.calcsize(self.offset))])


def survey_tiff(payload: bytes) -> Survey:
    """A directory of tags, which say among others where the strips or tiles of pixels lie."""
    directory = TiffDirectory(payload)
    tags = {tag: directory.numbers(tag) for tag in TIFF_NEEDED & directory.entries.keys()}
    if any(tags[tag].size != 1 for tag in TIFF_SINGLE & tags.keys()) or not {256, 257} <= tags.keys():
        raise BadImage("TIFF does not tell its layout; save it again")
    one = {tag: int(tags[tag][0]) for tag in TIFF_SINGLE & tags.keys()}
    width, height = one[256], one[257]
    bits, kinds = (set(tags.get(tag, np.ones(1))[:16].tolist()) for tag in (258, 339))  # one number for each sample
    _check_tiff_pixels(one, bits, kinds)

    tiled = not {322, 323, 324, 325}.isdisjoint(tags)  # one of them is enough for the decoder
    across, down = (one.get(322, 0), one.get(323, 0)) if tiled else (width, min(one.get(278, height), height))
    offsets, lengths = (tags.get(tag, np.empty(0)) for tag in ((324, 325) if tiled else (273, 279)))
    spread = sum(numbers.nbytes for numbers in tags.values())
    if spread > len(payload) or offsets.size > MAX_STRIPS or across * down > max(width * height, 1 << 22):
        raise BadImage("TIFF has too many or too large parts; save it again")
    if min(width, height, across, down, offsets.size) < 1 or lengths.size not in (0, offsets.size):
        raise BadImage("TIFF does not tell where its pixels lie; save it again")
    parts = -(-width // across) * -(-height // down) * (one.get(277, 1) if one.get(284, 1) == 2 else 1)
    ends = offsets.astype(float) + (lengths.astype(float) if lengths.size else 0)
    whole = offsets.size >= parts and bool(ends.max() <= len(payload))
    return Survey(width, height, whole, directory.lean(tags), exif_orientation(payload))


def _check_tiff_pixels(one: dict[int, int], bits: set[float], kinds: set[float]) -> None:
    if one.get(259, 1) not in TIFF_COMPRESSIONS:
        raise UnsupportedMedia("TIFF with this compression is not supported; save it with LZW or deflate, or as PNG")
    if one.get(262, 0) not in (0, 1, 2, 3, 5, 6):  # grey, RGB, palette, CMYK, YCbCr; not LAB, nor a camera's raw data
        raise UnsupportedMedia("TIFF with this colour space is not supported; save it as RGB or grey")
    if kinds != {1} or len(bits) != 1 or not bits <= {1, 2, 4, 8, 12, 16}:
        raise UnsupportedMedia("TIFF with float, signed or 32-bit samples is not supported; save unsigned 8 or 16 bit")


def exif_orientation(exif: bytes) -> int:
    """1..8; what cannot be read, or makes no sense, is 1: upright."""
    try:
        orientation = int(TiffDirectory(exif.removeprefix(b"Exif\0\0")).numbers(274)[0])
    except (BadImage, KeyError, *PAST_THE_END):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


SURVEYS: dict[str, Callable[[bytes], Survey]] = {
    "JPEG": survey_jpeg,
    "PNG": survey_png,
    "WebP": survey_webp,
    "BMP": survey_bmp,
    "TIFF": survey_tiff,
    "GIF": survey_gif,
}
