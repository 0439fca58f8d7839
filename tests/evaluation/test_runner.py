"""Pictures do not depend on who draws them, and nothing that was done is done again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from twinflow.assets import copy_model
from twinflow.errors import TwinflowError
from twinflow.evaluation import models
from twinflow.evaluation.drawing import RECORD, default_batch, draw_pictures
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.models import AnyStepModel, open_model
from twinflow.evaluation.pictures import Picture, key_of, pictures_in
from twinflow.evaluation.results import EvaluationTable
from twinflow.evaluation.samplers import Sampler
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.pipelines.exported import Exported
from twinflow.sampling import few_step_times, sample
from twinflow.training.processes import Processes

from .evaluated import BENCHMARK, evaluate


@pytest.fixture(scope="module")
def model() -> AnyStepModel:
    opened = open_model(ModelName.parse("shapeworld-tiny"))
    assert isinstance(opened, AnyStepModel)
    return opened


class Counting:
    """A model that counts what it draws, and may be stopped."""

    def __init__(self, model: AnyStepModel, stop_after: int | None = None) -> None:
        self.model, self.stop_after, self.drawn, self.encoded = model, stop_after, 0, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> torch.Tensor:
        if self.stop_after is not None and self.drawn >= self.stop_after:
            raise KeyboardInterrupt
        self.drawn += len(pictures)
        return self.model.draw(pictures, sampler)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(pictures_in(folder))}


def pixels(folder: Path) -> dict[str, bytes]:
    return {name: Image.open(folder / name).tobytes() for name in sorted(pictures_in(folder))}


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(model, tmp_path):
    sampler = model.sampler(2, None)
    draw_pictures(model, BENCHMARK.pictures, sampler, tmp_path / "whole", batch=5)
    stopped = Counting(model, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        draw_pictures(stopped, BENCHMARK.pictures, sampler, tmp_path / "parts", batch=5)
    assert len(pictures_in(tmp_path / "parts")) == 5
    (tmp_path / "parts" / ".00007.png.123").write_bytes(b"cut off")  # what a kill leaves
    (tmp_path / "parts" / "00001.png").unlink()
    going_on = Counting(model)
    drawing = draw_pictures(going_on, BENCHMARK.pictures, sampler, tmp_path / "parts", batch=5)
    assert going_on.drawn == 12  # the first block again, for its missing picture, and the two others
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    again = Counting(model)
    assert draw_pictures(again, BENCHMARK.pictures, sampler, tmp_path / "parts", batch=5) == drawing
    assert again.drawn == 0
    assert drawing.seconds_per_image > 0


def test_a_picture_alone_depends_on_nothing_but_its_prompt_and_seed(model, tmp_path):
    sampler = model.sampler(1, None)
    draw_pictures(model, BENCHMARK.pictures, sampler, tmp_path / "all", batch=1)
    few = BENCHMARK.pictures[7:9][::-1]
    draw_pictures(model, few, sampler, tmp_path / "few", batch=1)
    whole = files(tmp_path / "all")
    assert files(tmp_path / "few") == {picture.file: whole[picture.file] for picture in few}


@pytest.mark.parametrize(("dtype", "levels"), [("float64", 0), ("float32", 1)])
def test_any_batch_gives_the_same_pixels_up_to_a_level_in_single_precision(dtype, levels, tmp_path):
    """In single precision the sums of a batch differ by 1e-5, which moves one pixel in thousands by one level."""
    model = open_model(ModelName.parse("shapeworld-tiny"), dtype=dtype)
    sampler = model.sampler(1, None)
    for batch in (1, 5):
        draw_pictures(model, BENCHMARK.pictures, sampler, tmp_path / str(batch), batch=batch)
    one, five = pixels(tmp_path / "1"), pixels(tmp_path / "5")
    assert one.keys() == five.keys()
    apart = [abs(a - b) for name in one for a, b in zip(one[name], five[name], strict=True)]
    assert max(apart) <= levels
    assert sum(apart) < len(apart) / 100


def test_another_model_or_sampler_is_drawn_anew(model, tmp_path):
    sampler = model.sampler(1, None)
    draw_pictures(model, BENCHMARK.pictures[:2], sampler, tmp_path)
    for other, how in (
        (Counting(model), replace(sampler, nfe=2)),
        (Counting(model), sampler),
    ):
        draw_pictures(other, BENCHMARK.pictures[:2], how, tmp_path)
        assert other.drawn == 2


def test_a_mixture_has_no_record_that_speaks_for_all_of_it(model, tmp_path):
    sampler = model.sampler(1, None)
    draw_pictures(model, BENCHMARK.pictures[:4], sampler, tmp_path, batch=2)
    assert (tmp_path / RECORD).is_file()
    stopped = Counting(model, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        draw_pictures(stopped, BENCHMARK.pictures[:4], replace(sampler, nfe=2), tmp_path, batch=2)
    assert not (tmp_path / RECORD).is_file()  # two pictures of one evaluation, two of two


def test_a_model_that_is_fetched_by_its_first_evaluation_is_the_same_in_the_next(tmp_path, monkeypatch):
    late = tmp_path / "late"

    def fetch(path, **options):
        copy_model("shapeworld-tiny", path) if not Path(path).exists() else None
        return load_model(path, **options)

    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", fetch)
    name = ModelName(name="late", path=str(late), kind="any-step")
    assert open_model(name).identity == open_model(name).identity


def test_what_an_earlier_longer_run_drew_is_taken_away_and_nothing_else(model, tmp_path):
    sampler = model.sampler(1, None)
    draw_pictures(model, BENCHMARK.pictures[:3], sampler, tmp_path)
    draw_pictures(model, BENCHMARK.pictures[:2], sampler, tmp_path)
    assert pictures_in(tmp_path) == {"00000.png", "00001.png"}
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    with pytest.raises(TwinflowError, match=r"more than.*mine\.png"):
        draw_pictures(model, BENCHMARK.pictures[:2], sampler, tmp_path)


def test_large_pictures_are_drawn_one_by_one(model):
    assert default_batch(model) == 64
    model.size = (1024, 1024)
    try:
        assert default_batch(model) == 1
    finally:
        model.size = None


def test_prompts_are_encoded_once(model, tmp_path, monkeypatch):
    counted: list[str] = []
    encode = model.pipe.encode_prompts
    monkeypatch.setattr(model, "_encoded", {})
    monkeypatch.setattr(
        model.pipe, "encode_prompts", lambda prompts: counted.extend(prompts) or encode(prompts)
    )
    for nfe in (1, 2):
        draw_pictures(model, BENCHMARK.pictures, model.sampler(nfe, None), tmp_path / str(nfe), batch=5)
    assert sorted(counted) == sorted({picture.prompt for picture in BENCHMARK.pictures})


def test_pictures_of_others_get_the_score_that_they_had_here(tmp_path, monkeypatch):
    drawn = evaluate(tmp_path / "a", "base=shapeworld-tiny", nfe=[8])
    found = evaluate(tmp_path / "b", f"copy=images:{tmp_path / 'a' / 'base_nfe8'}")
    (row,) = found.rows
    assert (row.model, row.nfe, row.overall) == ("copy", 8, drawn.rows[0].overall)
    assert [s["correct"] for s in row.samples] == [s["correct"] for s in drawn.rows[0].samples]
    assert (tmp_path / "b" / row.samples[0]["file"]).is_file()
    wrong = [f for f in row.failures if f["boxes"]]
    assert all(f["reason"] and f["size"] == [32, 32] for f in row.failures)
    assert wrong

    # A second call with the same pictures scores nothing again, and keeps the rows of other models.
    monkeypatch.setattr(ShapeWorldBenchmark, "score", None)
    again = evaluate(tmp_path / "a", "base=shapeworld-tiny", nfe=[8])
    assert again.rows == drawn.rows


def test_the_stock_call_is_counted_and_draws_what_diffusers_draws(tmp_path):
    table = evaluate(tmp_path, "stock:shapeworld-tiny", nfe=[4], guidance=2.0)
    (row,) = table.rows
    assert (row.model, row.style, row.nfe) == ("shapeworld-tiny", "stock", 4)
    opened = open_model(ModelName.parse("stock:shapeworld-tiny"))
    assert opened.steps(Sampler(nfe=4, guidance=2.0)) == 2  # guidance costs two a step
    assert opened.steps(Sampler(nfe=4, guidance=1.0)) == 4
    picture = BENCHMARK.pictures[3]
    image = opened.pipe(
        picture.prompt,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(picture.seed),
    ).images[0]
    drawn = Image.open(tmp_path / "shapeworld-tiny_nfe4" / picture.file)
    assert max(abs(a - b) for a, b in zip(image.tobytes(), drawn.tobytes())) <= 1
    with pytest.raises(TwinflowError, match="--nfe 3 is not possible"):
        opened.check([], [Sampler(nfe=3, guidance=2.0)])


@pytest.mark.parametrize("kind", ["", "stock:"])
def test_pictures_of_one_generator_are_those_drawn_in_turn_in_any_order(kind, tmp_path):
    """GenEval's own way of seeding: four pictures of a prompt go on with each other's random numbers."""
    opened = open_model(ModelName.parse(f"{kind}shapeworld-tiny"))
    sampler = opened.sampler(4, None)
    pictures = [
        Picture(file=f"{prompt}_{k}.png", prompt=f"a photo of a {prompt}", seed=42, skip=k)
        for prompt in ("circle", "square")
        for k in range(4)
    ]
    opened.check([], [sampler])
    for number, order in enumerate((pictures, pictures[::-1], pictures[5:6])):
        draw_pictures(opened, order, sampler, tmp_path / str(number), batch=1)
    whole = files(tmp_path / "0")
    assert len({whole[f"circle_{k}.png"] for k in range(4)}) == 4
    assert files(tmp_path / "1") == whole
    assert files(tmp_path / "2") == {"square_1.png": whole["square_1.png"]}
    generator = torch.Generator().manual_seed(42)
    for picture in pictures[:4]:
        if kind:
            call = dict(num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="pt")
            expected = opened.pipe(picture.prompt, **call).images.float().cpu() * 2 - 1
        else:
            noise = torch.randn(opened.pipe.latent_shape, generator=generator)[None].to(opened.pipe.device)
            cond = opened.pipe.encode_prompts([picture.prompt])
            expected = opened.pipe.decode(
                sample(opened.pipe.field, noise, cond, nfe=4, **sampler.options)
            ).cpu()
        assert torch.equal(opened.draw([picture], sampler), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "00003.png").unlink(), r"lacks 1 of 12 pictures: 00003\.png"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "x.png"), r"more than.*x\.png"),
        (lambda folder: (folder / "00003.png").write_bytes(b"\x89PNG\r\n"), r"00003\.png can't be read"),
        (lambda folder: Image.new("RGB", (40, 32)).save(folder / "00003.png"), "40 x 32"),
    ],
)
def test_a_folder_that_is_not_the_benchmark_s(change, message, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for picture in BENCHMARK.pictures:
        Image.new("RGB", (32, 32), "gray").save(folder / picture.file)
    change(folder)
    with pytest.raises(TwinflowError, match=message):
        evaluate(tmp_path / "out", f"theirs=images:{folder}")


@pytest.mark.slow
def test_three_processes_go_on_where_two_were_stopped_and_end_with_the_bytes_that_one_draws(model, tmp_path):
    sampler, folder = model.sampler(2, None), tmp_path / "three" / "base_nfe2"
    draw_pictures(model, BENCHMARK.pictures, sampler, tmp_path / "one", batch=2)
    for rank in range(2):  # both stop at their second block, before they meet
        place, stopped = Processes(rank=rank, world_size=2), Counting(model, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            draw_pictures(stopped, BENCHMARK.pictures, sampler, folder, batch=2, place=place)
    before = {name: (folder / name).stat().st_mtime_ns for name in pictures_in(folder)}
    assert sorted(before) == [f"{i:05}.png" for i in range(4)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    command += [
        "-m",
        "twinflow",
        "eval",
        "base=shapeworld-tiny",
        "--nfe=2",
        "--images-per-task=2",
        "--batch=2",
    ]
    command.append(f"--output={tmp_path / 'three'}")
    pipe, env = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
    try:
        said, complaint = run.communicate(timeout=300)
    finally:
        run.terminate()  # torchrun takes its processes with it; killed, it would leave them behind
    assert run.returncode == 0, complaint
    assert files(folder) == files(tmp_path / "one")
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before  # not drawn again
    (row,) = EvaluationTable.load(tmp_path / "three" / "table.json").rows
    assert row.images == 12
    assert said.count("report:") == 1  # one process writes and talks
    assert key_of(folder / "00000.png")


def test_an_export_is_evaluated_at_its_own_number_of_steps(model, monkeypatch):
    """At others its weights are wrong, and a score would be of nothing."""
    exported = Exported(kind="diffusers", nfe=2, times=few_step_times(2))
    monkeypatch.setattr(model.pipe, "exported", exported)
    monkeypatch.setattr(model.pipe, "words", None)
    model.check(["a"], [model.sampler(2, None)])
    for nfe, guidance in ((1, None), (4, None), (2, 3.0)):
        with pytest.raises(TwinflowError, match=rf"--nfe {nfe}: .*exported for exactly 2 evaluations"):
            model.check(["a"], [model.sampler(nfe, guidance)])
