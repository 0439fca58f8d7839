"""GenEval, DPG-Bench and a file of prompts through the runner, with tiny random detectors and judges."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.dpg.tiny import save_tiny_vlm
from evaluation.geneval.lines import SIX, write_lines
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from twinflow.errors import TwinflowError
from twinflow.evaluation.building import build
from twinflow.evaluation.dpg import load_judge
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.pictures import pictures_in
from twinflow.evaluation.ranks import processes
from twinflow.evaluation.runner import Evaluation
from twinflow.report import write_report


def evaluation(tmp_path, names, *, common=None, own=None, **options) -> Evaluation:
    benchmarks, measures = build(names, common=common or {}, own=own or {})
    return Evaluation(
        benchmarks=benchmarks, measures=measures, nfe=[1], output=tmp_path / "out", shown=False, **options
    )


def noise(benchmark, folder):
    benchmark.prepare(folder)
    for i, picture in enumerate(benchmark.pictures):
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 20 + 20 * i).convert("RGB").save(path)
    return folder


def test_geneval_scores_folders_of_others_in_either_form_of_name(tmp_path):
    tiny_detector().save_pretrained(tmp_path / "detector")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    write_lines(tmp_path / "two.jsonl", SIX[0], SIX[-1])
    own = {"detector": str(tmp_path / "detector"), "colors": str(tmp_path / "clip"), "device": "cpu"}
    common = {"prompts": str(tmp_path / "two.jsonl"), "images_per_prompt": "2"}
    run = evaluation(tmp_path, ["geneval"], common=common, own={"geneval": own})
    (benchmark,) = run.benchmarks  # --prompts is GenEval's own: no second benchmark comes along
    folder = noise(benchmark, tmp_path / "theirs")
    short = shutil.copytree(folder, tmp_path / "short")
    for sample in short.glob("*/samples/*.png"):  # as the README of GenEval shows it
        sample.rename(sample.with_name(f"{int(sample.stem):04}.png"))
    (table,) = run.run([f"a=images:{folder}@4", f"b=images:{short}"])
    a, b = table.rows
    assert (a.nfe, a.images, a.overall) == (4, 4, b.overall)
    assert table.protocol["prompts_sha256"]
    text = write_report(run.folder(benchmark), table).html.read_text()
    assert ">missing<" not in text
    next(short.glob("*/samples/*.png")).unlink()
    with pytest.raises(TwinflowError, match="every prompt needs 2"):
        run.run([f"b=images:{short}"])


def test_folders_of_others_are_read_and_not_written_to(tmp_path):
    tiny_detector().save_pretrained(tmp_path / "detector")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    write_lines(tmp_path / "one.jsonl", SIX[0])
    own = {"detector": str(tmp_path / "detector"), "colors": str(tmp_path / "clip"), "device": "cpu"}
    common = {"prompts": str(tmp_path / "one.jsonl"), "images_per_prompt": "1"}
    run = evaluation(tmp_path, ["geneval"], common=common, own={"geneval": own})
    folder = noise(run.benchmarks[0], tmp_path / "theirs")
    (folder / "results.jsonl").write_text("the official scorer's, of many hours\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run.run([f"m={folder}"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {"results.jsonl", "scored.jsonl"} <= {
        path.name for path in (tmp_path / "out" / "m_nfe0").iterdir()
    }


def grids_of(tmp_path):
    """Options of DPG-Bench on one item of two questions, and a folder with its grid."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    rows = [("a", 1, "0", "global", "?"), ("a", 2, "0", "entity - whole", "Cup?")]
    questions = write_csv(tmp_path / "q.csv", rows)
    grids = tmp_path / "grids"
    grids.mkdir()
    Image.effect_noise((96, 80), 90).convert("RGB").save(grids / "a.png")
    own = {"questions": str(questions), "prompts": str(tmp_path / "p.jsonl"), "device": "cpu"}
    return own, grids


def test_two_judges_of_one_name_do_not_share_answers(tmp_path):
    own, grids = grids_of(tmp_path)
    rows = []
    for number, folder in enumerate(("one", "two")):
        judge = str(save_tiny_vlm(tmp_path / folder / "vlm", seed=number))
        options = own | {"judge": judge, "mode": "compare"}
        run = evaluation(tmp_path, ["dpg"], own={"dpg": options}, overwrite=True)
        run.run([f"g={grids}"])
        rows.append(len(list((tmp_path / "out" / "g_nfe0").glob("answers_*.jsonl"))))
        refused = evaluation(tmp_path, ["dpg"], own={"dpg": options | {"mode": "greedy"}})
        with pytest.raises(TwinflowError, match=r"another protocol.*judge mode"):
            refused.run([f"g={grids}"])
    assert rows == [1, 2]


def answers(path, judge, *said):
    lines = [
        {
            "item_id": "a",
            "picture": k,
            "proposition_id": q,
            "question": text,
            "answer": answer,
            "judge": judge,
        }
        for (q, text), answer in zip(((1, "?"), (2, "Cup?")), said)
        for k in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_imported_answers_name_their_judge_and_may_be_written_anew(tmp_path):
    own, grids = grids_of(tmp_path)
    other = shutil.copytree(grids, tmp_path / "other")
    own |= {"judge": "import:mplug.jsonl"}

    def run(*models, **options):
        (table,) = evaluation(tmp_path, ["dpg"], own={"dpg": own}, **options).run(models)
        return table

    answers(grids / "mplug.jsonl", "mPLUG", "yes", "no")
    first = run(f"g={grids}")
    assert first.protocol["answers_by"] == "mPLUG"
    assert first.rows[0].overall == 0.5
    answers(grids / "mplug.jsonl", "mPLUG", "yes", "yes")
    assert run(f"g={grids}").rows[0].overall == 1.0
    answers(other / "mplug.jsonl", "a poet", "yes", "yes")
    with pytest.raises(TwinflowError, match=r"answers by is 'a poet', and of the table's other rows 'mPLUG'"):
        run(f"o={other}")
    assert run(f"o={other}", overwrite=True).protocol["answers_by"] == "a poet"


class Poet:
    """A judge of one's own, who says yes to questions with a cup."""

    def __init__(self, name="a poet"):
        self.name = name

    def answer(self, image, questions):
        return ["yes" if "Cup" in question else "no" for question in questions]


def test_a_judge_of_one_s_own_is_named_by_itself(tmp_path):
    own, grids = grids_of(tmp_path)
    plugged = own | {"judge": f"python:{__name__}:Poet"}
    (table,) = evaluation(tmp_path, ["dpg"], own={"dpg": plugged}).run([f"g={grids}"])
    assert table.rows[0].overall == 0.5
    assert table.protocol["answers_by"] == "a poet"
    assert table.protocol["judge"] == plugged["judge"]
    for judge, message in (
        ("python:no_such_module:f", "no_such_module"),
        (f"python:{__name__}:nobody", "nobody"),
        (f"python:{__name__}:json", "no function"),
    ):
        with pytest.raises(TwinflowError, match=message):
            evaluation(tmp_path / "b", ["dpg"], own={"dpg": own | {"judge": judge}}).run([f"g={grids}"])
    with pytest.raises(TwinflowError, match="a judge has a name"):
        load_judge("python:builtins:dict")


@pytest.mark.parametrize("drawn", [True, False])
def test_the_page_shows_what_the_judge_said_no_to(drawn, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    asked = ["Is it a photo?", "Is there a cup?", "Is it <red>?"]
    rows = [("a", k, "2" if k == 3 else "0", "global", text) for k, text in enumerate(asked, start=1)]
    questions = write_csv(tmp_path / "q.csv", rows)
    own = {"questions": str(questions), "prompts": str(tmp_path / "p.jsonl"), "judge": "import:said.jsonl"}
    run = evaluation(tmp_path, ["dpg"], own={"dpg": own})
    folder = noise(run.benchmarks[0], tmp_path / "theirs")
    run.benchmarks[0].suite.assemble(folder)
    if not drawn:
        shutil.rmtree(folder / "pictures")
    verdicts = (("yes", "yes", "yes"), ("yes", "no", "yes"), ("yes", "yes", "no"), ("yes", "yes", "yes"))
    lines = [
        {"item_id": "a", "picture": k, "proposition_id": q, "question": text, "answer": answer, "judge": "J"}
        for k, said in enumerate(verdicts)
        for (q, text), answer in zip(enumerate(asked, start=1), said)
    ]
    (folder / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (table,) = run.run([f"m={folder}"])
    (row,) = table.rows
    assert row.overall == pytest.approx((1 + 1 / 3 + 2 / 3 + 1) / 4)
    without = "1 more do not count without these"
    if drawn:
        assert [sample["correct"] for sample in row.samples] == [True, False, False, True]
        assert [f["file"] for f in row.failures] == [f"m_nfe0/pictures/a_{k}.png" for k in (1, 2)]
        assert [f["reason"] for f in row.failures] == [f"Is there a cup? no\n{without}", "Is it <red>? no"]
        assert [round(f["score"], 3) for f in row.failures] == [0.333, 0.667]
    else:
        (grid,) = row.failures
        assert (grid["file"], grid["score"]) == ("m_nfe0/a.png", row.overall)
        assert grid["reason"].splitlines() == [
            "picture 2: Is there a cup? no",
            f"picture 2: {without}",
            "picture 3: Is it <red>? no",
        ]
    page = write_report(run.folder(run.benchmarks[0]), table).html.read_text()
    assert "Is it &lt;red&gt;? no" in page
    assert "seen: " not in page  # no detector looked
    assert ">missing<" not in page


def test_dpg_scores_what_is_drawn_twice_and_grids_alone(tmp_path):
    save_tiny_vlm(tmp_path / "vlm")
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    rows = [("a", 1, "0", "global", "?"), ("a", 2, "0", "entity - whole", "Cup?")]
    questions = write_csv(tmp_path / "q.csv", rows)
    own = {
        "questions": str(questions),
        "prompts": str(tmp_path / "p.jsonl"),
        "judge": str(tmp_path / "vlm"),
        "mode": "compare",
        "device": "cpu",
    }
    run = evaluation(tmp_path, ["dpg"], own={"dpg": own})
    folder = noise(run.benchmarks[0], tmp_path / "theirs")
    (first,) = run.run([f"m={folder}"])
    assert "a.png" in pictures_in(folder)  # the grid lies beside its pictures now
    (again,) = run.run([f"m={folder}"])
    assert again.rows[0].overall == first.rows[0].overall
    grids = tmp_path / "grids"
    grids.mkdir()
    shutil.copyfile(folder / "a.png", grids / "a.png")
    (alone,) = run.run([f"g=images:{grids}"])
    row = alone.row("g", 0)
    assert row.overall == first.rows[0].overall
    (sample,) = row.samples
    assert (sample["prompt"], sample["file"]) == ("A red cup.", "g_nfe0/a.png")
    assert sample["correct"] == (row.overall == 1.0)
    assert (run.folder(run.benchmarks[0]) / "g_nfe0" / "a.png").is_file()  # the page shows the grid


def test_measures_of_a_file_of_prompts_and_of_a_benchmark_beside_it(tmp_path):
    (tmp_path / "p.txt").write_text("a photo of a circle\na photo of two squares\n")
    common = {"prompts": tmp_path / "p.txt", "images_per_prompt": 3}
    run = evaluation(tmp_path, ["diversity", "sharpness"], common=common)
    (table,) = run.run(["base=shapeworld-tiny"])
    (row,) = table.rows
    assert row.images == 6
    assert row.overall is None
    assert {"seed_distance", "vendi", "sharpness", "contrast"} <= row.metrics.keys()
    assert row.metrics["seed_distance"].value > 0
    assert "features" not in table.protocol
    assert "texture-1" in table.protocol["diversity"]

    # Two benchmarks at once: a folder for each, and the pictures that are there are not drawn again.
    name = ModelName.parse(f"base=images:{tmp_path / 'out' / 'base_nfe1'}")
    with processes() as place:
        run.score_folder(run.benchmarks[0], table, name, place)
    assert table.row("base", 1).metrics == row.metrics
    with pytest.raises(TwinflowError, match=r"add a benchmark, or --prompts"):
        evaluation(tmp_path, ["clip"])
    with pytest.raises(TwinflowError, match="--images-per-prompt"):
        evaluation(tmp_path, ["diversity"], common={"prompts": tmp_path / "p.txt"}).run(["shapeworld-tiny"])
