"""DPG-Bench for the runner and the command line: pictures, protocol, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import (
    Benchmark,
    Finding,
    Metric,
    Progress,
    Requirement,
    Scores,
    digest,
    silent,
)
from twinflow.evaluation.dpg.answers import Answer, short_hash
from twinflow.evaluation.dpg.findings import findings_of_grids, findings_of_pictures
from twinflow.evaluation.dpg.grid import find_grids
from twinflow.evaluation.dpg.judges import PLUG_IN, Judge, load_judge, plug_in
from twinflow.evaluation.dpg.requirements import requirements
from twinflow.evaluation.dpg.suite import DPGBench
from twinflow.evaluation.fingerprint import fingerprint, weights_name
from twinflow.evaluation.pictures import Picture
from twinflow.evaluation.registry import Entry
from twinflow.evaluation.requirements import config_of

ANSWERS = "answers_{judge}.jsonl"
IMPORT = "import:"
BY = "answers_by"  # entry of the protocol: what a judge calls itself whose answers were imported, or that is one's own


class DPGBenchmark(Benchmark):
    """DPG-Bench as ``twinflow eval --benchmark dpg`` runs it. Options come as text."""

    name = "dpg"

    def __init__(
        self,
        *,
        questions: str | None = None,
        judge: str | None = None,
        mode: str = "greedy",
        compat: bool | str = False,
        prompts: str | None = None,
        images_per_prompt: int | str = 4,
        seed: int | str = 0,
        device: str | None = None,
    ) -> None:
        try:
            count, first = int(images_per_prompt), int(seed)
        except ValueError as error:
            raise TwinflowError(f"images_per_prompt and seed must be whole numbers: {error}") from error
        if str(compat).lower() not in ("true", "false"):
            raise TwinflowError(f"compat must be true or false, got {compat!r}")
        self.compat = str(compat).lower() == "true"
        self.suite = DPGBench(questions=questions, prompts=prompts, images_per_prompt=count, seed=first)
        self.judge_path, self.mode = judge, mode
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pictures = [
            Picture(file=path, prompt=work.prompt, seed=seed)
            for work in self.suite.work()
            for path, seed in zip(work.paths, work.seeds)
        ]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.suite.protocol() | {
            "judge": self._judge_path() if self._names_itself() else weights_name(self._judge_path()),
            "judge_mode": self.mode,
            "compat": self.compat,
        }

    @property
    def told_late(self) -> tuple[str, ...]:  # type: ignore[override]
        return (BY,) if self._names_itself() else ()

    def ready(self) -> None:
        _ = self.suite.question_set
        if self._judge_path().startswith(PLUG_IN):
            plug_in(self._judge_path())
        elif not self._imports():
            config_of(self._judge_path(), what="the judge")

    @property
    def derived(self) -> set[str]:  # type: ignore[override]
        return {work.grid for work in self.suite.work()}

    def check(self, folder: Path) -> None:
        if self._has_pictures(folder):
            super().check(folder)
        else:
            find_grids(folder, self.suite.question_set.by_item)

    def state(self, folder: Path) -> str:
        """Imported answers may be written anew for the same pictures."""
        file = folder / self._judge_path().removeprefix(IMPORT)
        return short_hash(file) if self._imports() and file.is_file() else ""

    def score(self, folder: Path, *, keep: Path | None = None, progress: Progress = silent) -> Scores:
        drawn = self._has_pictures(folder)
        if drawn:
            self.suite.assemble(folder)
        if self._imports():
            file = folder / self._judge_path().removeprefix(IMPORT)
            if not file.is_file():
                raise TwinflowError(
                    f"{file} is not there: the pictures are drawn and in their grids; ask the judge about them "
                    "(tools/dpg_mplug.py), write its answers there, and give the same command again"
                )
            report = self.suite.read(file, folder=folder)
        else:
            # A file for each judge; two may have one name, and their weights are there once they are loaded.
            judge = digest([self.judge.name, fingerprint(self._judge_path())])[:8]
            answers = (keep or folder) / ANSWERS.format(judge=judge)
            report = self.suite.score(folder, judge=self.judge, answers=answers, progress=progress)
        scores = report.official if self.compat else report.specified
        other = report.specified if self.compat else report.official
        title = "DPG as specified, %" if self.compat else "DPG as the published code counts, %"
        return Scores(
            overall=scores.overall,
            overall_error=None if math.isnan(scores.overall_error) else scores.overall_error,
            tasks=dict(scores.broad_categories),
            task_images=dict(scores.broad_pictures),
            metrics={"dpg_other": Metric(100 * other.overall, title, "higher", 2)},
            findings=self._findings(folder, report.answers, drawn=drawn),
            protocol={BY: report.protocol["judge"]} if self._names_itself() else {},
        )

    def _findings(self, folder: Path, answers: Sequence[Answer], *, drawn: bool) -> list[Finding]:
        """One a picture, or one a grid where there are grids alone."""
        questions, texts = self.suite.question_set, self.suite.prompt_set.texts
        if not drawn:
            files = {item: path.name for item, path in find_grids(folder, questions.by_item).items()}
            return findings_of_grids(questions, texts, answers, files)
        paths = {work.item: work.paths for work in self.suite.work()}
        return findings_of_pictures(questions, texts, answers, lambda item, number: paths[item][number])

    def _has_pictures(self, folder: Path) -> bool:
        """Whether it has single pictures under our names; else it must have grids alone, the official layout."""
        return any((folder / picture.file).is_file() for picture in self.pictures)

    @cached_property
    def judge(self) -> Judge:
        return load_judge(self._judge_path(), mode=self.mode, device=self.device)  # type: ignore[arg-type]

    def _names_itself(self) -> bool:
        """Whether only the judge, or its answers, tell who it is."""
        return self._judge_path().startswith((IMPORT, PLUG_IN))

    def _imports(self) -> bool:
        return self._judge_path().startswith(IMPORT)

    def _judge_path(self) -> str:
        if self.judge_path is None:
            raise TwinflowError(
                "DPG-Bench needs a judge: --with dpg.judge=MODEL, such as Qwen/Qwen2.5-VL-7B-Instruct, or "
                f"{IMPORT}FILE for answers that were written into each folder of pictures"
            )
        return self.judge_path


ENTRY = Entry(
    name="dpg",
    kind="benchmark",
    summary="1065 long prompts with dependent questions, answered by a judge whose name is in the result.",
    build=DPGBenchmark,
    options={
        "questions": "dpg_bench.csv of the official repository",
        "judge": f"a vision language or VQA model of transformers, {IMPORT}FILE, or {PLUG_IN}module:function",
        "mode": "of a vision language model: greedy, or compare (greedy)",
        "compat": "count as the published code does, with its bugs (false)",
        "prompts": "a folder of texts or JSON lines (the 1065 official ones, fetched once)",
        "images_per_prompt": "4, in a grid, or 1 (4)",
        "seed": "picture k of a prompt has the seed plus k (0)",
        "device": "cpu or cuda (cuda if there is one)",
    },
    requires=tuple(
        Requirement(
            what=f"{need.name}: {need.what}",
            size=need.size,
            licence=need.licence,
            source=need.source,
            option=f"--with dpg.{need.option}=…" if need.option else "",
        )
        for need in requirements()
    ),
)
