"""Every form of video gives the same frames, in bounded memory, and what cannot be read becomes one sentence."""

from __future__ import annotations

import gc
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import commands
from tests.media.encoding import animation, encode, encode_video, one_sentence
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.multiple_choice import load_questions
from theworld.evaluation.tasks import Item
from theworld.media import selection, streams
from theworld.media import video as video_module
from theworld.media.animations import num_frames_of_image
from theworld.media.export import save_rollout
from theworld.media.images import load_image
from theworld.media.selection import Timeline
from theworld.media.video import (
    LastFrames,
    SpacedFrames,
    StridedFrames,
    Video,
    frame_paths,
    load_video,
)


def steps(num_frames: int, size: int = 16) -> list[np.ndarray]:
    """Frames whose grey value tells their index, up to 25."""
    return [np.full((size, size, 3), 10 * number, dtype=np.uint8) for number in range(num_frames)]


def pixels(video: Video) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in video.frames])


def indices(video: Video) -> list[int]:
    """The indices of selected frames of `steps`."""
    return [round(np.asarray(frame).mean() / 10) for frame in video.load().frames]


# --- the forms of a video ---


def test_every_form_of_a_video_gives_the_same_frames(clip: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "clip.png").write_bytes(animation(clip, "PNG"))
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)  # (F, C, H, W)
    forms = {
        "NumPy": clip,
        "NumPy, float": clip / 255,
        "torch uint8": tensor,
        "torch float": tensor / 255,
        "list of arrays": list(clip),
        "tuple of tensors": tuple(tensor),
        "list of PIL": [Image.fromarray(frame) for frame in clip],
        "list of files": [encode(Image.fromarray(frame)) for frame in clip],
        "APNG, a path": tmp_path / "clip.png",
        "APNG, a path as text": str(tmp_path / "clip.png"),
        "WebP, bytes": animation(clip, "WEBP"),
        "folder": tmp_path / "frames",
        "a video that is not loaded": Video(clip, StridedFrames()),
    }
    for form, source in forms.items():
        video = load_video(source)
        assert video.num_frames == 7, form
        np.testing.assert_array_equal(pixels(video), clip, err_msg=form)
        assert load_video(video) is video
        if isinstance(source, Video):
            continue
        kept = load_video(source, keep=3)
        assert kept.num_frames == 7, form
        np.testing.assert_array_equal(pixels(kept), clip[-3:], err_msg=form)
        np.testing.assert_array_equal(np.asarray(kept.now), clip[-1])
        for choice in (SpacedFrames(3), StridedFrames(1, 2, 2)):
            np.testing.assert_array_equal(
                pixels(Video(source, choice).load()), clip[list(choice.indices(Timeline("a clip", 7)))], err_msg=form
            )


@pytest.mark.parametrize("extension", ["gif", "mp4"])
def test_what_this_package_writes_it_reads_as_a_video(clip: np.ndarray, tmp_path: Path, extension: str) -> None:
    path = save_rollout(clip, tmp_path / f"clip.{extension}", scale=1, hold=0)
    video = load_video(path)
    assert video.num_frames == 7
    assert np.abs(pixels(video).astype(int) - clip).mean() < 7


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "AVIF"])
def test_an_image_is_a_video_of_one_frame(clip: np.ndarray, file_format: str) -> None:
    image = Image.fromarray(clip[0])
    for source in (clip[0], encode(image, file_format), [image]):
        video = load_video(source)
        assert (video.num_frames, video.now.size) == (1, image.size)


def test_a_video_is_decoded_when_it_is_loaded_and_only_the_copy_keeps_its_frames(tmp_path: Path) -> None:
    video = Video(tmp_path / "later.mp4", SpacedFrames(2))
    (tmp_path / "later.mp4").write_bytes(encode_video(steps(5)))
    loaded = video.load()
    (tmp_path / "later.mp4").unlink()
    assert (indices(loaded), loaded.num_frames, loaded == video) == ([0, 4], 2, True)
    assert loaded.load() is loaded
    with pytest.raises(FileNotFoundError):
        _ = video.frames


# --- which frames are chosen ---


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4")])
def test_the_frames_that_are_asked_for_are_read(container: str, codec: str) -> None:
    """The evenly spaced ones are those of the published results: NumPy's linspace, rounded."""
    content = encode_video(steps(24), container, codec)
    assert indices(Video(content, SpacedFrames(8))) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert indices(Video(content, SpacedFrames(30))) == list(range(24))
    assert indices(Video(content, LastFrames(3))) == [21, 22, 23]
    assert indices(Video(content, StridedFrames(2, 5))) == [2, 7, 12, 17, 22]
    assert indices(Video(content, StridedFrames(2, 5, 2))) == [2, 7]
    with pytest.raises(ValueError, match="has 24 frames, so there is no frame 24") as error:
        Video(content, StridedFrames(24)).load()
    one_sentence(error)


@pytest.mark.parametrize("num_frames", [8, 9, 200, 20_000])
def test_evenly_spaced_frames_include_the_first_and_the_last(num_frames: int) -> None:
    chosen = SpacedFrames(8).indices(Timeline("a video", num_frames))
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (8, 0, num_frames - 1)
    assert list(chosen) == np.linspace(0, num_frames - 1, 8).round().astype(int).tolist()


def test_a_wrong_number_of_packets_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_video(steps(24))
    for wrong in (5, 40):
        monkeypatch.setattr(video_module, "read_times", lambda *_, count=wrong: (np.arange(count) / 8.0, 8.0))
        assert indices(Video(content, SpacedFrames(8))) == [0, 3, 7, 10, 13, 16, 20, 23]
        assert indices(Video(content, LastFrames(2))) == [22, 23]


def test_reading_stops_after_the_last_frame_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    packets = streams.decoded_packets

    def counted(*arguments: Any) -> Any:
        for promised, frames in packets(*arguments):
            decoded.extend(1 for _ in frames)
            yield promised, frames

    monkeypatch.setattr(streams, "decoded_packets", counted)
    assert indices(Video(encode_video(steps(24)), StridedFrames(2, 3, 2))) == [2, 5]
    assert len(decoded) == 6


def test_the_frames_of_a_folder_have_one_size(tmp_path: Path) -> None:
    for number, width in enumerate((4, 4, 5)):
        Image.new("RGB", (width, 4)).save(tmp_path / f"{number}.png")
    assert len(Video(tmp_path, until="1").frames) == 2
    with pytest.raises(ValueError, match=f"'{tmp_path}' has frames of 4 x 4 and 5 x 4 pixels"):
        load_video(tmp_path)


def test_frames_of_a_folder_are_in_natural_order(tmp_path: Path) -> None:
    """0, 1, 2, … 10, 11, and not 0, 1, 10, 11, 2: in the order of letters, frames of the future would count as seen."""
    for number, frame in enumerate(steps(12)):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert indices(Video(tmp_path, StridedFrames())) == list(range(12))
    assert indices(Video(tmp_path, SpacedFrames(4), until="frame9")) == [0, 3, 6, 9]
    assert indices(Video(tmp_path, StridedFrames(), after="frame9")) == [10, 11]
    padded = [tmp_path / "padded" / f"{number:03}.jpg" for number in range(12)]
    padded[0].parent.mkdir()
    for path in padded:
        path.touch()
    assert frame_paths(padded[0].parent) == padded
    with pytest.raises(ValueError, match="has no frame 'frame99' among its 12 frames") as error:
        frame_paths(tmp_path, until="frame99")
    one_sentence(error)


def test_frames_of_a_folder_have_one_size(tmp_path: Path) -> None:
    for number, size in enumerate((16, 16, 8)):
        Image.new("RGB", (size, 16)).save(tmp_path / f"{number}.png")
    assert len(Video(tmp_path, StridedFrames(), until="1").frames) == 2
    with pytest.raises(ValueError, match="has frames of 8 x 16 and 16 x 16 pixels: the frames of a video") as error:
        Video(tmp_path, StridedFrames()).load()
    assert str(tmp_path) in one_sentence(error)


# --- memory ---

MEASURE = """
import json, re, sys
from pathlib import Path
import av, PIL.Image
from theworld.datasets.jsonl import JsonlDataset
from theworld.datasets.multiple_choice import load_questions

def peak():  # of this process alone; `ru_maxrss` includes that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak begins with what is in memory now
peaks = [peak()]
for name in sys.argv[1:]:
    for sample in JsonlDataset(f"{name}/train.jsonl"):
        assert len(sample.future_frames.load_future(16, 64).frames) == 64
    for question in load_questions(f"{name}/test.jsonl"):
        frames = [question.images.load().frames, question.future.load().frames]
        assert [len(f) for f in frames] == [8, 128]
    peaks.append(peak())
print(json.dumps(peaks))
"""


def long_avi(num_frames: int) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(steps(1, 32)[0], format="rgb24"))
        for number in range(num_frames):  # every frame of MJPEG stands alone, so that one encoded frame will do
            copy = av.Packet(bytes(packet))
            copy.pts = copy.dts = number
            copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, stream, True
            output.mux(copy)
    return file.getvalue()


def long_gif(num_frames: int) -> bytes:
    content = animation([np.full((32, 32, 3), grey, np.uint8) for grey in (0, 99, 199)], "GIF")
    second, third = (index for index in range(len(content)) if content.startswith(b"\x21\xf9\x04", index))
    return content[:second] + content[second:third] * (num_frames - 1) + b";"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux states the peak memory of a process")
def test_memory_does_not_depend_on_the_length_of_a_video(tmp_path: Path) -> None:
    """In JSON Lines and in a multiple-choice file; decoded, each long video takes 61 MB."""
    for num_frames in (200, 20_000):
        folder = tmp_path / str(num_frames)
        folder.mkdir()
        names = {"clip.avi": long_avi(num_frames), "clip.gif": long_gif(num_frames)}
        questions, samples = [], []
        for name, content in names.items():
            (folder / name).write_bytes(content)
            questions.append({"video": name, "question": "What?", "choices": ["a", "b"], "answer": "A"})
            questions[-1]["future_frames"] = name
            samples.append({"video": name, "now": num_frames - 70, "text": "What?", "label": "a"})
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, questions)))
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, samples)))
    done = commands.run("-c", MEASURE, tmp_path / "200", tmp_path / "20000")
    assert done.returncode == 0, done.stderr
    imported, short, long = json.loads(done.stdout)
    assert long - imported < 1.5 * (short - imported), f"{imported}, {short}, {long} KiB"


def test_decoded_frames_are_freed_at_once(clip: np.ndarray) -> None:
    """And not by the garbage collector, which runs long after the memory is full of frames."""
    content = encode_video([*clip] * 5)
    load_video(content)  # imports
    gc.collect()
    assert load_video(content).num_frames == 35
    assert gc.collect() < 35


# --- limits ---


def test_a_long_video_is_read_to_its_end_and_a_longer_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selection.MAX_FRAMES > 30 * 3600, "an hour at 30 frames per second"
    monkeypatch.setattr(selection, "MAX_FRAMES", 20)
    frames = [np.full((16, 16, 3), 10 * number, np.uint8) for number in range(21)]
    for make in (list, np.stack, lambda f: animation(f, "GIF"), encode_video):
        limit = load_video(make(frames[:-1]), keep=2)
        assert (limit.num_frames, len(limit.frames), indices(limit)) == (20, 2, [18, 19])
        for choice in (LastFrames(2), SpacedFrames(2)):
            with pytest.raises(ValueError, match="has more than 20 frames: cut it") as error:
                Video(make(frames), choice).load()
            one_sentence(error)


@pytest.mark.parametrize("through", ["--video", "JSON Lines", "multiple choice"])
def test_large_frames_are_refused_before_they_are_decoded(
    through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theworld.media.files.MAX_PIXELS", 32 * 32 - 1)
    large, small = steps(3, 32), steps(3, 16)
    for name, make in (("clip.mp4", encode_video), ("clip.gif", lambda frames: animation(frames, "GIF"))):
        (tmp_path / name).write_bytes(make(small))
        assert indices(READERS[through](tmp_path / name)) == [0, 1, 2]
        (tmp_path / name).write_bytes(make(large))
        with monkeypatch.context() as patch:
            patch.setattr("av.packet.Packet.decode", None, raising=False)
            with pytest.raises(ValueError, match="make it smaller") as error:
                READERS[through](tmp_path / name)
        one_sentence(error)


# --- one gate: the same for the command line, for training and for evaluation ---


def from_jsonl(path: Path) -> Video:
    (path.parent / "train.jsonl").write_text(json.dumps({"video": path.name, "text": "What?", "label": "a"}))
    (sample,) = JsonlDataset(path.parent / "train.jsonl")
    return Video([sample.images[0], *sample.future_frames.load().frames])


def from_multiple_choice(path: Path) -> Video:
    row = {"video": path.name, "question": "What?", "choices": ["a", "b"], "answer": "A", "future_frames": path.name}
    (path.parent / "test.jsonl").write_text(json.dumps(row))
    (question,) = load_questions(str(path.parent / "test.jsonl"))
    item = Item(question.id, "f", "t", "choice", question.images, question.prompt, "A", future=question.future)
    assert len(item.true_frames()) == 1 + question.future.load().num_frames
    return Video(item.images())


READERS: dict[str, Callable[[Path], Video]] = {
    "--video": load_video,
    "JSON Lines": from_jsonl,
    "multiple choice": from_multiple_choice,
}


@pytest.mark.parametrize("through", READERS)
def test_every_way_reads_the_same_frames(through: str, tmp_path: Path) -> None:
    """Grey, transparent and rotated videos included."""
    grey = animation([frame[..., 0] for frame in steps(7)], "GIF")
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 8, 16))
    turned = clear.transpose(Image.Transpose.ROTATE_180)
    transparent = encode(clear, "GIF", save_all=True, append_images=[turned], disposal=2)
    for name, content in (("grey.gif", grey), ("grey.mp4", encode_video(steps(7)))):
        (tmp_path / name).write_bytes(content)
        assert indices(READERS[through](tmp_path / name)) == list(range(7))
    (tmp_path / "transparent.gif").write_bytes(transparent)
    frames = pixels(READERS[through](tmp_path / "transparent.gif").load())
    assert frames[:, 4, 4].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert frames[:, 4, 12].tolist() == [[255, 255, 255], [200, 0, 0]]
    (tmp_path / "turned.mp4").write_bytes(rotated(encode_video(steps(7), size=(16, 24))))
    assert READERS[through](tmp_path / "turned.mp4").load().now.size == (16, 24)


def rotated(content: bytes, turn: tuple[float, ...] = (0, 1, -1, 0)) -> bytes:
    """An MP4 whose track header turns its frames: by default those of a phone that was held upright.

    Args:
        turn: a, b, c, d of the header's matrix, which shows the pixel (x, y) at (a x + c y, b x + d y).
    """
    turned = bytearray(content)
    matrix = turned.index(b"tkhd") + 4 + 40  # after the times, the layer and the volume
    assert turned[matrix : matrix + 4] == (1 << 16).to_bytes(4, "big")
    a, b, c, d = (round(number * (1 << 16)) for number in turn)
    entries = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in entries)
    return bytes(turned)


@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        ((1, 0, 0, 1), lambda frames: frames),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),  # mirrored, as a front camera's
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((-1, 0, 0, -1), lambda frames: frames[:, ::-1, ::-1]),
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, axes=(1, 2))),  # clockwise, as a phone's
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, axes=(1, 2))),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda frames: frames[:, ::-1, ::-1].swapaxes(1, 2)),
        ((0, 0, 0, 0), lambda frames: frames),  # of programs that leave the matrix out
    ],
)
def test_videos_are_turned_and_mirrored_as_players_do(clip: np.ndarray, turn: Any, shown: Any) -> None:
    content = encode_video(clip)
    frames = pixels(load_video(rotated(content, turn)))
    np.testing.assert_array_equal(frames, shown(pixels(load_video(content))))


def test_a_video_that_is_turned_by_no_quarter_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"turned by -?45°, and only quarter turns are read") as error:
        load_video(rotated(encode_video(clip), (0.7071, 0.7071, -0.7071, 0.7071)))
    one_sentence(error)


def test_transparent_videos_are_laid_over_white() -> None:
    frame = np.zeros((16, 16, 4), np.uint8)
    frame[..., 0], frame[:, :8, 3] = 200, 255
    for options in (("mov", "png", "rgba"), ("webm", "libvpx-vp9", "yuva420p")):
        shown = pixels(load_video(encode_video([frame] * 2, *options)))[:, 4, [2, 13]]
        np.testing.assert_allclose(shown, [[[200, 0, 0], [255, 255, 255]]] * 2, atol=2)


@pytest.mark.parametrize("through", READERS)
def test_a_playlist_does_not_open_other_files(through: str, tmp_path: Path, clip: np.ndarray) -> None:
    (tmp_path / "neighbour.mp4").write_bytes(encode_video(clip))
    for number, content in enumerate(
        (b"#EXTM3U\n#EXTINF:1\nneighbour.mp4\n", b"ffconcat version 1.0\nfile neighbour.mp4")
    ):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a video that can be read: pass one of MP4") as error:
            READERS[through](path)
        one_sentence(error)


# --- still images in MP4's container ---


def heif(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a HEIF file, which no decoder reads further."""
    brands = brand + b"\0\0\0\0" + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + b"\0\0\0\x08meta" + b"\0" * 64


@pytest.mark.parametrize("read", [load_image, load_video])
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"])
def test_a_heic_photo_is_an_image_and_the_error_says_how_to_convert_it(
    read: Callable[[bytes], Any], brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(ValueError, match="is a HEIC image, which cannot be read here: convert it to JPEG") as error:
        read(heif(brand, b"heic", b"mif1"))
    one_sentence(error)


def test_other_stills_are_no_videos_either() -> None:
    for content, kind in ((heif(b"crx "), "CR3"), (heif(b"avif", b"mif1"), "AVIF"), (heif(b"mif1", b"avif"), "AVIF")):
        for read in (load_image, load_video):
            with pytest.raises(ValueError, match=f"is an? {kind} image|damaged or cut short"):
                read(content)


def test_an_avif_photo_is_an_image_and_a_video_with_any_other_brand_a_video(clip: np.ndarray) -> None:
    photo = encode(Image.fromarray(clip[0]), "AVIF")
    assert load_image(photo).size == load_video(photo).now.size == (24, 16)
    for brand in (b"isom", b"mp42", b"qt  ", b"3gp5", b"XAVC"):
        content = encode_video(clip)
        assert content[4:8] == b"ftyp"
        assert load_video(content[:8] + brand + content[12:]).num_frames == 7
    with pytest.raises(ValueError, match="is a video and was passed as an image"):
        load_image(encode_video(clip))


def test_heic_is_read_if_pillow_heif_is_installed(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its plug-in: the photo's bytes follow the header."""
    from PIL import ImageFile

    photo = heif(b"heic")

    class Plugin(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            inner = Image.open(io.BytesIO(self.fp.read()[len(photo) :]))
            self._mode, self._size, self.tile = inner.mode, inner.size, []
            self.im = inner.convert("RGB").im

        def load(self) -> Any:
            return None

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (Plugin, lambda prefix: prefix[4:8] == b"ftyp"))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    content = photo + encode(Image.fromarray(clip[0]))
    np.testing.assert_array_equal(np.asarray(load_image(content)), clip[0])
    assert load_video(content).num_frames == 1


# --- what cannot be read ---


def test_videos_that_cannot_be_read(clip: np.ndarray, tmp_path: Path) -> None:
    content = encode_video(clip)
    contents = {
        "empty": (b"", "is empty"),
        "text": (b"not a video", "is not a video that can be read: pass one of MP4"),
        "brand": (b"\0\0\0\x20ftyp#EXTM3U\nhttps://example.org/clip.mp4", "damaged or cut short"),
        "cut": (content[: len(content) // 2], "damaged or cut short"),
        "start": (content[:40].ljust(40), "damaged or cut short|holds no images"),
    }
    for name, (damaged, message) in contents.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(damaged)
        for source in (path, damaged):
            with pytest.raises(ValueError, match=message) as error:
                load_video(source)
            one_sentence(error)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_video("nowhere.mp4")
    for source in (tmp_path, "https://example.org/clip.mp4", "a" * 5000, "nul\0byte"):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_video(source)
        one_sentence(error)


def test_sound_alone_is_not_a_video(clip: np.ndarray) -> None:
    """Nor is its cover image."""
    import av

    for cover in (None, encode(Image.fromarray(clip[0]), "JPEG")):
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            stream = output.add_stream("aac", rate=44100)
            if cover is not None:
                image = output.add_stream("mjpeg", rate=1)
                image.width, image.height, image.pix_fmt = 24, 16, "yuvj420p"
                image.disposition = av.stream.Disposition.attached_pic
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            packets = [packet for sound in (frame, None) for packet in stream.encode(sound)]
            if cover is not None:
                packet = av.Packet(cover)
                packet.stream, packet.pts, packet.dts, packet.time_base = image, 0, 0, packets[0].time_base
                packets.append(packet)
            output.mux(packets)
        with pytest.raises(ValueError, match="holds no images") as error:
            load_video(file.getvalue())
        one_sentence(error)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Image.new("RGB", (4, 4)), "an image and not a video"),
        ([], "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "is empty"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "has frames of 4 x 4 and 5 x 4 pixels"),
        (torch.full((5, 3, 2, 2), -1.0), r"\(x \+ 1\) / 2"),
        (torch.full((5, 3, 2, 2), 255.0), "from 255 to 255"),
        (torch.zeros(5, 3, 2, 2, dtype=torch.int64), "int64"),
        (np.full((5, 2, 2, 3), np.nan), "from nan to nan"),
        (torch.zeros(5, 2, 2, 3), "permute"),
        (None, "Expected a video, got NoneType"),
        (["nowhere.png"], "nowhere.png"),
    ],
)
def test_values_that_are_not_a_video(source: object, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_video(source)  # type: ignore[arg-type]
    one_sentence(error)


def test_at_least_one_frame_is_kept(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        load_video(clip, keep=0)


def test_a_file_of_several_images_is_what_people_see_or_refused(clip: np.ndarray) -> None:
    first, *others = [Image.fromarray(frame) for frame in clip]
    jpegs = [encode(Image.fromarray(frame), "JPEG") for frame in clip]
    pages = encode(first, "TIFF", save_all=True, append_images=others)
    for content in (b"".join(jpegs), pages):  # raw MJPEG
        assert np.abs(np.asarray(load_image(content)).astype(int) - clip[0]).mean() < 6
        with pytest.raises(ValueError, match=r"holds (JPEG|TIFF) images that are no animation") as error:
            load_video(content)
        one_sentence(error)
    small = encode(first.resize((8, 8)), "JPEG")
    # a stereo pair, the brightness or the depth of a photo, and a camera's notes
    for content in (
        encode(first, "MPO", save_all=True, append_images=others),
        jpegs[0] + small,
        jpegs[0] + b"\xff\xd8\xff\xe0",
    ):
        assert load_video(content).num_frames == 1


def test_the_image_for_programs_without_animations_is_not_a_frame(clip: np.ndarray) -> None:
    first, *others = [Image.fromarray(frame) for frame in clip]
    content = encode(first, "PNG", save_all=True, append_images=others, default_image=True)
    np.testing.assert_array_equal(pixels(load_video(content)), clip[1:])
    np.testing.assert_array_equal(np.asarray(load_image(content)), clip[0])


def test_the_frames_of_an_image_file_are_counted(clip: np.ndarray, tmp_path: Path) -> None:
    for name, content, count in (
        ("clip.gif", animation(clip, "GIF"), 7),
        ("clip.avif", animation(clip, "AVIF"), 7),
        ("photo.jpg", encode(Image.fromarray(clip[0]), "JPEG"), 1),
        (
            "pages.tif",
            encode(Image.fromarray(clip[0]), "TIFF", save_all=True, append_images=[Image.fromarray(clip[1])]),
            1,
        ),
        ("broken.gif", b"GIF89a", 1),
    ):
        (tmp_path / name).write_bytes(content)
        assert num_frames_of_image(tmp_path / name) == count, name
    assert num_frames_of_image(tmp_path / "nowhere.gif") == 1


def test_an_empty_path_is_not_the_current_folder(
    clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(clip[0]).save("frame.png")
    for load in (load_video, load_image):
        with pytest.raises(ValueError, match="is empty: pass the path of a file"):
            load("")


def test_a_folder_of_frames_takes_every_image_format(clip: np.ndarray, tmp_path: Path) -> None:
    for number, ending in enumerate((".png", ".JPG", ".webp", ".jfif", ".ppm", ".avif", ".jp2", ".tif")):
        kind = {".jfif": "JPEG", ".JPG": "JPEG"}.get(ending)
        Image.fromarray(clip[number % len(clip)]).save(tmp_path / f"{number}{ending}", kind)
    assert len(load_video(tmp_path).frames) == 8
