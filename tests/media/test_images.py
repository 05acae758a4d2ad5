"""Every form of image becomes the same RGB, and what cannot be read becomes one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.media.encoding import encode, one_sentence
from theworld.media import files
from theworld.media.images import load_image, load_images, to_frames, to_pixels

RGB = hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))
# every mode that Pillow can create an image in
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


def values(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


@pytest.fixture
def image() -> Image.Image:
    """6 wide, 4 high, no two pixels alike."""
    return Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3)


# --- every form gives the same image ---


@given(pixels=RGB)
def test_every_form_of_an_image_gives_the_same_pixels(pixels: np.ndarray) -> None:
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


def test_paths_as_text_and_as_path(image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "an image.png"
    image.save(path)
    assert values(load_image(path)) == values(load_image(str(path))) == values(image)


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


def test_transparency_is_laid_over_white() -> None:
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


def test_exif_rotation_is_applied_once(image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    upright = load_image(encode(image, exif=exif))
    assert upright.size == (4, 6)
    assert load_image(upright).size == (4, 6)


@pytest.mark.parametrize("file_format", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_read_in_every_format(file_format: str, orientation: int) -> None:
    marked = Image.new("RGB", (32, 16), "white")
    marked.paste("black", (0, 0, 8, 8))  # top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encode(marked, file_format, exif=exif))
    width, height = upright.size
    assert (width, height) == ((32, 16) if orientation < 5 else (16, 32))
    x, y = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0), (1, 1), (0, 1)][orientation - 1]
    corner = 4 + x * (width - 8), 4 + y * (height - 8)
    assert np.asarray(upright.convert("L"))[corner[1], corner[0]] < 30


def test_an_animation_gives_its_first_frame() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    animation = encode(red, "GIF", save_all=True, append_images=[blue])
    assert load_image(animation).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_file_formats(image: Image.Image, file_format: str) -> None:
    assert load_image(encode(image, file_format)).size == image.size


# --- several images ---


def test_lists_and_batches(image: Image.Image) -> None:
    pixels = np.asarray(image)
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1).expand(3, -1, -1, -1)
    assert [loaded.size for loaded in load_images([image, pixels, batch[0]])] == [(6, 4)] * 3
    assert [image.size for image in load_images(batch)] == [(6, 4)] * 3
    assert [image.size for image in load_images(np.stack([pixels, pixels]))] == [(6, 4)] * 2
    assert len(load_images(image)) == 1
    with pytest.raises(ValueError, match="holds 3"):
        load_image(batch)
    with pytest.raises(ValueError, match=r"^Image 2 of 2: "):
        load_images([image, b""])
    with pytest.raises(FileNotFoundError, match=r"^Image 1 of 2: "):
        load_images(["nowhere.png", image])


# --- frames for the world model ---


@given(pixels=RGB)
def test_frames_and_pixels_are_inverses(pixels: np.ndarray) -> None:
    square = np.asarray(Image.fromarray(pixels).resize((5, 5), Image.Resampling.NEAREST))
    frames = to_frames(square, 5)
    assert (frames.shape, frames.dtype) == ((1, 3, 1, 5, 5), torch.float32)
    assert frames.min() >= -1
    assert frames.max() <= 1
    np.testing.assert_array_equal(to_pixels(frames)[0, 0], square)


def test_frames_are_those_of_diffusers(image: Image.Image) -> None:
    from diffusers.video_processor import VideoProcessor

    theirs = VideoProcessor(vae_scale_factor=8).preprocess(image, height=16, width=16)  # (1, 3, 16, 16)
    torch.testing.assert_close(to_frames(image, 16)[:, :, 0], theirs, rtol=0, atol=0)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert to_frames(stripes, 8).abs().max() < 0.2  # grey; picking every eighth pixel would give black


def test_clips(image: Image.Image) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    assert to_frames([image, image], 8).shape == (2, 3, 1, 8, 8)  # two images
    assert to_frames(clip, 8).shape == (5, 3, 1, 8, 8)  # a batch of images
    assert to_frames([clip, list(clip)], 8).shape == (2, 3, 5, 8, 8)  # two clips
    np.testing.assert_array_equal(to_pixels(to_frames([clip], 8))[0], clip)
    with pytest.raises(ValueError, match="same number of frames"):
        to_frames([clip, clip[:2]], 8)
    with pytest.raises(ValueError, match="No image was given"):
        to_frames([], 8)
    with pytest.raises(ValueError, match="must be at least 1 pixel"):
        to_frames(image, 0)


def test_pixels_outside_the_range_are_clipped() -> None:
    frames = torch.tensor([-3.0, 3.0]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    assert to_pixels(frames)[:, 0, 0, 0].tolist() == [0, 255]


# --- what cannot be read ---


def test_files_that_cannot_be_read(image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.png'") as error:
        load_image("nowhere.png")
    one_sentence(error)
    contents = {"empty": b"", "text": b"not an image", "cut": encode(image.resize((64, 64)))[:200]}
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
    for name in ("a" * 5000, "https://example.org/cat.png", "nul\0byte", "~no-such-user/cat.png"):
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
def test_a_header_with_a_false_huge_size_is_refused() -> None:
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
        (None, "Expected an image, got NoneType"),
        (3, "Expected an image, got int"),
    ],
)
def test_values_that_are_not_an_image(source: object, says: str | None) -> None:
    with pytest.raises(ValueError, match=says or "2 channels") as error:
        load_image(source)  # type: ignore[arg-type]
    one_sentence(error)


@given(
    file_format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"]),
    position=st.floats(0, 1, exclude_max=True),
    noise=st.binary(min_size=0, max_size=8),
    keep=st.booleans(),
)
def test_damaged_files_give_an_image_or_one_sentence(
    file_format: str, position: float, noise: bytes, keep: bool
) -> None:
    content = encode(Image.effect_noise((24, 24), 60).convert("RGB"), file_format)
    start = int(position * len(content))
    damaged = content[:start] + noise + (content[start + len(noise) :] if keep else b"")
    try:
        result = load_image(damaged)
    except ValueError as error:
        assert str(error).endswith(".")  # noqa: PT017  # both outcomes are right, and no other is
    else:
        assert result.mode == "RGB"


def test_the_limit_is_what_the_docstring_says() -> None:
    assert files.MAX_PIXELS == 8192 * 8192
