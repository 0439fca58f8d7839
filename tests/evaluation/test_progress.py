"""What a reader sees while pictures are scored: how fast, and how long it will take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from twinflow.evaluation import runner
from twinflow.evaluation.extractors import Texture
from twinflow.evaluation.feature_bank import FeatureBank
from twinflow.evaluation.measures import Distribution, Sharpness
from twinflow.evaluation.progress import bar

from .evaluated import BENCHMARK, evaluate
from .folders import folder_of


@pytest.mark.parametrize(
    ("step", "done", "said"),
    [
        (12.0, 100, ["103/2212", "12.0 s/image", "7:01:48"]),  # 2109 pictures of 12 seconds
        (900.0, 0, ["3/2212", "900.0 s/image", "552:15:00"]),  # one in a quarter of an hour is still a speed
        (0.25, 2000, ["2003/2212", "4.0 images/s", "0:00:53"]),
    ],
)
def test_speed_and_time_left_are_those_of_new_pictures(step, done, said):
    now = [0.0]
    recorded = io.StringIO()
    console = Console(file=recorded, force_terminal=True, width=120, get_time=lambda: now[0])
    with bar("geneval", 2212, shown=True, console=console) as update:
        for count in range(done, done + 4):  # the first tells what was there before
            update(count, 2212)
            now[0] += step
    text = recorded.getvalue()
    assert all(part in text for part in said), text


def test_scores_and_measures_tell_how_far_they_are(tmp_path, monkeypatch):
    seen: dict[str, list[tuple[int, int]]] = {}

    class Recorded:
        def __init__(self, title, total, *, shown):
            self.told = seen.setdefault(title, [])

        def __enter__(self):
            return lambda done, total: self.told.append((done, total))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(runner, "bar", Recorded)
    evaluate(tmp_path, "base=shapeworld-tiny", nfe=[1], measures=[Sharpness()], batch=5)
    assert seen["base at 1 NFE"] == [(0, 12), (5, 12), (10, 12), (12, 12)]
    assert seen["shapeworld of base at 1 NFE"] == [(n, 12) for n in range(1, 13)]
    assert seen["sharpness of base at 1 NFE"][-1] == (12, 12)
    (tmp_path / "base_nfe1" / BENCHMARK.pictures[0].file).unlink()
    seen.clear()
    evaluate(tmp_path, "base=shapeworld-tiny", nfe=[1], measures=[Sharpness()], batch=5)
    assert seen["base at 1 NFE"] == [(7, 12), (12, 12)]  # the block of the picture that was missing


def test_shards_that_are_there_are_told_first(tmp_path):
    pictures = folder_of(tmp_path / "p", 5, seed=0)
    folder_of(tmp_path / "real", 3, seed=1)
    told: list[tuple[int, int]] = []

    def progress(done, total):
        told.append((done, total))

    FeatureBank(tmp_path / "p", pictures[:2], Texture(), cache=tmp_path / "c").compute(progress)
    FeatureBank(tmp_path / "p", pictures, Texture(), cache=tmp_path / "c", shard=2, batch=1).compute(progress)
    assert told == [(0, 2), (2, 2), (2, 5), (3, 5), (4, 5), (5, 5)]
    told.clear()
    measure = Distribution(str(tmp_path / "real"))
    measure.measure(tmp_path / "p", pictures, cache=tmp_path / "d", progress=progress)
    assert told == [(0, 8), (3, 8), (3, 8), (8, 8)]
