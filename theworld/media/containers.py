"""Whether a video file is complete, read from the structure of its container.

FFmpeg reads what it finds of a damaged file: it passes over what it does not understand, and the frames there are
missing without an error. Pillow takes a GIF without its end for a shorter one. Each check follows the lengths that the
container states: an element that reaches beyond its parent was damaged, and one that reaches beyond the file was cut. A
file cut exactly between two fragments of a live recording states nothing of what is missing, and passes.
"""

from typing import BinaryIO, Literal

CUT = "its end is missing"

# Boxes of MP4 files that hold the video and its index; unknown boxes may be other programs' trailers.
MP4_BOXES = (b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"meta")
# Those that hold nothing but the boxes of an index.
MP4_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")

# Matroska: everything but the file's header; a cluster of blocks; a block with its properties
SEGMENT, CLUSTER, BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
MATROSKA_PARENTS = (SEGMENT, CLUSTER, BLOCK_GROUP)
BLOCKS = (0xA3, 0xA1)  # which begin with the number of their track
TRACKS, TRACK, TRACK_NUMBER = 0x1654AE6B, 0xAE, 0xD7
# What these hold, and the header.
MATROSKA_ELEMENTS = {
    *(0x1A45DFA3, SEGMENT, 0xEC, 0xBF),  # header; a void and a checksum may be anywhere
    *(0x114D9B74, 0x1549A966, TRACKS, 0x1043A770, 0x1C53BB6B, 0x1941A469, 0x1254C367, CLUSTER),  # of a segment
    *(0xE7, 0xA7, 0xAB, 0x5854, 0xAF, *BLOCKS, BLOCK_GROUP),  # of a cluster
    *(0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8),  # of a block group
}


def find_damage(file: BinaryIO, container: str, num_bytes: int) -> str | None:
    """What is wrong with the structure of a file, as the end of a sentence, or None.

    Args:
        container: "mp4" (also AVIF), "matroska", "avi" (any RIFF file, also WebP), or "gif".
    """
    check = {"mp4": _mp4_damage, "matroska": _matroska_damage, "avi": _riff_damage, "gif": _gif_damage}[container]
    try:
        return check(file, num_bytes)
    finally:
        file.seek(0)


def _number(file: BinaryIO, position: int, size: int, order: Literal["little", "big"] = "big") -> int:
    file.seek(position)
    return int.from_bytes(file.read(size), order)


def _broken(position: int) -> str:
    return f"its structure is broken at byte {position:,}"


def _is_code(kind: bytes) -> bool:
    """Whether four bytes can name a box or a chunk; some of QuickTime's begin with ©."""
    return all(32 <= byte < 127 or byte == 0xA9 for byte in kind)


def _leave(position: int, ends: list[int], shortest: int = 1) -> int:
    """Leaves the parents that end here, or in which no further element fits, and returns the position after them."""
    while len(ends) > 1 and position + shortest > ends[-1]:
        position = ends.pop()
    return position


def _mp4_damage(file: BinaryIO, num_bytes: int) -> str | None:
    """Follows the boxes: 4 bytes length, 4 bytes type; a length of 1 is followed by 8 bytes, 0 is up to the end."""
    position, last, is_fragmented, ends = 0, b"", False, [num_bytes]
    while position + 8 <= num_bytes:
        length = _number(file, position, 4)
        kind = file.read(4)
        is_top = len(ends) == 1
        if length == 1:
            length = _number(file, position + 8, 8)
        if is_top and length == 0 and (kind == b"mdat" or not is_fragmented):
            return None
        if is_top and (length < 8 or position + length > num_bytes):
            return CUT if is_fragmented or kind in MP4_BOXES else None
        if length < 8 or position + length > ends[-1] or not (_is_code(kind) or (is_top and not is_fragmented)):
            return _broken(position)
        if kind == b"sidx" and position + length + _indexed_bytes(file, position, length) > num_bytes:
            return CUT
        if is_top:
            is_fragmented |= kind == b"moof"
            last = kind
        if kind in MP4_PARENTS:
            ends.append(position + length)
            length = 8
        position = _leave(position + length, ends, shortest=8)
    return CUT if last == b"moof" or (is_fragmented and position < num_bytes) else None


def _indexed_bytes(file: BinaryIO, position: int, length: int) -> int:
    """How many bytes after a segment index it describes."""
    file.seek(position)
    box = file.read(min(length, 2**20))
    first = int.from_bytes(box[24:28], "big") if box[8] == 0 else int.from_bytes(box[28:36], "big")
    entries = box[32:] if box[8] == 0 else box[40:]
    sizes = (int.from_bytes(entries[start : start + 4], "big") for start in range(0, len(entries) - 11, 12))
    return first + sum(size & 0x7FFFFFFF for size in sizes)


def _matroska_damage(file: BinaryIO, num_bytes: int) -> str | None:
    """Follows the elements: an id and a length of variable size each; the length of a live recording is unknown."""
    position, ends, tracks = 0, [num_bytes], set[int]()
    while position < ends[0]:
        kind, start = _variable(file, position, keep_marker=True)
        length, content = _variable(file, start, keep_marker=False)
        end = ends[-1] if length == (1 << 7 * (content - start)) - 1 else content + length
        if content > num_bytes or (end > num_bytes and kind in MATROSKA_ELEMENTS):
            return CUT
        if kind not in MATROSKA_ELEMENTS or end > ends[-1]:
            return _broken(position)
        if kind == TRACKS:
            tracks = _track_numbers(file, content, end)
        if kind in BLOCKS and _variable(file, content, keep_marker=False)[0] not in tracks:
            return _broken(content)
        if kind == SEGMENT:
            ends = [end]  # what follows it belongs to other programs
        elif kind in MATROSKA_PARENTS:
            ends.append(end)
        position = _leave(content if kind in MATROSKA_PARENTS else end, ends)
    return None


def _track_numbers(file: BinaryIO, position: int, end: int) -> set[int]:
    numbers = set()
    while position < end:
        kind, start = _variable(file, position, keep_marker=True)
        length, content = _variable(file, start, keep_marker=False)
        if kind == TRACK_NUMBER:
            numbers.add(_number(file, content, length))
        position = content if kind == TRACK else content + length
    return numbers


def _variable(file: BinaryIO, position: int, keep_marker: bool) -> tuple[int, int]:
    """A number of variable size, which the leading zero bits of its first byte state, and the position after it."""
    first = _number(file, position, 1)
    size = 9 - first.bit_length() if first else 8
    value = _number(file, position, size)
    return (value if keep_marker else value & ((1 << 7 * size) - 1)), position + size


def _riff_damage(file: BinaryIO, num_bytes: int) -> str | None:
    """Follows the chunks: 4 bytes type, 4 bytes length, an even number of bytes; long AVI files have several RIFFs."""
    position, ends = 0, [num_bytes]
    while position + 8 <= num_bytes:
        file.seek(position)
        kind = file.read(4)
        length = _number(file, position + 4, 4, "little")
        if len(ends) == 1 and kind != b"RIFF":
            return None  # what follows belongs to other programs
        is_parent = kind in (b"RIFF", b"LIST")
        is_unknown = is_parent and length in (0, 0xFFFFFFFF)  # of a stream, whose length was never filled in
        end = ends[-1] if is_unknown else position + 8 + length
        if end > num_bytes and (is_parent or _is_code(kind)):
            return CUT
        if not _is_code(kind) or end > ends[-1]:
            return _broken(position)
        if is_parent:
            ends.append(end)
            position += 12  # after the type of what it holds
        else:
            position = end + length % 2
        position = _leave(position, ends, shortest=8)
    return None


def _gif_damage(file: BinaryIO, num_bytes: int) -> str | None:
    """Follows the blocks up to the trailer."""

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    position = 13 + table(_number(file, 10, 1))
    while position < num_bytes:
        kind = _number(file, position, 1)
        if kind == 0x3B:
            return None
        if kind == 0x2C:  # an image: its place, perhaps its colours, and the size of its codes
            position += 11 + table(_number(file, position + 9, 1))
        elif kind == 0x21:  # an extension: its label
            position += 2
        elif kind == 0:  # between blocks; some programs write one too many
            position += 1
            continue
        else:
            return _broken(position)
        while position < num_bytes and (length := _number(file, position, 1)):
            position += 1 + length
        position += 1
    return CUT
