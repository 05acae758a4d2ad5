"""A video that is damaged or cut is refused, and not read as a shorter one; unusual ones that are complete are read."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.media.encoding import animation, encode_video, one_sentence
from tests.media.test_video import READERS, pixels
from theworld.media.video import LastFrames, SpacedFrames, StridedFrames, Video, load_video

# --- files whose end is missing ---


def fragmented(frames: np.ndarray, **options: str) -> bytes:
    return encode_video(frames, movflags="frag_every_frame+empty_moov", **options)


CUT: dict[str, Callable[[np.ndarray], bytes]] = {
    "MP4": encode_video,
    "MP4, index first": lambda frames: encode_video(frames, movflags="faststart"),
    "MP4, fragmented": fragmented,
    "MP4, DASH": lambda frames: encode_video(frames, movflags="dash+frag_every_frame+global_sidx"),
    "MOV": lambda frames: encode_video(frames, "mov"),
    "WebM": lambda frames: encode_video(frames, "webm", "libvpx"),
    "WebM, live": lambda frames: encode_video(frames, "webm", "libvpx", live="1"),
    "Matroska": lambda frames: encode_video(frames, "matroska"),
    "AVI": lambda frames: encode_video(frames, "avi", "mpeg4"),
    "AVI of JPEG": lambda frames: encode_video(frames, "avi", "mjpeg", "yuvj420p"),
    "GIF": lambda frames: animation(frames, "GIF"),
    "APNG": lambda frames: animation(frames, "PNG"),
    "WebP": lambda frames: animation(frames, "WEBP"),
    "AVIF": lambda frames: animation(frames, "AVIF"),
}


@pytest.mark.parametrize("form", CUT)
def test_a_video_whose_end_was_lost_is_not_taken_for_a_shorter_one(
    form: str, noise: np.ndarray, tmp_path: Path
) -> None:
    content = CUT[form](noise)
    assert load_video(content).num_frames == 12
    for share in (0.3, 0.5, 0.7, 0.9):
        with pytest.raises(ValueError, match=r"damaged or cut short|holds no images|not a video") as error:
            load_video(content[: int(len(content) * share)])
        one_sentence(error)
    path = tmp_path / ("cut.gif" if form == "GIF" else "cut.mp4")
    path.write_bytes(content[: len(content) * 8 // 10])
    for through in READERS.values():
        with pytest.raises(ValueError, match="damaged or cut short") as error:
            through(path)
        one_sentence(error)


def test_a_gif_that_was_cut_between_two_frames_is_refused(noise: np.ndarray) -> None:
    content = animation(noise, "GIF")
    assert content[-1] == 0x3B
    with pytest.raises(ValueError, match="its end is missing"):
        load_video(content[:-1])


def test_bytes_after_the_end_do_no_harm(clip: np.ndarray) -> None:
    """Cameras append notes of their own."""
    for content in (
        encode_video(clip),
        animation(clip, "GIF"),
        encode_video(clip, "matroska"),
        encode_video(clip, "mov"),
    ):
        for trailer in (b"\0" * 100, b"camera notes: 12 of May, 3 pm"):
            assert load_video(content + trailer).num_frames == 7


def test_a_clip_cut_without_encoding_it_again_has_the_frames_that_it_shows(noise: np.ndarray) -> None:
    """An MP4 edit list hides the first frames; its header counts them, and no frame is made up in their place."""
    content = bytearray(encode_video(noise))
    edits = content.index(b"elst")
    entries = int.from_bytes(content[edits + 8 : edits + 12], "big")
    assert entries == 1
    timescale_at = content.index(b"mdhd") + 4 + 12
    timescale = int.from_bytes(content[timescale_at : timescale_at + 4], "big")
    start = int.from_bytes(content[edits + 16 : edits + 20], "big")
    content[edits + 16 : edits + 20] = (start + timescale * 4 // 8).to_bytes(4, "big")  # four frames later
    whole, cut = load_video(encode_video(noise)), load_video(bytes(content))
    assert 0 < cut.num_frames < 12
    np.testing.assert_array_equal(pixels(cut), pixels(whole)[-cut.num_frames :])
    spaced = Video(bytes(content), SpacedFrames(3)).load()
    np.testing.assert_array_equal(pixels(spaced)[-1], pixels(whole)[-1])


# --- files whose middle is damaged ---

# Each loses `size` bytes of a file from `start` on.
DAMAGE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "zeros": lambda content, start, size: content[:start] + bytes(size) + content[start + size :],
    "noise": lambda content, start, size: content[:start] + NOISE[:size] + content[start + size :],
    "lost": lambda content, start, size: content[:start] + content[start + size :],
}
NOISE = np.random.default_rng(1).bytes(10_000)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", CUT)
def test_a_video_whose_middle_is_damaged_is_not_taken_for_a_shorter_one(
    form: str, damage: str, noise: np.ndarray, tmp_path: Path
) -> None:
    """Damage inside one frame may leave all of them readable."""
    content = CUT[form](noise)
    path = tmp_path / ("damaged.gif" if form == "GIF" else "damaged.mp4")
    refused = 0
    for share in (0.3, 0.4, 0.5, 0.6, 0.7):
        path.write_bytes(DAMAGE[damage](content, int(share * len(content)), len(content) // 8))
        try:
            assert load_video(path).num_frames == 12
        except ValueError:
            refused += 1
            for through in READERS.values() if refused == 1 else ():
                with pytest.raises(ValueError, match="damaged or cut short") as error:
                    through(path)
                assert path.name in one_sentence(error)
    assert refused >= 3


def packets(content: bytes) -> list[tuple[int, int]]:
    """Where the packets of a video begin in its file, and their sizes."""
    import av

    with av.open(io.BytesIO(content)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("number", [1, 4, 11])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_frame_that_the_decoder_passes_over_is_missed(container: str, number: int, noise: np.ndarray) -> None:
    """The decoder reports nothing if a slice is taken for the end of a sequence."""
    content = bytearray(encode_video(noise, container, codec_options={"bf": "0"}))
    start = packets(bytes(content))[number][0]
    slice_type = content.index(0x41, start)
    assert slice_type < start + 20
    content[slice_type] = 0x4A
    for selection in (LastFrames(2), SpacedFrames(3), StridedFrames(), StridedFrames(2, 3, 4)):
        with pytest.raises(ValueError, match=r"damaged or cut short .1 of its frames cannot be decoded") as error:
            Video(bytes(content), selection).load()
        one_sentence(error)


def test_damage_that_only_the_decoder_notices_is_one_sentence(noise: np.ndarray) -> None:
    content = bytearray(encode_video(noise, "avi", "png", "rgb24"))
    start, size = packets(bytes(content))[5]
    content[start + size // 2] ^= 0xFF
    with pytest.raises(ValueError, match="damaged or cut short") as error:
        load_video(bytes(content))
    one_sentence(error)


# --- unusual files that are complete ---


def cut_before(content: bytes, first: int, container: str) -> bytes:
    """The packets from `first` on, in a file of their own."""
    import av

    with (
        av.open(io.BytesIO(content)) as source,
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[first:-1]:  # the last one is empty
            packet.stream = stream
            output.mux(packet)
        output.close()
        return Path(file.name).read_bytes()


OPEN_GOP = {"x264-params": "open-gop=1:keyint=4:bframes=2:b-adapt=0:scenecut=0"}
LATE = [0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 42, 60]
COMPLETE: dict[str, tuple[int, Callable[[np.ndarray], bytes]]] = {
    "MP4 of unequal times": (12, lambda frames: encode_video(frames, times=LATE)),
    "Matroska of unequal times": (12, lambda frames: encode_video(frames, "matroska", times=LATE)),
    "AVI of unequal times": (12, lambda frames: encode_video(frames, "avi", "mjpeg", "yuvj420p", times=LATE)),
    "MP4 that starts late": (12, lambda frames: encode_video(frames, times=range(50, 62))),
    "MP4 that starts before 0": (9, lambda frames: encode_video(frames, times=range(-3, 9), codec_options={"bf": "0"})),
    "Matroska that starts before 0": (12, lambda frames: encode_video(frames, "matroska", times=range(-3, 9))),
    "AVI with B-frames": (12, lambda frames: encode_video(frames, "avi", codec_options={"bf": "3"})),
    "hidden frames": (
        12,
        lambda frames: encode_video(
            frames, "webm", "libvpx", codec_options={"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}
        ),
    ),
    "open groups": (12, lambda frames: encode_video(frames, "matroska", codec_options=OPEN_GOP)),
    "open groups, cut": (
        8,
        lambda frames: cut_before(encode_video(frames, "matroska", codec_options=OPEN_GOP), 2, "matroska"),
    ),
    "interlaced": (12, lambda frames: encode_video(frames, codec_options={"x264-params": "interlaced=1"})),
    "one frame": (1, lambda frames: encode_video(frames[:1])),
}


@pytest.mark.parametrize("form", COMPLETE)
def test_an_unusual_video_that_is_complete_is_read(form: str, noise: np.ndarray) -> None:
    num_frames, make = COMPLETE[form]
    video = load_video(make(noise))
    assert video.num_frames == num_frames
    strided = Video(make(noise), StridedFrames(0, 2)).load()
    np.testing.assert_array_equal(pixels(strided), pixels(video)[::2])
    np.testing.assert_array_equal(pixels(Video(make(noise), StridedFrames(0, 1, 5)).load()), pixels(video)[:5])
