"""The prompts are the official ones, and files that are not usable are refused with their line."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from evaluation.geneval.lines import SIX, prompt_file, write_lines
from evaluation.official import GENEVAL, needs_geneval
from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval import CLASS_NAMES, COLORS, TASKS, GenEval, read_prompts
from twinflow.evaluation.geneval.seeds import generators, prompt_seeds


@needs_geneval
def test_the_official_prompts_are_complete_and_in_order():
    prompts = read_prompts(GENEVAL)
    assert prompts.official
    assert len(prompts) == len({row["prompt"] for row in prompts.rows}) == 553
    tags = [row["tag"] for row in prompts.rows]
    assert list(dict.fromkeys(tags)) == list(TASKS)
    assert Counter(tags) == dict(
        single_object=80, two_object=99, counting=80, colors=94, position=100, color_attr=100
    )
    assert [row["include"][0]["class"] for row in prompts.rows[:80]] != CLASS_NAMES  # shuffled, each once:
    assert {row["include"][0]["class"] for row in prompts.rows[:80]} == set(CLASS_NAMES)
    assert prompts.rows[250]["exclude"][0]["count"] == prompts.rows[250]["include"][0]["count"] + 1
    assert "a photo of four knifes" in {row["prompt"] for row in prompts.rows}  # naive plurals stay


@needs_geneval
def test_classes_and_colors_are_the_official_ones():
    assert list(CLASS_NAMES) == GENEVAL.with_name("object_names.txt").read_text().splitlines()
    assert list(COLORS) == GENEVAL.with_name("colors.txt").read_text().splitlines()


def test_classes_have_cocos_order():
    assert len(CLASS_NAMES) == 80
    assert (CLASS_NAMES[0], CLASS_NAMES[13], CLASS_NAMES[79]) == ("person", "bench", "toothbrush")
    # the three that COCO calls mouse, remote and keyboard
    assert CLASS_NAMES[64:67] == ("computer mouse", "tv remote", "computer keyboard")


GOOD = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "not JSON"),
        ("[1]", "expected a JSON object"),
        (json.dumps({"tag": "single_object", "prompt": "x"}), "include missing"),
        (json.dumps(GOOD | {"tag": "texture"}), "tag 'texture'"),
        (json.dumps(GOOD | {"prompt": " "}), "prompt ' '"),
        (json.dumps(GOOD | {"include": []}), "list of clauses"),
        (json.dumps(GOOD | {"include": [{"class": "mouse", "count": 1}]}), "class 'mouse'"),
        (json.dumps(GOOD | {"include": [{"class": "cow", "count": 0}]}), "count 0"),
        (json.dumps(GOOD | {"include": [{"class": "cow", "count": 1, "color": "teal"}]}), "color 'teal'"),
        (
            json.dumps(GOOD | {"include": [{"class": "cow", "count": 1, "position": ["left of", 0]}]}),
            "position",
        ),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(TwinflowError, match="line 3") as error:
        read_prompts(path)
    assert says in str(error.value)


def test_files_without_prompts_or_with_one_twice_are_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(TwinflowError, match="can't be read"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(TwinflowError, match="has no prompts"):
        read_prompts(path)
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    with pytest.raises(TwinflowError, match="more than once"):
        read_prompts(path)


@needs_geneval
def test_a_prompt_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "copy.jsonl"
    rows = [json.loads(line) for line in GENEVAL.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(row, indent=None, sort_keys=True) for row in rows))
    assert read_prompts(path).official
    rows[7]["prompt"] = "a majestic photograph, ultra detailed"  # rewritten
    path.write_text("\n".join(map(json.dumps, rows)))
    assert not read_prompts(path).official
    assert GenEval(metadata=path).protocol()["benchmark"] == "GenEval with other prompts"
    assert GenEval(metadata=GENEVAL).protocol()["benchmark"] == "GenEval"
    two = GenEval(metadata=GENEVAL, images_per_prompt=2).protocol()["benchmark"]
    assert two == "GenEval with 2 pictures a prompt instead of 4"


def test_white_space_and_the_order_of_keys_do_not_matter(tmp_path):
    one = read_prompts(write_lines(tmp_path / "one.jsonl", *SIX))
    turned = [dict(reversed(row.items())) for row in SIX]
    (tmp_path / "two.jsonl").write_text("\n\n".join(json.dumps(row, separators=(",", ":")) for row in turned))
    assert read_prompts(tmp_path / "two.jsonl").sha256 == one.sha256 == prompt_file(*SIX).sha256
    assert not one.official


def test_what_to_draw():
    work = GenEval(metadata=prompt_file(*SIX), images_per_prompt=3, seed=10).prompts()
    assert [w.index for w in work] == list(range(6))
    assert work[5].paths == tuple(f"00005/samples/{k:05}.png" for k in range(3))
    assert work[5].seeds == (10, 11, 12)
    assert work[5].prompt == work[5].metadata["prompt"]


def test_official_seeding_gives_the_numbers_of_seed_everything():
    work = GenEval(metadata=prompt_file(*SIX), seed_mode="geneval").prompts()[5]
    assert work.seeds == (42, None, None, None)
    torch.manual_seed(42)
    official = [torch.randn(3) for _ in range(4)]
    ours = [torch.randn(3, generator=generator) for generator in work.generators()]
    assert all(torch.equal(a, b) for a, b in zip(ours, official))


def test_a_picture_with_a_seed_of_its_own_does_not_depend_on_the_others():
    alone = torch.randn(3, generator=generators((7,))[0])
    after = [torch.randn(3, generator=g) for g in generators(prompt_seeds("image", 3, seed=5))][2]
    assert torch.equal(alone, after)


def test_settings_that_make_no_sense():
    with pytest.raises(TwinflowError, match="images_per_prompt"):
        GenEval(images_per_prompt=0)
    with pytest.raises(TwinflowError, match="seed_mode"):
        GenEval(seed_mode="official")
    with pytest.raises(TwinflowError, match="would be ignored"):
        GenEval(seed_mode="geneval", seed=3)
    with pytest.raises(ValueError, match="seed of its own"):
        generators((None, 3))
