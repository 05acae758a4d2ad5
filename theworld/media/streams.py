"""Video files as streams: the times of their frames, and the one decoder, which keeps the frames that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from theworld.media.files import check_size, damaged, decoding
from theworld.media.selection import check_length

if TYPE_CHECKING:
    import av

# Codecs of which each packet holds one frame, besides those that encode each frame alone.
ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp8", "vp9", "av1")
TRANSPARENT_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def decode(
    file: BinaryIO, name: str, demuxer: str, indices: Sequence[int], to_end: bool = True
) -> tuple[list[av.VideoFrame], np.ndarray]:
    """The frames of these indices, and the times of all frames that were decoded; without `to_end` up to the last.

    Frames are kept as decoded, which takes half the memory of RGB.
    """
    kept: list[av.VideoFrame] = []
    times: list[float] = []
    num_promised = 0
    waiting: set[int] = set()  # the times of the promised frames that the decoder has not returned yet
    for promised, frames in decoded_packets(file, name, demuxer):
        if promised is not None:
            num_promised += 1
            waiting.add(promised)
        for frame in frames:
            times.append(seconds(frame))
            check_length(len(times), name)
            check_size(frame.width, frame.height, name)
            if frame.is_corrupt:
                raise damaged(name, f"in frame {len(times):,}")
            if len(kept) < len(indices) and len(times) - 1 == indices[len(kept)]:
                kept.append(frame)
            waiting.discard(frame.pts)
            num_promised -= frame.interlaced_frame  # whose second field may have a packet of its own
            if to_end or len(kept) < len(indices):
                continue
            # if an earlier frame is missing, only the whole video shows whether it is lost or its time is wrong
            if frame.pts is None or not any(time < frame.pts for time in waiting):
                return kept, np.sort(times)
    if num_promised > len(times):
        raise damaged(name, f"{num_promised - len(times):,} of its frames cannot be decoded")
    return kept, np.sort(times)


def decoded_packets(file: BinaryIO, name: str, demuxer: str) -> Iterator[tuple[int | None, list[av.VideoFrame]]]:
    """Decodes a video packet by packet: the time of the frame that the packet promises, and the frames that came out.

    A decoder passes over some damage without an error, and no frame comes out. None is promised by codecs that may
    repeat a frame by an empty packet, nor before the first key frame, without which those that follow it cannot be
    decoded, nor if it is hidden.
    """
    start: int | None = None
    with open_stream(file, name, demuxer) as container:
        packets = packets_of(container, name)
        packet: av.Packet | None = None
        decoder: Any = None
        while True:
            with decoding(name):
                packet = next(packets, None)
                if packet is not None and decoder is None:
                    decoder = _decoder(packet.stream)
                # packet by packet and without frame threads, which would pass over damage at the end of a cut file
                frames = [] if packet is None else decoder.decode(packet)
            if packet is None:
                return
            if start is None and packet.is_keyframe:
                start = packet.pts
            yield (packet.pts if _promises_frame(packet, start) else None), frames


def _decoder(stream: av.VideoStream) -> av.CodecContext:
    """The decoder of a stream; FFmpeg's own ones of VP8 and VP9 pass over transparency."""
    import av

    codec = TRANSPARENT_DECODERS.get(stream.codec_context.name)
    if codec is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    return av.CodecContext.create(codec, "r")


def _promises_frame(packet: av.Packet, start: int | None) -> bool:
    codec = packet.stream.codec_context.codec
    if not packet.size or packet.is_discard or not (codec.intra_only or codec.canonical_name in ONE_FRAME_PER_PACKET):
        return False
    is_hidden = codec.canonical_name == "vp8" and not memoryview(packet)[0] & 0x10  # for reference alone
    return packet.pts is not None and start is not None and packet.pts >= start and not is_hidden


def read_times(file: BinaryIO, name: str, demuxer: str) -> tuple[np.ndarray, float | None]:
    """When each frame is that the packets of a video promise, found without decoding them.

    Returns:
        seconds in ascending order, NaN where a packet has no time; and the average frame rate that the file states.
    """
    times, rate = [], None
    with open_stream(file, name, demuxer) as container:
        packets = packets_of(container, name)
        with decoding(name):
            for packet in packets:
                rate = packet.stream.average_rate
                if packet.size and not packet.is_discard:
                    times.append(seconds(packet))
    return np.sort(times), float(rate) if rate else None


def seconds(timed: av.Packet | av.VideoFrame) -> float:
    """The presentation time of a packet or a frame, or NaN."""
    return float("nan") if timed.pts is None or timed.time_base is None else float(timed.pts * timed.time_base)


def open_stream(file: BinaryIO, name: str, demuxer: str) -> av.container.InputContainer:
    import av  # importing av takes 0.1 s, and only reading a video needs it

    file.seek(0)
    with decoding(name):
        return av.open(file, "r", format=demuxer)


def packets_of(container: av.container.InputContainer, name: str) -> Iterator[av.Packet]:
    """The packets of the first video stream that is not the cover image of a sound file; none without such a stream."""
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        return iter(())
    if streams[0].codec_context is not None and streams[0].width:
        check_size(streams[0].width, streams[0].height, name)
    return container.demux(streams[0])
