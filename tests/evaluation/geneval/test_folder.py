"""Folders in the official layout: complete, or an error that names what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from evaluation.geneval.lines import SIX, prompt_file
from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval import GenEval
from twinflow.evaluation.geneval.folder import find_images
from twinflow.evaluation.geneval.preprocess import read_image

ROWS = SIX[:3]
PROMPTS = prompt_file(*ROWS)


@pytest.fixture
def folder(tmp_path):
    suite = GenEval(metadata=PROMPTS, images_per_prompt=2)
    suite.prepare(tmp_path)
    for work in suite.prompts():
        for path in work.paths:
            Image.new("RGB", (8, 8)).save(tmp_path / path)
    return tmp_path


def find(folder, count=2, prompts=PROMPTS):
    return find_images(folder, prompts, images_per_prompt=count)


def test_a_folder_that_we_wrote_is_found_in_order(folder):
    (folder / "notes").mkdir()  # sub-folders that are not numbers are no part of it
    (folder / "00001" / "grid.png").write_bytes(b"never read")
    found = find(folder)
    assert [(f.prompt_index, f.image_index) for f in found] == [(i, k) for i in range(3) for k in range(2)]
    assert found[3].filename == "00001/samples/00001.png"
    assert found[3].metadata == ROWS[1]
    assert json.loads((folder / "00002" / "metadata.jsonl").read_text()) == ROWS[2]


def test_names_of_any_number_of_digits(folder):
    (folder / "00001").rename(folder / "1")
    for path in (folder / "00000" / "samples").glob("*.png"):
        path.rename(path.with_name(path.name[1:]))  # 0000.png, as the official README shows
    found = find(folder)
    assert len(found) == 6
    assert found[0].filename == "00000/samples/0000.png"
    assert found[2].filename == "1/samples/00000.png"


def test_missing_and_extra_pictures_are_named(folder):
    (folder / "00001" / "samples" / "00001.png").unlink()
    shutil.rmtree(folder / "00002" / "samples")
    with pytest.raises(
        TwinflowError, match=r"needs 2 PNG pictures, but 00001/samples has 1, 00002/samples has 0"
    ):
        find(folder)
    with pytest.raises(TwinflowError, match=r"needs 1 PNG pictures, but 00000/samples has 2"):
        find(folder, count=1)


def test_missing_and_extra_folders_are_named(folder):
    shutil.rmtree(folder / "00001")
    with pytest.raises(TwinflowError, match=r"lacks the folders 00001 of 3 prompts of 3.jsonl"):
        find(folder)
    with pytest.raises(TwinflowError, match="there is no folder"):
        find(folder / "absent")


def test_a_folder_of_more_prompts_is_refused(folder):
    with pytest.raises(TwinflowError, match=r"beyond the 2 prompts of 2.jsonl: 00002"):
        find(folder, prompts=prompt_file(*ROWS[:2]))


def test_a_folder_of_another_prompt_file_is_refused(folder):
    rows = (ROWS[0], {**ROWS[1], "prompt": "a painting of a cow"}, ROWS[2])
    with pytest.raises(TwinflowError, match="made from another prompt file"):
        find(folder, prompts=prompt_file(*rows))
    with pytest.raises(TwinflowError, match="made from another prompt file"):  # nor drawn into
        GenEval(metadata=prompt_file(*rows)).prepare(folder)


def test_metadata_that_is_missing_or_not_json(folder):
    path = folder / "00001" / "metadata.jsonl"
    path.write_text("{")
    with pytest.raises(TwinflowError, match=r"00001/metadata.jsonl: not JSON"):
        find(folder)
    path.unlink()
    with pytest.raises(TwinflowError, match=r"00001/metadata.jsonl can't be read"):
        find(folder)


def test_two_files_of_the_same_number_are_refused(folder):
    samples = folder / "00000" / "samples"
    shutil.copy(samples / "00000.png", samples / "0000.png")
    with pytest.raises(TwinflowError, match="same number"):
        find(folder, count=3)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "00000.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TwinflowError, match=r"00000.png can't be read"):
        read_image(path)
    Image.new("I;16", (8, 8)).save(path)
    with pytest.raises(TwinflowError, match="mode I;16"):
        read_image(path)


def test_alpha_is_dropped_and_rotation_applied(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (8, 4), (10, 20, 30, 0)).save(path)
    assert read_image(path).getpixel((3, 3)) == (10, 20, 30)  # and not blended
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    assert read_image(path).size == (4, 8)
