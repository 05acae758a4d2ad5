"""Whether a video file was written completely, read from the structure of its container.

FFmpeg reads what it finds of a file whose end is missing, and Pillow takes a GIF without its end for a shorter one.
Each check follows the lengths that the container states: a part that reaches beyond the end of the file was cut. A file
cut exactly between two fragments of a live recording states nothing of what is missing, and passes.
"""

from typing import BinaryIO, Literal

# Boxes of MP4 files that hold the video and its index; unknown boxes may be other programs' trailers.
MP4_BOXES = (b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"meta")

SEGMENT = 0x18538067  # the Matroska element that holds everything but the file's header


def is_cut(file: BinaryIO, container: str, num_bytes: int) -> bool:
    """Whether the end of a file is missing.

    Args:
        container: "mp4" (also AVIF), "matroska", "avi" (any RIFF file, also WebP), or "gif".
    """
    check = {"mp4": _mp4_is_cut, "matroska": _matroska_is_cut, "avi": _riff_is_cut, "gif": _gif_is_cut}[container]
    try:
        return check(file, num_bytes)
    finally:
        file.seek(0)


def _number(file: BinaryIO, position: int, size: int, order: Literal["little", "big"] = "big") -> int:
    file.seek(position)
    return int.from_bytes(file.read(size), order)


def _mp4_is_cut(file: BinaryIO, num_bytes: int) -> bool:
    """Follows the boxes: 4 bytes length, 4 bytes type; a length of 1 is followed by 8 bytes, 0 is up to the end."""
    position, last, is_fragmented = 0, b"", False
    while position + 8 <= num_bytes:
        length = _number(file, position, 4)
        kind = file.read(4)
        if length == 1:
            length = _number(file, position + 8, 8)
        if length == 0:
            return False
        if length < 8 or position + length > num_bytes:
            return is_fragmented or kind in MP4_BOXES
        if kind == b"sidx" and position + length + _indexed_bytes(file, position, length) > num_bytes:
            return True
        is_fragmented |= kind == b"moof"
        position, last = position + length, kind
    return last == b"moof" or (is_fragmented and position < num_bytes)


def _indexed_bytes(file: BinaryIO, position: int, length: int) -> int:
    """How many bytes after a segment index it describes."""
    file.seek(position)
    box = file.read(min(length, 2**20))
    first = int.from_bytes(box[24:28], "big") if box[8] == 0 else int.from_bytes(box[28:36], "big")
    entries = box[32:] if box[8] == 0 else box[40:]
    sizes = (int.from_bytes(entries[start : start + 4], "big") for start in range(0, len(entries) - 11, 12))
    return first + sum(size & 0x7FFFFFFF for size in sizes)


def _matroska_is_cut(file: BinaryIO, num_bytes: int) -> bool:
    """Follows the elements: an id and a length of variable size each; the length of a live recording is unknown."""
    position = 0
    while position < num_bytes:
        kind, start = _variable(file, position, keep_marker=True)
        length, content = _variable(file, start, keep_marker=False)
        is_unknown = length == (1 << 7 * (content - start)) - 1
        if content > num_bytes or (not is_unknown and content + length > num_bytes):
            return True
        if kind == SEGMENT and not is_unknown:
            return False  # holds everything else
        position = content if is_unknown else content + length
    return False


def _variable(file: BinaryIO, position: int, keep_marker: bool) -> tuple[int, int]:
    """A number of variable size, which the leading zero bits of its first byte state, and the position after it."""
    first = _number(file, position, 1)
    size = 9 - first.bit_length() if first else 8
    value = _number(file, position, size)
    return (value if keep_marker else value & ((1 << 7 * size) - 1)), position + size


def _riff_is_cut(file: BinaryIO, num_bytes: int) -> bool:
    """Follows the RIFF chunks, of which long AVI files have several."""
    position = 0
    while position + 8 <= num_bytes:
        file.seek(position)
        if file.read(4) != b"RIFF":
            return False
        length = _number(file, position + 4, 4, "little")
        if length in (0, 0xFFFFFFFF):  # of a stream, whose length was never filled in
            return False
        if position + 8 + length > num_bytes:
            return True
        position += 8 + length + length % 2
    return False


def _gif_is_cut(file: BinaryIO, num_bytes: int) -> bool:
    """Follows the blocks up to the trailer."""

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    position = 13 + table(_number(file, 10, 1))
    while position < num_bytes:
        kind = _number(file, position, 1)
        if kind == 0x3B:
            return False
        if kind == 0x2C:  # an image: its place, perhaps its colours, and the size of its codes
            position += 11 + table(_number(file, position + 9, 1))
        elif kind == 0x21:  # an extension: its label
            position += 2
        else:
            return False  # no GIF that we understand: the decoder decides
        while position < num_bytes and (length := _number(file, position, 1)):
            position += 1 + length
        position += 1
    return True
