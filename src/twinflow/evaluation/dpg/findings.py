"""What a judge said no to, picture by picture, for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from twinflow.evaluation.benchmark import Finding
from twinflow.evaluation.dpg.answers import Answer, answered
from twinflow.evaluation.dpg.questions import Question, Questions
from twinflow.evaluation.dpg.scores import picture_score


def findings_of_pictures(
    questions: Questions,
    texts: Mapping[str, str],
    answers: Sequence[Answer],
    file_of: Callable[[str, int], str],
) -> list[Finding]:
    """One a picture, in the order of the prompts ``texts``; ``file_of`` names the picture of an item and a number."""
    return [
        _finding(texts[item], file_of(item, number), [said], questions.by_item[item])
        for item, pictures in _by_item(texts, answers).items()
        for number, said in enumerate(pictures)
    ]


def findings_of_grids(
    questions: Questions, texts: Mapping[str, str], answers: Sequence[Answer], files: Mapping[str, str]
) -> list[Finding]:
    """One a grid of others, whose pictures are nowhere else."""
    return [
        _finding(texts[item], files[item], pictures, questions.by_item[item])
        for item, pictures in _by_item(texts, answers).items()
    ]


def _by_item(items: Iterable[str], answers: Iterable[Answer]) -> dict[str, list[Mapping[int, Answer]]]:
    """Answers by question, of each picture of each item."""
    found: dict[str, list[Mapping[int, Answer]]] = {item: [] for item in items}
    for (item, _), said in sorted(answered(answers).items()):
        found[item].append(said)
    return found


def _finding(
    prompt: str, file: str, pictures: Sequence[Mapping[int, Answer]], asked: Sequence[Question]
) -> Finding:
    scores, lines = [], []
    for number, said in enumerate(pictures, start=1):
        score = picture_score(asked, {question: answer.yes for question, answer in said.items()})
        scores.append(score)
        where = f"picture {number}: " if len(pictures) > 1 else ""
        refused = [said[question.id] for question in asked if not said[question.id].yes]
        lines += [f"{where}{answer.question} {answer.text or 'no answer'}" for answer in refused]
        without = round((1 - score) * len(asked)) - len(refused)
        if without:
            lines.append(f"{where}{without} more do not count without these")
    score = fmean(scores)
    return Finding(file=file, prompt=prompt, correct=score == 1.0, score=score, reason="\n".join(lines))
