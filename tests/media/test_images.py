"""Every form of picture becomes the same RGB, and what cannot be read becomes one sentence."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from theworld.media import images
from theworld.media.export import save_rollout
from theworld.media.images import Video, load_image, load_images, load_video, to_frames, to_pixels

RGB = hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))
# every mode that Pillow can make a picture of
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
)


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def values(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


@pytest.fixture
def picture() -> Image.Image:
    """6 wide, 4 high, no two pixels alike."""
    return Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3)


# --- every form gives the same picture ---


@given(pixels=RGB)
def test_every_form_of_a_picture_gives_the_same_pixels(pixels: np.ndarray) -> None:
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)  # (C, H, W)
    forms = {
        "PIL": Image.fromarray(pixels),
        "bytes": encode(Image.fromarray(pixels)),
        "bytearray": bytearray(encode(Image.fromarray(pixels))),
        "NumPy": pixels,
        "NumPy, strided": np.flip(np.flip(pixels, 0).copy(), 0),
        "torch uint8": tensor,
        "torch uint8, batch of one": tensor[None],
        "torch float": tensor / 255,
        "torch bfloat16 of black": tensor * torch.zeros((), dtype=torch.bfloat16),
    }
    for form, source in forms.items():
        image = load_image(source)
        expected = np.zeros_like(pixels) if "black" in form else pixels
        assert image.mode == "RGB", form
        np.testing.assert_array_equal(np.asarray(image), expected, err_msg=form)


def test_paths_as_text_and_as_path(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    picture.save(path)
    assert values(load_image(path)) == values(load_image(str(path))) == values(picture)


@given(mode=st.sampled_from(MODES), pixels=RGB)
def test_every_pil_mode_becomes_rgb_and_leaves_the_source_alone(mode: str, pixels: np.ndarray) -> None:
    source = Image.new(mode, pixels.shape[1::-1])
    if mode not in ("La", "RGBa", "I;16", "LAB"):
        source = Image.fromarray(pixels).convert({"PA": "P"}.get(mode, mode)).convert(mode)
    before = source.tobytes()
    image = load_image(source)
    assert (image.mode, image.size) == ("RGB", source.size)
    assert (source.mode, source.tobytes()) == (mode, before)
    if mode in ("L", "1", "I"):  # lossless both ways
        np.testing.assert_array_equal(np.asarray(image.convert("L")), np.asarray(source.convert("L")))


def test_transparency_lies_over_white() -> None:
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255]]], dtype=np.uint8)  # clear, opaque
    rgba = Image.fromarray(pixels)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putdata([0, 1])
    palette.info["transparency"] = 0
    for source in (rgba, rgba.convert("RGBa"), encode(rgba), palette, encode(palette), pixels):
        assert values(load_image(source)) == [(255, 255, 255), (200, 0, 0)]
    assert values(load_image(Image.new("LA", (1, 1), (0, 0)))) == [(255, 255, 255)]


def test_deep_grey_keeps_its_scale() -> None:
    deep = np.array([[0, 257, 65535]], dtype=np.uint16)
    expected = [(0, 0, 0), (1, 1, 1), (255, 255, 255)]
    assert values(load_image(Image.fromarray(deep))) == expected
    assert values(load_image(encode(Image.fromarray(deep)))) == expected
    assert values(load_image(Image.fromarray(deep.astype(np.int32)))) == expected
    unit = Image.fromarray(np.array([[0.0, 1 / 255, 1.0]], dtype=np.float32))
    assert values(load_image(unit)) == expected
    bytes_as_float = Image.fromarray(np.array([[0.0, 1.0, 255.0]], dtype=np.float32))
    assert values(load_image(bytes_as_float)) == expected


def test_exif_rotation_is_applied_once(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    upright = load_image(encode(picture, exif=exif))
    assert upright.size == (4, 6)
    assert load_image(upright).size == (4, 6)


def test_an_animation_gives_its_first_frame() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    animation = encode(red, "GIF", save_all=True, append_images=[blue])
    assert load_image(animation).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_file_formats(picture: Image.Image, file_format: str) -> None:
    assert load_image(encode(picture, file_format)).size == picture.size


# --- several pictures ---


def test_lists_and_batches(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1).expand(3, -1, -1, -1)
    assert [image.size for image in load_images([picture, pixels, batch[0]])] == [(6, 4)] * 3
    assert [image.size for image in load_images(batch)] == [(6, 4)] * 3
    assert [image.size for image in load_images(np.stack([pixels, pixels]))] == [(6, 4)] * 2
    assert len(load_images(picture)) == 1
    with pytest.raises(ValueError, match="holds 3"):
        load_image(batch)
    with pytest.raises(ValueError, match=r"^Picture 2 of 2: "):
        load_images([picture, b""])
    with pytest.raises(FileNotFoundError, match=r"^Picture 1 of 2: "):
        load_images(["nowhere.png", picture])


# --- videos ---


@pytest.fixture
def clip() -> np.ndarray:
    """Seven frames of 16 x 24 pixels, smooth enough for a video codec, no two alike."""
    rows, columns = np.mgrid[0:16, 0:24]
    grey = np.stack([(rows * 6 + columns * 4 + 12 * number) % 200 + 20 for number in range(7)])
    return np.stack([grey, grey, 255 - grey], axis=-1).astype(np.uint8)


def shown(video: Video) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in video.frames])


def animated(clip: np.ndarray, file_format: str) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in clip]
    return encode(first, file_format, save_all=True, append_images=others, lossless=True)


def test_every_form_of_a_video_gives_the_same_frames(clip: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "clip.png").write_bytes(animated(clip, "PNG"))
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
        "WebP, bytes": animated(clip, "WEBP"),
    }
    for form, source in forms.items():
        video = load_video(source)
        assert video.num_frames == 7, form
        np.testing.assert_array_equal(shown(video), clip, err_msg=form)
        kept = load_video(source, keep=3)
        assert kept.num_frames == 7, form
        np.testing.assert_array_equal(shown(kept), clip[-3:], err_msg=form)
        np.testing.assert_array_equal(np.asarray(kept.now), clip[-1])
        assert load_video(kept) is kept


@pytest.mark.parametrize("extension", ["gif", "mp4"])
def test_what_this_package_writes_it_reads_as_a_video(clip: np.ndarray, tmp_path: Path, extension: str) -> None:
    path = save_rollout(clip, tmp_path / f"clip.{extension}", scale=1, hold=0)
    video = load_video(path)
    assert video.num_frames == 7
    assert np.abs(shown(video).astype(int) - clip).mean() < 6


def test_a_picture_is_a_video_of_one_frame(picture: Image.Image) -> None:
    for source in (np.asarray(picture), encode(picture), encode(picture, "JPEG"), [picture]):
        video = load_video(source)
        assert (video.num_frames, video.now.size) == (1, picture.size)


def test_a_phone_that_was_held_upright_films_upright(clip: np.ndarray, tmp_path: Path) -> None:
    """A video carries its rotation beside the pixels, as a photograph does."""
    path = save_rollout(clip, tmp_path / "clip.mp4", scale=1, hold=0)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # of the track header, behind its times, layer and volume
    assert content[matrix : matrix + 4] == (1 << 16).to_bytes(4, "big")
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in quarter)
    straight, turned = load_video(path), load_video(bytes(content))
    assert turned.now.size == (16, 24)
    np.testing.assert_array_equal(shown(turned), np.rot90(shown(straight), -1, axes=(1, 2)))  # clockwise


def test_a_long_video_is_read_to_its_end_and_a_longer_one_refused(clip: np.ndarray) -> None:
    tiny = [Image.new("L", (2, 2), number % 251) for number in range(images.MAX_FRAMES + 1)]
    limit = animated(np.stack([np.asarray(frame) for frame in tiny[:-1]]), "GIF")
    video = load_video(limit, keep=2)
    assert (video.num_frames, len(video.frames)) == (images.MAX_FRAMES, 2)
    assert video.now.getpixel((0, 0)) == (tiny[-2].getpixel((0, 0)),) * 3
    for source in (
        tiny,
        np.zeros((10_000, 1, 1, 3), np.uint8),
        animated(np.stack([np.asarray(f) for f in tiny]), "GIF"),
    ):
        with pytest.raises(
            ValueError, match=r"has more than 4,096 frames: cut it to the last moments before now"
        ) as error:
            load_video(source)  # type: ignore[arg-type]
        one_sentence(error)


def test_videos_that_cannot_be_read(clip: np.ndarray, picture: Image.Image, tmp_path: Path) -> None:
    film = save_rollout(clip, tmp_path / "film.mp4", scale=8).read_bytes()
    start = film[:40].ljust(40)
    contents = {
        "empty": (b"", "is empty"),
        "text": (
            b"#EXTM3U\n#EXTINF:1\nfile:///somewhere/film.mp4\n",
            "is not a video that can be read: pass one of MP4",
        ),
        "playlist": (b"\0\0\0\x20ftyp#EXTM3U\nhttps://example.org/film.mp4", "damaged or cut short"),
        "cut": (film[: len(film) // 2], "damaged or cut short"),
        "start": (start, "damaged or cut short"),
    }
    for name, (content, says) in contents.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(ValueError, match=says) as error:
                load_video(source)
            one_sentence(error)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_video("nowhere.mp4")
    with pytest.raises(ValueError, match="is a video and was given as a picture"):
        load_image(film)
    for source in (tmp_path, "https://example.org/film.mp4"):
        with pytest.raises(ValueError, match=r"\.$"):
            load_video(source)


def test_a_film_whose_end_was_lost_is_not_taken_for_a_shorter_one(clip: np.ndarray, tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in noise]
        film.mux([packet for picture in [*pictures, None] for packet in stream.encode(picture)])
    assert load_video(path).num_frames == 12
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_video(path.read_bytes()[: path.stat().st_size * 7 // 10])


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        film.mux([packet for sound in (frame, None) for packet in stream.encode(sound)])
    with pytest.raises(ValueError, match="holds no pictures"):
        load_video(path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Image.new("RGB", (4, 4)), "one picture and no video"),
        ([], "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "is empty"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "have 4 x 4 and 5 x 4 pixels"),
        (torch.full((5, 3, 2, 2), -1.0), r"\(x \+ 1\) / 2"),
        (torch.full((5, 3, 2, 2), 255.0), "from 255 to 255"),
        (torch.zeros(5, 3, 2, 2, dtype=torch.int64), "int64"),
        (np.full((5, 2, 2, 3), np.nan), "from nan to nan"),
        (torch.zeros(5, 2, 2, 3), "permute"),
        (None, "NoneType is not a video"),
        (["nowhere.png"], "nowhere.png"),
    ],
)
def test_values_that_mean_no_video(source: object, says: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        load_video(source)  # type: ignore[arg-type]
    one_sentence(error)


def test_at_least_now_is_kept(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="keep at least 1"):
        load_video(clip, keep=0)


# --- frames for the world model ---


@given(pixels=RGB)
def test_frames_and_pixels_are_inverses(pixels: np.ndarray) -> None:
    square = np.asarray(Image.fromarray(pixels).resize((5, 5), Image.Resampling.NEAREST))
    frames = to_frames(square, 5)
    assert (frames.shape, frames.dtype) == ((1, 3, 1, 5, 5), torch.float32)
    assert frames.min() >= -1
    assert frames.max() <= 1
    np.testing.assert_array_equal(to_pixels(frames)[0, 0], square)


def test_frames_are_those_of_diffusers(picture: Image.Image) -> None:
    from diffusers.video_processor import VideoProcessor

    theirs = VideoProcessor(vae_scale_factor=8).preprocess(picture, height=16, width=16)  # (1, 3, 16, 16)
    torch.testing.assert_close(to_frames(picture, 16)[:, :, 0], theirs, rtol=0, atol=0)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert to_frames(stripes, 8).abs().max() < 0.2  # grey; picking every eighth pixel would give black


def test_clips(picture: Image.Image) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    assert to_frames([picture, picture], 8).shape == (2, 3, 1, 8, 8)  # two pictures
    assert to_frames(clip, 8).shape == (5, 3, 1, 8, 8)  # a batch of pictures
    assert to_frames([clip, list(clip)], 8).shape == (2, 3, 5, 8, 8)  # two clips
    np.testing.assert_array_equal(to_pixels(to_frames([clip], 8))[0], clip)
    with pytest.raises(ValueError, match="same number of frames"):
        to_frames([clip, clip[:2]], 8)
    with pytest.raises(ValueError, match="No picture"):
        to_frames([], 8)
    with pytest.raises(ValueError, match="size must be at least 1"):
        to_frames(picture, 0)


def test_pixels_outside_the_range_are_clipped() -> None:
    frames = torch.tensor([-3.0, 3.0]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    assert to_pixels(frames)[:, 0, 0, 0].tolist() == [0, 255]


# --- what cannot be read ---


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_files_that_cannot_be_read(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.png'") as error:
        load_image("nowhere.png")
    one_sentence(error)
    contents = {"empty": b"", "text": b"not a picture", "cut": encode(picture.resize((64, 64)))[:200]}
    expected = {"empty": "is empty", "text": "not an image", "cut": "damaged or cut short"}
    for name, content in contents.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(ValueError, match=expected[name]) as error:
                load_image(source)
            one_sentence(error)
    with pytest.raises(ValueError, match="is a directory"):
        load_image(tmp_path)
    for name in ("a" * 5000, "https://example.org/cat.png", "nul\0byte", "~nobody-of-this-name/cat.png"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"\.$"):
            load_image(name)


def test_formats_that_start_other_programs_are_refused() -> None:
    with pytest.raises(ValueError, match="not an image that can be read"):
        load_image(encode(Image.new("RGB", (4, 4)), "EPS"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (10_000, 10_000)))
    assert len(bomb) < 100_000

    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded before its size was checked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ValueError, match="make it smaller") as error:
        load_image(bomb)
    one_sentence(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_that_lies_about_a_vast_picture_is_refused() -> None:
    header = bytearray(encode(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match="make it smaller"):
        load_image(bytes(header))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (torch.full((3, 2, 2), 7.0), "from 7 to 7"),
        (torch.tensor([[[-1.0, 1.0]]]).expand(3, 1, 2), r"\(x \+ 1\) / 2"),
        (torch.full((3, 2, 2), float("nan")), "from nan to nan"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
        (torch.zeros(2, 2, 3), "permute"),
        (torch.zeros(1, 1, 3, 2, 2), "shape must be"),
        (torch.zeros(3, 0, 2), "is empty"),
        (np.full((2, 2, 3), 300, dtype=np.uint16), "from 300 to 300"),
        (np.zeros((3, 2, 2), dtype=np.uint8), None),  # 3 rows of 2 pixels with 2 channels
        (np.array([["a"]]), "no brightness"),
        (np.zeros((2, 2, 3), dtype=np.complex64), "no brightness"),
        (Image.new("L", (0, 4)), "is empty"),
        (Image.fromarray(np.full((2, 2), -5, dtype=np.int32)), "from -5 to -5"),
        (Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "from nan to nan"),
        (None, "NoneType is not a picture"),
        (3, "int is not a picture"),
    ],
)
def test_values_that_mean_no_picture(source: object, says: str | None) -> None:
    with pytest.raises(ValueError, match=says or "2 channels") as error:
        load_image(source)  # type: ignore[arg-type]
    one_sentence(error)


@given(
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"]),
    position=st.floats(0, 1, exclude_max=True),
    noise=st.binary(min_size=0, max_size=8),
    keep=st.booleans(),
)
def test_damaged_files_give_a_picture_or_one_sentence(
    file_format: str, position: float, noise: bytes, keep: bool
) -> None:
    content = encode(Image.effect_noise((24, 24), 60).convert("RGB"), file_format)
    start = int(position * len(content))
    damaged = content[:start] + noise + (content[start + len(noise) :] if keep else b"")
    try:
        result = load_image(damaged)
    except ValueError as error:
        assert str(error).endswith(".")  # noqa: PT017  # either outcome is right, and nothing else is
    else:
        assert result.mode == "RGB"


def test_the_limit_is_what_the_docstring_says() -> None:
    assert images.MAX_PIXELS == 8192 * 8192
