"""A rollout written as GIF, MP4 or strip can be opened again and shows the frames."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from theworld.media.export import futures_grid, grid_scale, rollout_extension, save_rollout


@pytest.fixture
def frames() -> np.ndarray:
    """A white square that crosses a dark ground in 5 frames of 16 x 24 pixels."""
    frames = np.full((5, 16, 24, 3), 30, dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[4:12, 4 * index : 4 * index + 8] = 250
    return frames


def test_gif(frames: np.ndarray, tmp_path: Path) -> None:
    path = save_rollout(frames, tmp_path / "future.gif", fps=10, scale=3, hold=0.5)
    with Image.open(path) as gif:
        durations, shown = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            shown.append(np.asarray(gif.convert("RGB")))
        assert gif.info["loop"] == 0
    assert durations == [600, 100, 100, 100, 100]
    np.testing.assert_allclose(np.stack(shown)[:, ::3, ::3], frames, atol=2)


def test_mp4(frames: np.ndarray, tmp_path: Path) -> None:
    path = save_rollout(frames, tmp_path / "future.mp4", fps=8, scale=4, hold=0.25)
    shown = iio.imread(path, plugin="pyav")
    assert shown.shape == (2 + 5, 64, 96, 3)  # the first frame stays two frames longer
    assert iio.immeta(path, plugin="pyav")["fps"] == 8
    assert np.abs(shown[2:, ::4, ::4].astype(int) - frames).mean() < 4


def test_mp4_of_odd_sides(frames: np.ndarray, tmp_path: Path) -> None:
    path = save_rollout(frames[:, :15, :23], tmp_path / "odd.mp4", scale=1, hold=0)
    assert iio.imread(path, plugin="pyav").shape == (5, 16, 24, 3)


def test_strip(frames: np.ndarray, tmp_path: Path) -> None:
    path = save_rollout(frames, tmp_path / "future.PNG", scale=1)
    strip = np.asarray(Image.open(path))
    assert strip.shape == (16, 5 * 24 + 4 * 4, 3)
    for index in range(5):
        np.testing.assert_array_equal(strip[:, index * 28 : index * 28 + 24], frames[index])


def test_small_frames_are_enlarged_and_large_ones_are_not(frames: np.ndarray, tmp_path: Path) -> None:
    with Image.open(save_rollout(frames, tmp_path / "small.gif")) as gif:
        assert gif.size == (24 * 16, 16 * 16)
    large = np.zeros((1, 300, 400, 3), dtype=np.uint8)
    with Image.open(save_rollout(large, tmp_path / "large.png")) as strip:
        assert strip.size == (400, 300)


def test_labels_are_below_the_frame(frames: np.ndarray, tmp_path: Path) -> None:
    labels = ["now", "+1", "+2", "+3", "+4"]
    path = save_rollout(frames, tmp_path / "future.png", scale=4, labels=labels)
    strip = np.asarray(Image.open(path))
    np.testing.assert_array_equal(strip[:64:4, :96:4], frames[0])
    band = strip[64:, :96]
    assert (band == 255).any()
    assert (band < 60).any()  # the letters
    with pytest.raises(ValueError, match="2 labels for 5 frames"):
        save_rollout(frames, tmp_path / "future.png", labels=["now", "then"])


def test_the_same_rollout_gives_the_same_file(frames: np.ndarray, tmp_path: Path) -> None:
    for extension in (".gif", ".mp4", ".png"):
        first = save_rollout(frames, tmp_path / f"first{extension}").read_bytes()
        assert first == save_rollout(frames, tmp_path / f"second{extension}").read_bytes()


def test_folders_are_created_and_nothing_else_is_left(frames: np.ndarray, tmp_path: Path) -> None:
    path = save_rollout(frames, str(tmp_path / "new" / "deep" / "future.gif"))
    assert [entry.name for entry in path.parent.iterdir()] == ["future.gif"]


def test_a_failed_write_keeps_the_old_file(frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_rollout(frames, tmp_path / "future.gif")
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="No space left"):
        save_rollout(frames[:2], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["future.gif"]


@pytest.mark.parametrize("name", ["future.webm", "future", ".gif", "future.gif.txt"])
def test_other_extensions_are_refused_with_the_list(frames: np.ndarray, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.gif, \.mp4, \.png"):
        save_rollout(frames, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert rollout_extension("a/b.GIF") == ".gif"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frames": np.zeros((2, 4, 4, 3), dtype=np.float32)}, "float32"),
        ({"frames": np.zeros((4, 4, 3), dtype=np.uint8)}, r"\(F, H, W, 3\)"),
        ({"frames": np.zeros((0, 4, 4, 3), dtype=np.uint8)}, r"\(0, 4, 4, 3\)"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 1e9}, "at most 1000"),
        ({"hold": -1}, "hold is -1"),
        ({"scale": 0}, "scale is 0"),
    ],
)
def test_invalid_values_are_refused(frames: np.ndarray, tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        save_rollout(**{"frames": frames, "path": tmp_path / "future.gif", **change})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_folder(frames: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        save_rollout(frames, tmp_path / "folder.gif")


@pytest.mark.parametrize(("extension", "columns"), [(".gif", 2), (".mp4", 2), (".png", 1)])
def test_a_grid_has_each_future_at_its_place(frames: np.ndarray, extension: str, columns: int) -> None:
    futures = np.stack([frames, frames[::-1], 255 - frames])  # (3, 5, 16, 24, 3)
    grid = futures_grid(futures, extension)
    assert grid.shape == (5, -(-3 // columns) * 17 - 1, columns * 25 - 1, 3)
    for number, future in enumerate(futures):
        top, left = 17 * (number // columns), 25 * (number % columns)
        np.testing.assert_array_equal(grid[:, top : top + 16, left : left + 24], future)
    assert (grid[:, 16] == 255).all(), "a white line between rows"


def test_a_grid_is_enlarged_as_far_as_it_fits() -> None:
    assert grid_scale(np.zeros((8, 1, 64, 64, 3))) == 4  # 3 columns of 256 pixels
    assert grid_scale(np.zeros((64, 1, 64, 64, 3))) == 2  # 8 columns of 128 pixels
    assert grid_scale(np.zeros((4, 1, 704, 704, 3))) == 1
