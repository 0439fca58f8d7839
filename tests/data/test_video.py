"""Clips of videos: each frame is the one that a player would show at its moment."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from twinflow.data.buckets import Buckets
from twinflow.data.loader import collate
from twinflow.data.pictures import to_pixels
from twinflow.data.video import VideoDataset, read_clip
from twinflow.errors import TwinflowError

av = pytest.importorskip("av", reason="videos are read by PyAV: pip install twinflow[video]")

RATE = 8  # frames a second of the videos here; frame i has the grey value 10 i


def write_video(
    path: Path, *, frames: int = 16, width: int = 32, height: int = 16, caption: str = "a clip"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(RATE))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 4
        stream.bit_rate = 4_000_000
        for i in range(frames):
            picture = np.full((height, width, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text(caption)


def numbers(item: dict) -> list[int]:
    """Which frame of the video each frame of the clip is."""
    greys = (item["pixels"][:, :, 4, 4].mean(0) + 1) * 127.5
    assert (greys / 10 - (greys / 10).round()).abs().max() < 0.45
    return (greys / 10).round().int().tolist()


@pytest.mark.parametrize(
    ("fps", "frames", "expected"),
    [
        (8, 5, [0, 1, 2, 3, 4]),
        (4, 5, [0, 2, 4, 6, 8]),
        (16, 5, [0, 0, 1, 1, 2]),
        (3, 6, [0, 2, 5, 8, 10, 13]),
    ],
)
def test_frames_are_those_of_their_moments(
    tmp_path: Path, fps: float, frames: int, expected: list[int]
) -> None:
    write_video(tmp_path / "a.mp4")
    (item,) = VideoDataset(tmp_path, size=(16, 32), frames=frames, fps=fps)
    assert item["caption"] == "a clip"
    assert item["pixels"].shape == (3, frames, 16, 32)
    assert numbers(item) == expected


def test_a_video_gives_as_many_clips_as_follow_one_another(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "sub" / "b.mkv", frames=7, caption="short")
    data = VideoDataset(tmp_path, size=16, frames=5, fps=8, clips=None)
    assert [(item["caption"], numbers(item)) for item in data] == [
        ("a clip", [0, 1, 2, 3, 4]),
        ("a clip", [5, 6, 7, 8, 9]),
        ("a clip", [10, 11, 12, 13, 14]),
        ("short", [0, 1, 2, 3, 4]),
    ]
    assert collate([data[0], data[3]])["pixels"].shape == (2, 3, 5, 16, 16)
    assert len(VideoDataset(tmp_path, size=16, frames=5, fps=8, clips=2)) == 3


def test_clips_go_to_buckets(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", width=32, height=16)
    write_video(tmp_path / "b.mp4", width=16, height=32)
    data = VideoDataset(tmp_path, size=Buckets(((32, 16), (16, 32))), frames=3, fps=8)
    assert [tuple(item["pixels"].shape) for item in data] == [(3, 3, 16, 32), (3, 3, 32, 16)]


def test_videos_that_can_not_be_used(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "short.mp4", frames=3)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "text.txt").write_text("a caption")
    write_video(tmp_path / "silent.mp4")
    (tmp_path / "silent.txt").unlink()
    with pytest.raises(TwinflowError) as caught:
        VideoDataset(tmp_path, size=16, frames=8, fps=8)
    said = str(caught.value)
    for words in ("3 of 4", "short.mp4", "0.38 s long", "text.mp4", "silent.mp4: it has no caption"):
        assert words in said
    assert len(VideoDataset(tmp_path, size=16, frames=8, fps=8, on_error="skip")) == 1


def test_a_video_that_was_filmed_on_edge_stands(tmp_path: Path) -> None:
    """Phones write the frames lying, and into the header of the track by which matrix a player turns them."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(RATE))
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        picture = np.zeros((16, 32, 3), np.uint8)
        picture[:, 16:] = 255  # the right half, which a quarter turn clockwise puts below
        for _ in range(RATE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "a.txt").write_text("a clip")
    raw = (tmp_path / "a.mp4").read_bytes()
    plain, turned = ([0x10000, 0, 0, 0, 0x10000], [0, 0x10000, 0, 0xFFFF0000, 0])
    place = raw.index(struct.pack(">5I", *plain), raw.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(raw[:place] + struct.pack(">5I", *turned) + raw[place + 20 :])
    (item,) = VideoDataset(tmp_path, size=Buckets(((32, 16), (16, 32))), frames=4, fps=RATE)
    assert item["pixels"].shape == (3, 4, 32, 16)
    assert item["pixels"][:, :, :14].max() < -0.8
    assert item["pixels"][:, :, 18:].min() > 0.8


def test_the_first_frame_of_a_clip_is_its_source(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    size = Buckets.fixed((16, 16))
    items = list(VideoDataset(tmp_path, size=size, frames=5, fps=8, clips=2, first_frame=True))
    for item in items:
        assert item["source"].size == (16, 16)
        assert torch.equal(to_pixels(item["source"]), item["pixels"][:, 0])
    assert items[0]["source"].getpixel((4, 4)) != items[1]["source"].getpixel((4, 4))
    assert "source" not in VideoDataset(tmp_path, size=size, frames=5, fps=8)[0]


def encode(path: Path, codec: str, *, count: int = 40, pixel: Fraction | None = None, **options: int) -> None:
    """Frame ``i`` has the grey value ``6 i``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 32, 16, "yuv420p", 12
        stream.bit_rate = 4_000_000
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        for i in range(count):
            picture = np.full((16, 32, 3), 6 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.mpg", "mpeg2video"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),  # its first frame is not where it says that it begins, and leaps go too far
        ("a.m2ts", "libx264"),  # leaps go too far
    ],
)
def test_clips_of_every_container_are_those_of_all_frames_in_order(
    tmp_path: Path, name: str, codec: str
) -> None:
    """Frames that are stored in another order than they are shown in, against decoding all of them."""
    encode(tmp_path / name, codec, **({"max_b_frames": 2} if codec != "libvpx-vp9" else {}))
    with av.open(str(tmp_path / name)) as container:
        every = sorted((float(f.time), f.to_image().getpixel((4, 4))) for f in container.decode(video=0))
    for fps in (25, 10):
        for start in (0.0, 5 / fps, 10 / fps):
            shown = [
                picture.getpixel((4, 4))
                for picture in read_clip(tmp_path / name, start=start, frames=5, fps=fps)
            ]
            moments = [every[0][0] + start + k / fps + 1e-6 for k in range(5)]
            assert shown == [[grey for time, grey in every if time <= moment][-1] for moment in moments]


@pytest.mark.parametrize(("pixel", "sides"), [(Fraction(2), (16, 64)), (Fraction(1, 2), (32, 32))])
def test_pixels_that_are_not_square_are_made_so(
    tmp_path: Path, pixel: Fraction, sides: tuple[int, int]
) -> None:
    """As of anamorphic films, which players stretch."""
    encode(tmp_path / "a.mp4", "libx264", count=10, pixel=pixel)
    (tmp_path / "a.txt").write_text("a clip")
    data = VideoDataset(tmp_path, size=Buckets(((32, 32), (16, 32), (16, 64))), frames=3, fps=25)
    assert data[0]["pixels"].shape == (3, 3, *sides)


def test_headers_alone(tmp_path: Path) -> None:
    """What the file says of its length is believed; that it is cut off is named when it is reached."""
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mkv")
    raw = (tmp_path / "b.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(raw[: len(raw) // 2])
    data = VideoDataset(tmp_path, size=16, frames=8, fps=8, clips=None, check="headers")
    assert [numbers(data[i]) for i in (0, 1)] == [[*range(8)], [*range(8, 16)]]
    with pytest.raises(TwinflowError, match=r"b.mkv ends before 2.00 s"):
        data[3]
    with pytest.raises(TwinflowError, match=r"b.mkv: .*0.38 s long"):
        VideoDataset(tmp_path, size=16, frames=16, fps=8, clips=None)
