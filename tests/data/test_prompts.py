"""Prompts alone, and triples of an edit in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from twinflow.data.folder import FolderDataset
from twinflow.data.prompts import PromptsDataset
from twinflow.errors import TwinflowError


def test_one_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n\n  größer \n")
    assert list(map(dict, PromptsDataset(tmp_path / "p.txt"))) == [
        {"caption": "a red circle"},
        {"caption": "größer"},
    ]


def test_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "one"}\n{"text": ["two", "deux"]}\n{"text": ""}\n{"prompt": "x"}\n{\n')
    with pytest.raises(TwinflowError) as caught:
        PromptsDataset(file)
    for words in (
        "3 of 5",
        "line 3: a caption of it is empty",
        "line 4: it must be",
        "line 5: it is not JSON",
    ):
        assert words in str(caught.value)
    data = PromptsDataset(file, on_error="skip")
    assert [data[0], data[1]] == [{"caption": "one"}, {"caption": "two", "captions": ("two", "deux")}]


def test_files_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n\n")
    with pytest.raises(TwinflowError, match="has no prompt"):
        PromptsDataset(tmp_path / "p.txt")
    with pytest.raises(TwinflowError, match="can't be read"):
        PromptsDataset(tmp_path / "nowhere.txt")


def write_edits(folder: Path, lines: list[dict]) -> None:
    for name, colour, size in (("before", "red", (20, 10)), ("after", "blue", (40, 20))):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_an_edit_has_source_instruction_and_target(tmp_path: Path) -> None:
    write_edits(tmp_path, [{"file_name": "after.png", "source": "before.png", "text": "make it blue"}])
    (item,) = FolderDataset(tmp_path, size=8)
    assert item["caption"] == "make it blue"
    assert item["pixels"][:, 0, 0].tolist() == [-1, -1, 1]
    assert item["source"].getpixel((0, 0)) == (255, 0, 0)
    assert item["source"].size == (8, 8)


def test_without_pictures_source_and_instruction_suffice(tmp_path: Path) -> None:
    write_edits(tmp_path, [{"source": "before.png", "text": "make it blue"}])
    (item,) = FolderDataset(tmp_path, size=8, pictures=False)
    assert item.keys() == {"caption", "source"}
    with pytest.raises(TwinflowError, match=r'before.png: it has no "file_name".*pictures: false'):
        FolderDataset(tmp_path, size=8)


def test_lines_without_a_source_among_lines_with_one(tmp_path: Path) -> None:
    edit = {"file_name": "after.png", "source": "before.png", "text": "make it blue"}
    write_edits(tmp_path, [edit, {"file_name": "after.png", "text": "a blue picture"}])
    with pytest.raises(TwinflowError, match=r'1 of 2 .*\n.*after.png: it has no "source"'):
        FolderDataset(tmp_path, size=8)
    assert len(FolderDataset(tmp_path, size=8, on_error="skip")) == 1


def test_prompts_that_are_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only a line feed ends a line; what is left out is logged."""
    raw = ["one\u2028and\x0bmore".encode(), "größer".encode("latin-1"), b"a\0b", "\xa0".encode(), b"two"]
    (tmp_path / "p.txt").write_bytes(b"\r\n".join(raw))
    with pytest.raises(TwinflowError, match=r"(?s)2 of 4 .*line 2: it is not UTF-8.*line 3: .*NUL"):
        PromptsDataset(tmp_path / "p.txt")
    data = PromptsDataset(tmp_path / "p.txt", on_error="skip")
    assert [item["caption"] for item in data] == ["one\u2028and\x0bmore", "two"]
    assert "line 2" in caplog.text
    assert "line 3" in caplog.text
