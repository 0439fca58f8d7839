"""Draw the pictures of benchmarks with models at several NFE, score them, keep one table a benchmark.

Everything is kept as soon as it is there: a picture when it is drawn, a row when it is scored. The same command
goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError, check_place
from twinflow.evaluation.benchmark import Benchmark, Finding, Measure, Scores, digest
from twinflow.evaluation.drawing import RECORD, default_batch, draw_pictures
from twinflow.evaluation.findings import failure, sample, spread
from twinflow.evaluation.fingerprint import weights_hash
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.models import AnyStepModel, Model, open_model
from twinflow.evaluation.pictures import check_folder, pictures_in
from twinflow.evaluation.progress import bar
from twinflow.evaluation.protocols import comparable, make_way, run_facts, take_late, times_note
from twinflow.evaluation.ranks import processes
from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.evaluation.samplers import Sampler
from twinflow.pipelines import AnyStepPipeline
from twinflow.training.processes import Processes

TABLE = "table.json"
SHOWN, FAILURES = 48, 24  # pictures that the page gets


@dataclass(kw_only=True)
class Evaluation:
    """What to measure and where to keep it. One benchmark is kept in ``output`` itself, several in folders of it."""

    benchmarks: Sequence[Benchmark]
    nfe: Sequence[int]
    output: Path
    measures: Sequence[Measure] = ()
    guidance: float | None = None
    batch: int | None = None  # pictures a block; None: by their size, see default_batch
    overwrite: bool = False  # replace a table of another protocol
    shown: bool = True  # progress bars
    tables: list[EvaluationTable] = field(default_factory=list)
    writes: bool = True  # whether this process is the one that writes, known after ``run``

    def folder(self, benchmark: Benchmark) -> Path:
        return self.output if len(self.benchmarks) == 1 else self.output / benchmark.name

    def run(
        self, models: Sequence[str], *, size: tuple[int, int] | None = None, dtype: str = "float32"
    ) -> list[EvaluationTable]:
        """Score every model at every NFE on every benchmark. Under ``torchrun`` the processes share the drawing."""
        names = [ModelName.parse(model) for model in models]
        doubled = {name.name for name in names if sum(n.name == name.name for n in names) > 1}
        if doubled:
            raise TwinflowError(f"two models are called {min(doubled)!r}: name them, NAME=MODEL")
        with processes() as place:
            self.writes = place.is_main
            self.begin()
            for name in names:
                if name.kind == "images":
                    for benchmark, table in zip(self.benchmarks, self.tables):
                        self.score_folder(benchmark, table, name, place)
                    continue
                model = open_model(name, size=size, dtype=dtype)
                self.draw_and_score(model, name.name, place=place)
                del model  # before the next one is loaded
        return self.tables

    def begin(self) -> None:
        """Check that everything is there, and open the tables; those of an earlier call are gone on with."""
        check_place(self.output, name="--output")
        for benchmark in self.benchmarks:
            benchmark.ready()
            for measure in self.measures:
                measure.ready(benchmark.pictures)
        self.tables = [self._table(benchmark) for benchmark in self.benchmarks]

    def _table(self, benchmark: Benchmark) -> EvaluationTable:
        protocol: dict[str, Any] = dict(benchmark.protocol)
        for measure in self.measures:
            protocol |= measure.protocol
        protocol = json.loads(json.dumps(protocol))  # as it will be read again
        table = EvaluationTable(benchmark=benchmark.name, rows=[], protocol=protocol | run_facts())
        file = self.folder(benchmark) / TABLE
        if not file.is_file() or self.overwrite:
            return table
        former = EvaluationTable.load(file)
        for key in benchmark.told_late:
            if key in former.protocol:
                table.protocol[key] = former.protocol[key]
        differences = comparable(former, table)
        if differences:
            raise TwinflowError(
                f"{file} has scores under another protocol ({'; '.join(map(str, differences))}): choose another "
                "--output, or --overwrite it"
            )
        table.rows = former.rows
        here = replace(former, protocol=table.protocol)  # what is drawn now is drawn here
        table.notes = list(dict.fromkeys([*former.notes, *times_note([former, here])]))
        return table

    def draw_and_score(
        self, model: Model, name: str, *, nfe: Sequence[int] | None = None, place: Processes | None = None
    ) -> None:
        """Rows of one model, added to the tables."""
        place = place or Processes.current()
        samplers = [model.sampler(n, self.guidance) for n in nfe or self.nfe]
        for benchmark in self.benchmarks:
            model.check([picture.prompt for picture in benchmark.pictures], samplers)
        for benchmark, table in zip(self.benchmarks, self.tables):
            make_way(
                table, name, identity_of(model), [one.nfe for one in samplers], self.folder(benchmark) / TABLE
            )
        for benchmark, table in zip(self.benchmarks, self.tables):
            for sampler in samplers:
                self._one(benchmark, table, model, name, sampler, place)

    def _one(
        self,
        benchmark: Benchmark,
        table: EvaluationTable,
        model: Model,
        name: str,
        sampler: Sampler,
        place: Processes,
        *,
        save: bool = True,
    ) -> None:
        home = self.folder(benchmark)
        folder = home / f"{name}_nfe{sampler.nfe}"
        if place.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            benchmark.prepare(folder)
        title = f"{name} at {sampler.nfe} NFE"
        total = len(benchmark.pictures)
        with bar(title, total, shown=self.shown and place.is_main) as update:
            drawing = draw_pictures(
                model,
                benchmark.pictures,
                sampler,
                folder,
                batch=self.batch or default_batch(model),
                also=benchmark.derived,
                place=place,
                progress=lambda done, _: update(done * place.world_size, total),
            )
        if place.is_main:
            row = EvaluationRow(
                model=name,
                nfe=sampler.nfe,
                images=total,
                style=sampler.style,
                guidance=sampler.guidance,
                seconds_per_image=drawing.seconds_per_image,
                key=drawing.key,
                identity=identity_of(model),
            )
            self._score(benchmark, table, row, folder, save=save)
        place.barrier()

    def score_folder(
        self, benchmark: Benchmark, table: EvaluationTable, name: ModelName, place: Processes
    ) -> None:
        """The row of pictures that were drawn before, here or elsewhere."""
        source = Path(name.path)
        if len(self.benchmarks) > 1:
            source = source / benchmark.name
        benchmark.check(source)
        if self.measures:  # they go by the benchmark's own file names
            check_folder(source, benchmark.pictures, also=benchmark.derived)
        record = _record(source)
        how = record.get("how", {}).get("sampler", {})
        if place.is_main:
            there = [(name, (source / name).stat()) for name in sorted(pictures_in(source))]
            files = [(name, state.st_size, state.st_mtime_ns) for name, state in there]
            row = EvaluationRow(
                model=name.name,
                nfe=name.nfe if name.nfe is not None else how.get("nfe", 0),
                images=len(benchmark.pictures),
                style=how.get("options", {}).get("style", "few") if how else "unknown",
                guidance=how.get("guidance", 1.0),
                key=record.get("key") or digest([str(source), files]),
            )
            self._score(benchmark, table, row, source)
        place.barrier()

    def _score(
        self,
        benchmark: Benchmark,
        table: EvaluationTable,
        row: EvaluationRow,
        pictures: Path,
        *,
        save: bool = True,
    ) -> None:
        """Score the pictures unless these very ones were scored before; keep the table."""
        home = self.folder(benchmark)
        if state := benchmark.state(pictures):
            row = replace(row, key=digest([row.key, state]))
        former = table.row(row.model, row.nfe)
        if former is not None and former.key == row.key:
            row = replace(former, seconds_per_image=row.seconds_per_image)
        else:
            prefix = f"{row.model}_nfe{row.nfe}"
            (home / prefix).mkdir(parents=True, exist_ok=True)
            title, total = f"of {row.model} at {row.nfe} NFE", len(benchmark.pictures)
            with bar(f"{benchmark.name} {title}", total, shown=self.shown) as update:
                scores = benchmark.score(pictures, keep=home / prefix, progress=update)
            take_late(table, scores.protocol, pictures)
            cache = home / ".features" / prefix
            for measure in self.measures:
                with bar(f"{measure.name} {title}", total, shown=self.shown) as update:
                    scores.metrics |= measure.measure(
                        pictures, benchmark.pictures, cache=cache, progress=update
                    )
            row = _with_scores(row, scores)
            if not scores.findings:
                scores.findings = [
                    Finding(file=p.file, prompt=p.prompt)
                    for p in benchmark.pictures
                    if (pictures / p.file).is_file()  # others may have grids alone
                ]
            row.samples = [sample(f, prefix) for f in spread(scores.findings, SHOWN)]
            wrong = [f for f in scores.findings if f.correct is False]
            row.failures = [failure(f, prefix, pictures) for f in spread(wrong, FAILURES)]
            if pictures != home / prefix:  # of others: the page needs its own copies
                for entry in [*row.samples, *row.failures]:
                    copy = home / entry["file"]
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(pictures / Path(entry["file"]).relative_to(prefix), copy)
        table.put(row)
        if save:
            table.save(home / TABLE)


def identity_of(model: Model) -> str:
    """Of what a model's pictures depend on, wherever they are drawn."""
    return digest({key: value for key, value in model.identity.items() if key != "device"})


def _with_scores(row: EvaluationRow, scores: Scores) -> EvaluationRow:
    # Those that both have.
    names = "overall overall_error strict strict_error tasks task_images held_out diversity metrics"
    return replace(row, **{name: getattr(scores, name) for name in names.split()})


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    return json.loads(file.read_text()) if file.is_file() else {}


def evaluate_pipeline(
    benchmark: Benchmark, pipe: AnyStepPipeline, sampler: Sampler, *, model: str, home: Path
) -> EvaluationRow:
    """The row of a pipeline in memory, known by its weights; the pictures go into a folder of ``home``."""
    evaluation = Evaluation(benchmarks=[benchmark], nfe=[sampler.nfe], output=home, shown=False)
    table = EvaluationTable(benchmark=benchmark.name, rows=[])
    drawn_by = AnyStepModel(pipe, identity=weights_hash(pipe.network))
    drawn_by.check([picture.prompt for picture in benchmark.pictures], [sampler])
    evaluation._one(benchmark, table, drawn_by, model, sampler, Processes.current(), save=False)
    return table.rows[0]


def evaluate_models(
    models: Sequence[str],
    *,
    nfe: Sequence[int],
    guidance: float | None = None,
    level: str = "tiny",
    images_per_task: int = 200,
    seed: int = 0,
    output: Path,
) -> EvaluationTable:
    """Score every model at every NFE on ShapeWorld; the table is saved after each row."""
    from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

    benchmark = ShapeWorldBenchmark(level, images_per_task=images_per_task, seed=seed)
    evaluation = Evaluation(benchmarks=[benchmark], nfe=nfe, guidance=guidance, output=output)
    (table,) = evaluation.run(models)
    return table
