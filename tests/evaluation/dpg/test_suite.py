"""From grids to a score: a judge that reads colours, and tiny random models end to end."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.dpg.tiny import save_tiny_vlm, save_tiny_vqa
from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg import DPGBench, DPGPrompts, VlmJudge, VqaJudge, load_judge
from twinflow.evaluation.dpg.answers import Answer, append_answers, read_answers
from twinflow.evaluation.dpg.judges import NO, PROMPT, YES

ROOT = Path(__file__).parents[3]
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
ROWS = [
    ("a", 1, "0", "attribute - color", "Is it red?"),
    ("a", 2, "1", "attribute - color", "Is it blue?"),
    ("b", 1, "0", "attribute - color", "Is it blue?"),
]


class ColorJudge:
    """Real, and never wrong: a picture is red or blue."""

    name = "colours"

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, image, questions):
        self.asked += len(questions)
        pixel = image.getpixel((1, 1))
        return ["Yes." if COLORS[q.split()[-1].rstrip("?")] == pixel else "no" for q in questions]


@pytest.fixture
def bench(tmp_path):
    prompts = DPGPrompts(texts={"a": "all red", "b": "all blue"}, name="two", sha256="")
    return DPGBench(questions=write_csv(tmp_path / "q.csv", ROWS), prompts=prompts)


@pytest.fixture
def folder(bench, tmp_path):
    """Item a: red, red, blue, red. Item b: blue, red, red, red."""
    folder = tmp_path / "pictures"
    colors = dict(zip("ab", (("red", "red", "blue", "red"), ("blue", "red", "red", "red"))))
    for work in bench.work():
        for path, color in zip(work.paths, colors[work.item]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), COLORS[color]).save(folder / path)
    bench.assemble(folder)
    return folder


def test_known_pictures_have_known_scores(bench, folder):
    report = bench.score(folder, judge=ColorJudge(), resolution=4)
    # a: red pictures answer (yes, no) = 1/2; the blue one (no, yes), whose second answer does not count = 0
    assert report.specified.items == {"a": 3 / 8, "b": 1 / 4}
    assert report.specified.overall == 5 / 16
    assert report.specified.categories == {"attribute - color": (3 + 1 + 1) / 12}
    assert report.official.items == {
        "b": 1 / 4
    }  # the first row is skipped, and a's other question is its child
    assert report.protocol["judge"] == "colours"
    assert report.protocol["left_out_in_compat"] == "a"
    row = report.evaluation_row(model="m", nfe=1)
    assert (row.overall, row.images, row.tasks) == (5 / 16, 8, {"attribute": 5 / 12})
    assert report.evaluation_row(model="m", nfe=1, compat=True).overall == 1 / 4


def test_answers_are_kept_and_not_asked_again(bench, folder, tmp_path):
    path, judge = tmp_path / "answers.jsonl", ColorJudge()
    first = bench.score(folder, judge=judge, answers=path)
    assert judge.asked == 12
    again = bench.score(folder, judge=judge, answers=path)
    assert judge.asked == 12
    assert again == first
    assert bench.read(path).specified == first.specified
    # stopped in the middle of a line: that picture is asked about again
    text = path.read_text()
    path.write_text(text[:-40])
    assert bench.score(folder, judge=judge, answers=path).specified == first.specified
    assert judge.asked == 13
    assert len(read_answers(path)) == 12
    # another picture: its grid is asked about again
    Image.new("RGB", (8, 8), COLORS["blue"]).save(folder / "b.png")
    assert bench.score(folder, judge=judge, answers=path).specified.items["b"] == 1.0
    assert judge.asked == 17
    judge.name = "another"
    with pytest.raises(TwinflowError, match="answers of colours, not of another"):
        bench.score(folder, judge=judge, answers=path)


def test_the_script_for_mplug_writes_what_is_read(bench, folder, tmp_path):
    """Its own loop over grids and questions, with a judge of known answers in mPLUG's place."""
    spec = importlib.util.spec_from_file_location("dpg_mplug", ROOT / "tools" / "dpg_mplug.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path, judge = tmp_path / "answers.jsonl", ColorJudge()
    script.ask_folder(folder, tmp_path / "q.csv", path, lambda i, q: judge.answer(i, [q])[0])
    path.write_text(path.read_text()[:-20])  # a crash
    script.ask_folder(folder, tmp_path / "q.csv", path, lambda i, q: judge.answer(i, [q])[0])
    assert judge.asked == 13
    report = bench.read(path, folder=folder)
    assert report.specified == bench.score(folder, judge=ColorJudge()).specified
    assert report.protocol["judge"] == "mPLUG (modelscope)"
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    with pytest.raises(TwinflowError, match=r"about other pictures than .*: b\."):
        bench.read(path, folder=folder)
    Image.new("RGB", (8, 8), COLORS["blue"]).save(folder / "b.png")
    script.ask_folder(folder, tmp_path / "q.csv", path, lambda i, q: judge.answer(i, [q])[0])
    assert judge.asked == 17  # about the four pictures of the grid that changed
    assert bench.read(path, folder=folder).specified.items["b"] == 1.0  # later answers count
    (folder / "b.png").unlink()
    with pytest.raises(SystemExit, match="lacks 1 of 2 grids, such as b"):
        script.ask_folder(folder, tmp_path / "q.csv", path, lambda i, q: "no")


def mplug(path, change=lambda line: line):
    lines = [
        {
            "item_id": item,
            "picture": k,
            "proposition_id": number,
            "question": text,
            "answer": "yes",
            "judge": "mPLUG",
        }
        for item, number, _, _, text in ROWS
        for k in range(4)
    ]
    path.write_text("\n".join(json.dumps(change(line)) for line in lines) + "\n")
    return path


def test_answers_of_another_environment_are_imported(bench, tmp_path):
    report = bench.read(mplug(tmp_path / "mplug.jsonl"))
    assert report.specified.overall == 1.0
    assert report.protocol["judge"] == "mPLUG"


def test_imported_answers_that_do_not_fit_are_refused(bench, tmp_path):
    path = tmp_path / "mplug.jsonl"
    with pytest.raises(TwinflowError, match="can't be read"):
        bench.read(path)
    with pytest.raises(TwinflowError, match="about other questions: 'Is it green"):
        bench.read(mplug(path, lambda line: line | {"question": "Is it green?"}))
    with pytest.raises(TwinflowError, match="answers of several judges: mPLUG, other"):
        bench.read(mplug(path, lambda line: line | {"judge": "other" if line["picture"] else "mPLUG"}))
    with pytest.raises(TwinflowError, match=r"line 1 is not an answer"):
        bench.read(mplug(path, lambda line: {"answer": "yes"}))
    with pytest.raises(TwinflowError, match="about 4 pictures; not so: a, b"):
        bench.read(mplug(path, lambda line: line | {"picture": line["picture"] // 2}))
    with pytest.raises(TwinflowError, match=r"about the pictures \[1, 2, 3, 4\]"):
        bench.read(mplug(path, lambda line: line | {"picture": line["picture"] + 1}))


def test_a_judge_that_talks_nonsense_is_refused(bench, folder):
    class Poet:
        name = "poet"

        def answer(self, image, questions):
            return ["roses are"] * len(questions)

    with pytest.raises(
        TwinflowError, match="12 of 12 answers that are neither yes nor no, such as 'roses are'"
    ):
        bench.score(folder, judge=Poet())

    class Silent(Poet):
        def answer(self, image, questions):
            return []

    with pytest.raises(TwinflowError, match="gave 0 answers to 2 questions"):
        bench.score(folder, judge=Silent())


def test_a_set_that_is_not_complete_is_refused(bench, folder, tmp_path):
    (folder / "b.png").unlink()
    with pytest.raises(TwinflowError, match="lacks 1 of 2 grids: b"):
        bench.score(folder, judge=ColorJudge())
    (folder / "pictures" / "a_2.png").unlink()
    with pytest.raises(TwinflowError, match=r"lacks 1 pictures: pictures/a_2.png"):
        bench.assemble(folder)
    texts = DPGPrompts(texts={"a": "all red", "c": "all green"}, name="others", sha256="")
    other = DPGBench(questions=tmp_path / "q.csv", prompts=texts)
    with pytest.raises(TwinflowError, match="about different items"):
        other.score(folder, judge=ColorJudge())
    with pytest.raises(TwinflowError, match=r"give the path of dpg_bench.csv"):
        DPGBench().score(folder, judge=ColorJudge())
    with pytest.raises(TwinflowError, match="4 pictures of a prompt in a grid"):
        DPGBench(images_per_prompt=3)


def test_one_picture_a_prompt_is_said_beside_the_name(bench):
    one = replace(bench, images_per_prompt=1).protocol()["benchmark"]
    assert one == bench.protocol()["benchmark"] + " and 1 picture a prompt instead of 4"


def test_what_to_draw():
    texts = DPGPrompts(texts={"vrd2": "a long text", "0": "another"}, name="two", sha256="")
    work = DPGBench(prompts=texts, seed=7).work()
    assert [one.item for one in work] == ["vrd2", "0"]
    assert work[0].seeds == (7, 8, 9, 10)
    assert work[0].paths[2] == f"pictures/{work[0].item}_2.png"
    assert work[0].grid == f"{work[0].item}.png"


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("models") / "tiny-vlm")


def test_a_tiny_vlm_judges_a_folder(bench, folder, vlm):
    judge = load_judge(vlm, mode="compare")
    report = bench.score(folder, judge=judge)
    assert report.protocol["judge"] == "tiny-vlm (compare)"
    assert report.protocol["unclear_answers"] == 0
    assert 0 <= report.specified.overall <= 1


@torch.inference_mode()
def test_the_vlms_answers_are_the_models_own(vlm):
    """Against the model called by hand: one token, and the probabilities of yes and no."""
    greedy, compare = VlmJudge.load(vlm), VlmJudge.load(vlm, mode="compare")
    questions = [f"Is thing {k} there?" for k in range(6)]
    image = noise(0)
    said, answers = greedy.answer(image, questions), compare.answer(image, questions)
    tokenizer, processor = greedy.processor.tokenizer, greedy.processor
    margins = []
    for question, word, answer in zip(questions, said, answers):
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{PROMPT.format(question=question)}<|im_end|>\n<|im_start|>assistant\n"
        )
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        logits = greedy.model(**inputs).logits[0, -1]
        assert word == tokenizer.decode([int(logits.argmax())], skip_special_tokens=True).strip()
        probability = {w: logits.softmax(-1)[tokenizer.convert_tokens_to_ids(w)] for w in YES[:2] + NO[:2]}
        yes, no = (sum(probability[word] for word in words[:2]) for words in (YES, NO))
        assert answer == ("yes" if yes >= no else "no")
        margins.append(float(yes - no))
    assert len(set(margins)) == 6  # it depends on the question
    assert (
        greedy.answer(noise(1), questions) != said or greedy.answer(noise(2), questions) != said
    )  # and the picture
    rows = compare.model.lm_head.weight.clone()
    rows[compare.yes], rows[compare.no] = rows[compare.no].clone(), rows[compare.yes].clone()
    compare.model.lm_head.weight = torch.nn.Parameter(rows)  # now it says no where it said yes
    assert compare.answer(image, questions) == [{"yes": "no", "no": "yes"}[answer] for answer in answers]


def test_judges_that_cannot_be_loaded(tmp_path, vlm):
    with pytest.raises(TwinflowError, match="no judge can be loaded"):
        VlmJudge.load(tmp_path / "absent")
    with pytest.raises(TwinflowError, match="no judge can be loaded"):
        VqaJudge.load(tmp_path / "absent")
    with pytest.raises(TwinflowError, match="greedy, compare, got 'soft'"):
        VlmJudge.load(vlm, mode="soft")


@torch.inference_mode()
def test_a_tiny_vqa_model_answers_every_question(tmp_path):
    assert isinstance(load_judge(save_tiny_vqa(tmp_path / "tiny-vqa")), VqaJudge)
    judge = VqaJudge.load(save_tiny_vqa(tmp_path / "tiny-vqa"), batch_size=4)
    questions = [f"is {word} red?" for word in ("it", "a dog", "the cat", "b", "this long thing here", "c")]
    answers = judge.answer(noise(0), questions)
    assert judge.name == "tiny-vqa"
    assert len(answers) == 6
    # an answer does not depend on the questions beside it
    assert answers == [judge.answer(noise(0), [question])[0] for question in questions]
    assert len({judge.answer(noise(k), questions[:1])[0] for k in range(8)} | set(answers)) > 1


def test_a_later_answer_counts(tmp_path):
    path = tmp_path / "answers.jsonl"
    one = Answer(item="a", picture=0, question_id=1, question="?", text="no", judge="j")
    append_answers(path, [one])
    append_answers(path, [one])
    assert read_answers(path) == [one, one]
