"""Prompts, questions and grids: official forms are read, and what can't be used is named."""

from __future__ import annotations

import hashlib
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.official import DPG, needs_dpg
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import read_prompts, read_questions, requirements
from twinflow.evaluation.dpg.grid import find_grids, make_grid, split_grid


@needs_dpg
def test_the_official_prompts_are_complete():
    prompts = read_prompts(DPG)
    assert prompts.official
    texts = prompts.texts
    assert len(texts) == 1065
    lengths = [len(text) for text in texts.values()]
    assert (min(lengths), max(lengths), round(sum(lengths) / 1065)) == (234, 891, 408)
    assert {str(k) for k in range(300)} - {"159"} <= texts.keys()
    assert "159" not in texts


@needs_dpg
def test_a_folder_of_text_files_is_the_same_set(tmp_path):
    for item, text in read_prompts(DPG).texts.items():
        (tmp_path / f"{item}.txt").write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path).official
    (tmp_path / "0.txt").write_text("Eight cabbages.")
    assert not read_prompts(tmp_path).official


def test_prompts_that_cannot_be_used(tmp_path):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(TwinflowError, match="can't be read"):
        read_prompts(path)
    good = json.dumps({"item_id": "1", "text": "a"})
    for line, says in (("{", "line 2"), ('{"item_id": "2"}', "line 2"), (good, "twice"), ("3", "line 2")):
        path.write_text(f"{good}\n{line}\n")
        with pytest.raises(TwinflowError, match=says):
            read_prompts(path)
    path.write_text("")
    with pytest.raises(TwinflowError, match="has no prompts"):
        read_prompts(path)
    path.write_text(json.dumps({"item_id": "1", "text": " "}))
    with pytest.raises(TwinflowError, match="prompt of 1 is empty"):
        read_prompts(path)


def test_a_prompt_may_have_any_character_but_a_line_feed(tmp_path):
    text = "A sign that says\u2028OPEN\x85daily\x0c."
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"item_id": "1", "text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prompts(path).texts == {"1": text}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TwinflowError, match=r"1.txt can't be read"):
        read_prompts(tmp_path / "folder")


def test_questions_of_the_official_form(tmp_path):
    rows = [
        ("vrd2", 1, "0", "entity - whole", "Is there a cup, and is it whole?"),
        ("vrd2", 2, "1", "relation - non-spatial", "Does it hold tea?"),
        ("vrd2", 3, "1, 2", "other - text", 'Does it say "tea"?'),
    ]
    path = write_csv(tmp_path / "dpg_bench.csv", rows)
    questions = read_questions(path)
    one, two, three = questions.by_item["vrd2"]
    assert (one.parents, two.parents, three.parents) == ((), (1,), (1, 2))
    assert (two.category, two.broad_category) == ("relation - non-spatial", "relation")
    assert three.text == 'Does it say "tea"?'
    assert questions.first == ("vrd2", 1)
    assert len(questions) == 3
    assert not questions.official
    told = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert questions.git_blob == told.stdout.strip()
    assert len(questions.git_blob) == len(hashlib.sha1().hexdigest())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("a", "one", "0", "global", "?"), "proposition_id 'one'"),
        (("a", 2, "none", "global", "?"), "dependency 'none'"),
        (("a", 2, "7", "global", "?"), "question 2 of a depends on 7"),
        (("a", 2, "0", "global", ""), "has no text"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path, row, says):
    path = write_csv(tmp_path / "q.csv", [("a", 1, "0", "global", "?"), row])
    with pytest.raises(TwinflowError, match=says):
        read_questions(path)


def test_other_files_are_not_questions(tmp_path):
    path = tmp_path / "q.csv"
    with pytest.raises(TwinflowError, match="raw.githubusercontent.com"):
        read_questions(path)
    path.write_text("item_id,text\n1,a\n")
    with pytest.raises(TwinflowError, match="lacks the columns proposition_id, dependency"):
        read_questions(path)
    write_csv(path, [])
    with pytest.raises(TwinflowError, match="has no questions"):
        read_questions(path)


def pictures(count: int = 4, size: tuple[int, int] = (6, 4)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_a_grid_gives_its_pictures_back(tmp_path, count):
    four = pictures(count)
    path = tmp_path / "0.png"
    make_grid(four).save(path)
    again = split_grid(path, count=count)
    assert [one.tobytes() for one in again] == [one.tobytes() for one in four]


def test_the_order_is_by_rows_and_there_is_no_padding(tmp_path):
    grid = make_grid([Image.new("RGB", (2, 2), (k, 0, 0)) for k in range(4)])
    assert grid.size == (4, 4)
    assert np.array(grid)[..., 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_grids_that_cannot_be_split(tmp_path):
    path = tmp_path / "0.png"
    Image.new("RGB", (7, 8)).save(path)
    with pytest.raises(TwinflowError, match="padding=0"):
        split_grid(path)
    Image.new("RGB", (8, 8)).save(path)
    assert split_grid(path, resolution=4)[3].size == (4, 4)
    with pytest.raises(TwinflowError, match="4 x 4, expected 512 x 512"):
        split_grid(path, resolution=512)
    path.write_bytes(b"not a picture")
    with pytest.raises(TwinflowError, match=r"0.png can't be read"):
        split_grid(path)
    with pytest.raises(TwinflowError, match="different sizes"):
        make_grid([*pictures(3), *pictures(1, (5, 5))])


def test_a_folder_of_grids_is_complete_or_an_error(tmp_path):
    with pytest.raises(TwinflowError, match="there is no folder"):
        find_grids(tmp_path / "absent", ["0"])
    for name in ("0.png", "1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "results.txt").write_text("not a picture")
    assert list(find_grids(tmp_path, ["1", "0"])) == ["1", "0"]
    with pytest.raises(TwinflowError, match="lacks 2 of 3 grids: 2, 3"):
        find_grids(tmp_path, ["0", "2", "3"])
    with pytest.raises(TwinflowError, match="not asked for: 1"):
        find_grids(tmp_path, ["0"])
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(TwinflowError, match="both of item 1"):
        find_grids(tmp_path, ["0", "1"])


def test_requirements_name_what_is_fetched():
    needed = {r.name: r for r in requirements()}
    assert needed["questions"].source.endswith("dpg_bench.csv")
    assert all(r.size and r.licence and r.what for r in needed.values())
