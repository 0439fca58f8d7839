"""How models, benchmarks and measures are named on the command line."""

from __future__ import annotations

import pytest

from twinflow.errors import TwinflowError
from twinflow.evaluation.building import build
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.prompt_file import read_prompts
from twinflow.evaluation.registry import entries
from twinflow.evaluation.runner import Evaluation
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b/c", ("a", "b/c", "any-step", None)),
        ("b/c", ("c", "b/c", "any-step", None)),
        ("x=images:d/e@4", ("x", "d/e", "images", 4)),
        ("stock:o/m", ("m", "o/m", "stock", None)),
    ],
)
def test_names_of_models(text, expected):
    name = ModelName.parse(text)
    assert (name.name, name.path, name.kind, name.nfe) == expected


def test_models_that_are_none(tmp_path):
    with pytest.raises(TwinflowError, match="no model and has no pictures"):
        ModelName.parse(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("model: x")
    with pytest.raises(TwinflowError, match="no pipeline yet"):
        ModelName.parse(str(tmp_path))
    with pytest.raises(TwinflowError, match="can't name a folder"):
        ModelName.parse("a/b=shapeworld-tiny")
    with pytest.raises(TwinflowError, match="two models are called 'a'"):
        Evaluation(benchmarks=[ShapeWorldBenchmark(images_per_task=2)], nfe=[2], output=tmp_path).run(
            ["a=shapeworld-tiny"] * 2
        )


def test_prompts_are_what_the_file_says_whatever_wrote_it(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa red\u2028cup\r\n\r\nblue\x85sky".encode())
    assert read_prompts(file) == ["a red\u2028cup", "blue\x85sky"]


def test_the_registry_builds_what_is_asked_for(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    benchmarks, measures = build(
        ["prompts", "shapeworld"], common={"prompts": file, "images_per_task": 1, "seed": 3}, own={}
    )
    assert not measures
    assert [picture.prompt for picture in benchmarks[0].pictures] == ["a", "b"]
    assert len(benchmarks[1].pictures) == 6
    assert benchmarks[1].pictures[0].seed == 3 * 1_000_003
    file.write_text('{"prompt": "a"}\nb\n')
    for names, common, own, message in (
        (["imagenet"], {}, {}, "imagenet"),
        (["prompts"], {}, {}, "--prompts FILE"),
        (["prompts"], {"prompts": file}, {}, "line 2 is not JSON"),
        (["prompts"], {"prompts": tmp_path / "no.txt"}, {}, r"no\.txt can't be read"),
        (["shapeworld"], {}, {"shapeworld": {"size": "3"}}, "no such option"),
        (["shapeworld"], {}, {"prompts": {"seed": "3"}}, "not among the benchmarks"),
        (["shapeworld"], {}, {"shapeworld": {"seed": "x"}}, "whole number"),
        (["shapeworld"], {"images_per_prompt": 4}, {}, "--images-per-prompt is no option of shapeworld"),
    ):
        with pytest.raises(TwinflowError, match=message):
            build(names, common=common, own=own)
    assert all(entry.summary for entry in entries().values())
