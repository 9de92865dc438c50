from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from vidaccel.eval.video import PANEL, read_video, side_by_side, to_uint8, write_lossless, write_mp4, write_video


def gradient(frames: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth moving ramp in [0, 1], which H.264 keeps well."""
    across = np.linspace(0, 1, width)[None, None, :, None]
    down = np.linspace(0, 1, height)[None, :, None, None]
    moment = np.linspace(0, 0.5, frames)[:, None, None, None]
    return np.broadcast_to((across + down) / 3 + moment / 2, (frames, height, width, 3)).copy()


def read(path: Path) -> np.ndarray:
    with imageio.get_reader(path, format="FFMPEG") as reader:
        return np.stack(list(reader.iter_data()))


def test_written_clip_reads_back(tmp_path: Path) -> None:
    frames = gradient()
    path = write_mp4(frames, tmp_path / "clip.mp4", fps=8)
    back = read(path)
    assert back.shape == (5, 48, 64, 3)
    assert np.abs(back.astype(float) - frames * 255).mean() < 3
    assert [item.name for item in tmp_path.iterdir()] == ["clip.mp4"]


def test_browsers_can_play_it(tmp_path: Path) -> None:
    path = write_mp4(gradient(height=144, width=208), tmp_path / "clip.mp4", fps=12)
    told = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    assert re.search(r"Video: h264.*yuv420p.*208x144.* 12 fps", told)
    # The index stands before the frames, so that a page can start before it has all of the file.
    data = path.read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_padded_not_resized(tmp_path: Path) -> None:
    frames = gradient(height=47, width=63)
    back = read(write_mp4(frames, tmp_path / "clip.mp4", fps=8))
    assert back.shape == (5, 48, 64, 3)
    assert np.abs(back[:, :47, :63].astype(float) - frames * 255).mean() < 3


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    class Writer:
        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def append_data(self, frame: np.ndarray) -> None:
            raise OSError("disk full")

    monkeypatch.setattr(imageio, "get_writer", lambda *_, **__: Writer())
    with pytest.raises(OSError, match="disk full"):
        write_mp4(gradient(), path, fps=8)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "fps", "said"), [("clip.avi", 8, ".mp4"), ("clip.mp4", 0, "fps 0"), ("clip.mp4", -1, "fps -1")]
)
def test_bad_targets_are_refused(tmp_path: Path, name: str, fps: float, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        write_mp4(gradient(), tmp_path / name, fps)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_mp4(gradient(), tmp_path / "no" / "clip.mp4", fps=8)


def test_to_uint8_rounds_and_refuses() -> None:
    frames = np.array([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    assert to_uint8(frames).flatten().tolist() == [0, 128, 255]
    assert to_uint8(frames + 1e-7).flatten().tolist() == [0, 128, 255]
    shape = (1, 4, 4, 3)
    for bad in (np.zeros((2, 4, 4, 4)), np.zeros((0, 4, 4, 3)), np.full(shape, np.nan), np.zeros(shape, int)):
        with pytest.raises(ValueError, match="a clip is"):
            to_uint8(bad)


def test_side_by_side_enlarges_by_whole_pixels() -> None:
    left, right = gradient(height=14, width=20), 1 - gradient(height=14, width=20)
    both = side_by_side(left, right, ("dense 3.2 s", "fast 2.9 s"))
    scale = PANEL // 20
    band = both.shape[1] - 14 * scale
    assert both.shape == (5, band + 14 * scale, 2 * PANEL + 8, 3) and not any(side % 2 for side in both.shape[1:3])
    assert (both[:, band::scale, :PANEL:scale] == to_uint8(left)).all()
    assert (both[:, band + scale - 1 :: scale, PANEL + 8 :: scale] == to_uint8(right)).all()


def test_side_by_side_keeps_large_clips_and_labels_both_halves() -> None:
    clip = gradient(frames=1, height=60, width=PANEL)
    both = side_by_side(clip, clip, ("dense", "fast"))
    band = both.shape[1] - 60
    blank = side_by_side(clip, clip, ("", ""))
    labelled = (both[0, :band] != blank[0, :band]).any(axis=(0, 2)).nonzero()[0]
    assert both.shape[2] == 2 * PANEL + 8
    assert (labelled < PANEL).any() and (labelled > PANEL).any()
    assert (blank[0, :band] == blank[0, 0, 0]).all()


def test_side_by_side_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        side_by_side(gradient(frames=4), gradient(frames=5))


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
@pytest.mark.parametrize(("shape", "fps"), [((33, 47, 63, 3), 23.976), ((1, 2, 2, 3), 0.5), ((5, 64, 96, 3), 120)])
def test_lossless_clips_come_back_bit_by_bit(tmp_path: Path, ending: str, shape: tuple[int, ...], fps: float) -> None:
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = write_lossless(frames, tmp_path / f"clip{ending}", fps)
    assert np.array_equal(read_video(path), frames)
    assert [item.name for item in tmp_path.iterdir()] == [f"clip{ending}"]


def test_lossless_is_ffv1_in_rgb_and_floats_are_rounded_once(tmp_path: Path) -> None:
    path = write_video(gradient(), tmp_path / "clip.mkv", fps=12)
    told = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    assert re.search(r"Video: ffv1.*bgr0.*64x48.* 12 fps", told)
    assert np.array_equal(read_video(path), to_uint8(gradient()))
    assert not np.array_equal(read_video(write_video(gradient(), tmp_path / "clip.mp4", 12)), to_uint8(gradient()))


def test_lossless_clips_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_lossless(gradient(), tmp_path / "clip.mkv", 8).read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("imageio.plugins.ffmpeg.FfmpegFormat.Writer.append_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_lossless(1 - gradient(), tmp_path / "clip.mkv", 8)
    assert (tmp_path / "clip.mkv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    for name, fps, said in (("clip.avi", 8, "end in .mkv or .mp4"), ("clip.mkv", 0, "fps 0")):
        with pytest.raises(ValueError, match=said):
            write_lossless(gradient(), tmp_path / name, fps)
    with pytest.raises(ValueError, match=r"does not end in .mp4, or in .mkv"):
        write_video(gradient(), tmp_path / "clip.gif", 8)
    assert len(list(tmp_path.iterdir())) == 1
