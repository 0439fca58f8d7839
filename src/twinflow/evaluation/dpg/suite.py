"""DPG-Bench (ELLA, arXiv 2403.05135): what to draw, and a complete folder of grids to a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Progress, silent
from twinflow.evaluation.dpg.answers import (
    Answer,
    answered,
    append_answers,
    check_clear,
    collect,
    read_answers,
    short_hash,
)
from twinflow.evaluation.dpg.grid import find_grids, listed, make_grid, split_grid
from twinflow.evaluation.dpg.judges import Judge
from twinflow.evaluation.dpg.prompts import DPGPrompts, official_prompts, read_prompts
from twinflow.evaluation.dpg.questions import URL, Question, Questions, read_questions
from twinflow.evaluation.dpg.scores import DPGScores, dpg_scores
from twinflow.evaluation.results import EvaluationRow

CHECKED_EARLY = 100  # answers after which a judge that talks nonsense is stopped


@dataclass(frozen=True, kw_only=True)
class DPGWork:
    """One prompt to draw."""

    item: str
    prompt: str
    seeds: tuple[int, ...]  # of each picture
    paths: tuple[str, ...]  # of each picture, relative to the folder
    grid: str  # where the pictures go together, relative to the folder


@dataclass(frozen=True, kw_only=True)
class DPGReport:
    """Scores of one set of answers, both ways, and what they depend on."""

    official: DPGScores  # as the published code computes them: compat=True
    specified: DPGScores  # as the paper specifies them
    answers: list[Answer]
    protocol: dict[str, str | int | float] = field(default_factory=dict)

    def evaluation_row(self, *, model: str, nfe: int, compat: bool = False, **more: Any) -> EvaluationRow:
        """A row of a table, with the five broad categories as tasks; ``more`` are its other fields."""
        scores = self.official if compat else self.specified
        return EvaluationRow(
            model=model,
            nfe=nfe,
            images=len({(answer.item, answer.picture) for answer in self.answers}),
            overall=scores.overall,
            overall_error=scores.overall_error,
            strict=scores.overall,  # there is no stricter reading
            tasks=dict(scores.broad_categories),
            task_images=dict(scores.broad_pictures),
            **more,
        )


@dataclass(kw_only=True)
class DPGBench:
    """The benchmark. ``questions`` is the official csv or one like it; ``prompts`` None for the 1065 official ones."""

    questions: str | Path | Questions | None = None
    prompts: str | Path | DPGPrompts | None = None
    images_per_prompt: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images_per_prompt not in (1, 4):
            raise TwinflowError(
                f"DPG-Bench has 4 pictures of a prompt in a grid, or 1, got {self.images_per_prompt}"
            )

    @property
    def prompt_set(self) -> DPGPrompts:
        if self.prompts is None:
            self.prompts = official_prompts()
        if not isinstance(self.prompts, DPGPrompts):
            self.prompts = read_prompts(self.prompts)
        return self.prompts

    @property
    def question_set(self) -> Questions:
        """The questions; TwinflowError unless they are about exactly the prompts."""
        if self.questions is None:
            raise TwinflowError(
                f"DPG-Bench's questions are needed to score: give the path of dpg_bench.csv ({URL})"
            )
        if not isinstance(self.questions, Questions):
            self.questions = read_questions(self.questions)
        asked, drawn = self.questions.by_item.keys(), self.prompt_set.texts.keys()
        if asked != drawn:
            only_asked, only_drawn = sorted(asked - drawn), sorted(drawn - asked)
            raise TwinflowError(
                f"{self.questions.name} and {self.prompt_set.name} are about different items: questions without a "
                f"prompt: {listed(only_asked) or 'none'}; prompts without questions: {listed(only_drawn) or 'none'}"
            )
        return self.questions

    def work(self) -> list[DPGWork]:
        """What to draw. Picture k of a prompt has the seed ``seed + k``: the official protocol names none."""
        count = self.images_per_prompt
        return [
            DPGWork(
                item=item,
                prompt=text,
                seeds=tuple(self.seed + k for k in range(count)),
                paths=tuple(f"pictures/{item}_{k}.png" for k in range(count)),
                grid=f"{item}.png",
            )
            for item, text in self.prompt_set.texts.items()
        ]

    def assemble(self, folder: str | Path) -> None:
        """Put the drawn pictures of every prompt into its grid; TwinflowError, naming them, if some are missing."""
        folder = Path(folder)
        missing = [path for work in self.work() for path in work.paths if not (folder / path).is_file()]
        if missing:
            raise TwinflowError(f"{folder} lacks {len(missing)} pictures: {listed(missing)}")
        for work in self.work():
            make_grid([_read(folder / path) for path in work.paths]).save(folder / work.grid)

    def score(
        self,
        folder: str | Path,
        *,
        judge: Judge,
        answers: str | Path | None = None,
        resolution: int | None = None,
        progress: Progress = silent,
    ) -> DPGReport:
        """Ask the judge about every picture of every grid in ``folder``.

        ``answers`` is a file that keeps each picture's answers as they come; what it holds already of the same judge,
        grid and questions is not asked again. ``progress`` is called with the number of pictures that are done, first
        of those.
        """
        questions = self.question_set
        grids = find_grids(folder, questions.by_item)
        digest = cache(lambda item: short_hash(grids[item]))
        said_before, known = answered(self._kept(answers, judge)), {}
        for item, asked in questions.by_item.items():
            for picture in range(self.images_per_prompt):
                before = said_before.get((item, picture))
                if before and all(_same(before.get(q.id), q, digest(item)) for q in asked):
                    known[item, picture] = [before[q.id] for q in asked]
        count, total = len(known), len(grids) * self.images_per_prompt
        progress(count, total)
        said: list[Answer] = []
        for item, asked in questions.by_item.items():
            cells: list[Image.Image] = []
            for picture in range(self.images_per_prompt):
                kept = known.get((item, picture))
                if kept is None:
                    cells = cells or split_grid(
                        grids[item], count=self.images_per_prompt, resolution=resolution
                    )
                    kept = _ask(judge, cells[picture], item, picture, asked, digest(item))
                    if answers is not None:
                        append_answers(answers, kept)
                    count += 1
                    progress(count, total)
                said += kept
            if len(said) >= CHECKED_EARLY:
                check_clear(said)
        return self._report(said, judge.name)

    def read(self, path: str | Path, *, folder: str | Path | None = None) -> DPGReport:
        """The report on a file of answers, such as one of mPLUG's; it must be complete.

        A later answer to the same question about the same picture counts. Where ``folder`` is given, answers that say
        which grid they are about must be about the grids in it.
        """
        answers = list({(a.item, a.picture, a.question_id): a for a in read_answers(path)}.values())
        if not answers:
            raise TwinflowError(f"{path} has no answers")
        if folder is not None:
            grids = find_grids(folder, self.question_set.by_item)
            hashes = {item: short_hash(grid) for item, grid in grids.items()}
            stale = {a.item for a in answers if a.grid and a.grid != hashes.get(a.item)}
            if stale:
                raise TwinflowError(
                    f"{path} is about other pictures than {folder} has: {listed(sorted(stale))}. Ask the judge again."
                )
        return self._report(answers, answers[0].judge)

    def _report(self, answers: list[Answer], judge: str) -> DPGReport:
        questions = self.question_set
        by_item = collect(questions, answers)
        wrong = [item for item, pictures in by_item.items() if len(pictures) != self.images_per_prompt]
        if wrong:
            raise TwinflowError(
                f"every prompt needs answers about {self.images_per_prompt} pictures; not so: {listed(wrong)}"
            )
        official = dpg_scores(questions, by_item, compat=True)
        return DPGReport(
            official=official,
            specified=dpg_scores(questions, by_item),
            answers=answers,
            protocol={
                **self.protocol(),
                "judge": judge,
                "unclear_answers": sum(not answer.clear for answer in answers),
                "left_out_in_compat": ", ".join(official.left_out),
            },
        )

    def protocol(self) -> dict[str, str | int | float]:
        """What a reader needs to compare the numbers, or to refuse to."""
        prompts, questions = self.prompt_set, self.question_set
        official = prompts.official and questions.official
        title = "DPG-Bench" if official else "DPG-Bench with other prompts or questions"
        if self.images_per_prompt == 1:
            title += f"{' with' if official else ' and'} 1 picture a prompt instead of 4"
        return {
            "benchmark": title,
            "prompts": prompts.name,
            "prompts_sha256": prompts.sha256,
            "questions": questions.name,
            "questions_git_blob": questions.git_blob,
            "images_per_prompt": self.images_per_prompt,
            "seed": self.seed,
        }

    @staticmethod
    def _kept(path: str | Path | None, judge: Judge) -> list[Answer]:
        if path is None or not Path(path).exists():
            return []
        answers = read_answers(path)
        if answers and answers[0].judge != judge.name:
            raise TwinflowError(
                f"{path} has answers of {answers[0].judge}, not of {judge.name}: give another file"
            )
        return answers


def _same(answer: Answer | None, question: Question, digest: str) -> bool:
    return answer is not None and answer.question == question.text and answer.grid == digest


def _ask(
    judge: Judge,
    image: Image.Image,
    item: str,
    picture: int,
    questions: Sequence[Question],
    digest: str,
) -> list[Answer]:
    texts = judge.answer(image, [question.text for question in questions])
    if len(texts) != len(questions):
        raise TwinflowError(f"the judge {judge.name} gave {len(texts)} answers to {len(questions)} questions")
    return [
        Answer(
            item=item,
            picture=picture,
            question_id=question.id,
            question=question.text,
            text=text,
            judge=judge.name,
            grid=digest,
        )
        for question, text in zip(questions, texts)
    ]


def _read(path: Path) -> Image.Image:
    return split_grid(path, count=1)[0]
