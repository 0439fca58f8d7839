"""Pictures that are compared belong together; what is embedded is a picture of this folder."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from twinflow.report.gallery import compare, embed, spread


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_pictures_are_embedded_without_loss(folder, table):
    sample = table.rows[0].samples[0]
    uri, side = embed(folder, sample["file"])
    assert side == 32
    assert np.array_equal(np.asarray(decoded(uri)), np.asarray(Image.open(folder / sample["file"])))


def test_large_pictures_are_scaled_down(tmp_path):
    Image.new("RGB", (1024, 512)).save(tmp_path / "a.png")
    uri, side = embed(tmp_path, "a.png", largest=256)
    assert (side, decoded(uri).size) == (1024, (256, 128))


def test_nothing_outside_the_folder_and_nothing_but_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    inner = tmp_path / "eval"
    inner.mkdir()
    (inner / "text.png").write_text("no picture")
    for file in ("../secret.png", str(tmp_path / "secret.png"), "text.png", "missing.png"):
        assert embed(inner, file) == (None, 0)


def test_same_file_and_prompt_are_compared_and_others_left_out(folder, table):
    first, second = table.rows[0], table.rows[2]
    second.samples.reverse()
    second.samples[0]["prompt"] = "a photo of something else"
    comparisons = compare(folder, [first, second])
    assert len(comparisons) == len(first.samples) - 1
    for comparison, sample in zip(comparisons, first.samples):
        assert comparison.prompt == sample["prompt"]
        assert [tile.row for tile in comparison.tiles] == [first, second]
        assert {tile.correct for tile in comparison.tiles} == {sample["correct"]}


def test_spread_takes_even_distances(folder, table):
    comparisons = compare(folder, table.rows[:1])
    assert spread(comparisons, 6) == comparisons[::4]
    assert spread(comparisons, 100) == comparisons
