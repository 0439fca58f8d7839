"""Commands about scores: eval, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from twinflow.cli.app import DtypeOption, GuidanceOption, NfeOption, SizeOption, app, dtype_of, numbers, sides
from twinflow.errors import TwinflowError, check_place


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, as for sample, or folders of runs; \\[NAME=]MODEL\\[@NFE]. stock:MODEL draws with diffusers' "
            "own call, images:FOLDER has pictures that were drawn before."
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="What to measure: one name or several, see --list. shapeworld by default, prompts with --prompts."
        ),
    ] = None,
    nfe: NfeOption = "1,2,4",
    guidance: GuidanceOption = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts to draw and measure: .txt or .jsonl.")
    ] = None,
    images_per_prompt: Annotated[int | None, typer.Option(help="Pictures of each prompt.")] = None,
    level: Annotated[str | None, typer.Option(help="Level of ShapeWorld: tiny or full.")] = None,
    images_per_task: Annotated[
        int | None, typer.Option(help="ShapeWorld: pictures of each of the six tasks; 200 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the noise (and of ShapeWorld's captions).")
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--with", help="An option of one benchmark: NAME.OPTION=VALUE; see --list."),
    ] = None,
    size: SizeOption = None,
    dtype: DtypeOption = "float32",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures drawn together. 1 makes a picture independent of all others, bit for bit; by default "
            "1 for large pictures, up to 64 for small ones.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for tables, results and pictures.")] = Path(
        "runs/eval"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table of another protocol in the folder.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Say what each benchmark is and needs, and do nothing.")
    ] = False,
) -> None:
    """Score models at several NFE: one table, one report page. The same command goes on where it was stopped."""
    from twinflow.evaluation.building import build
    from twinflow.evaluation.registry import entries

    if show:
        from twinflow.report.listing import print_entries

        print_entries(entries())
        return
    if not models:
        raise TwinflowError("name at least one model, such as shapeworld-tiny; --list shows the benchmarks")
    from twinflow.evaluation.runner import Evaluation
    from twinflow.report import print_table, write_report

    common: dict[str, Any] = {
        "prompts": prompts,
        "images_per_prompt": images_per_prompt,
        "level": level,
        "images_per_task": images_per_task,
        "seed": seed,
    }
    common = {name: value for name, value in common.items() if value is not None}
    names = (benchmark or ("prompts" if prompts else "shapeworld")).split(",")
    benchmarks, measures = build(names, common=common, own=_own_options(extra or []))
    evaluation = Evaluation(
        benchmarks=benchmarks,
        measures=measures,
        nfe=numbers(nfe),
        guidance=guidance,
        batch=batch,
        output=output,
        overwrite=overwrite,
    )
    tables = evaluation.run(models, size=sides(size), dtype=dtype_of(dtype))
    if not evaluation.writes:
        return
    for one, table in zip(benchmarks, tables):
        print_table(table)
        files = write_report(evaluation.folder(one), table)
        typer.echo(f"report: {files.html}")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders that eval or quickstart wrote; several are put in one table."),
    ],
    run: Annotated[list[Path] | None, typer.Option(help="Training runs whose loss curves to show.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the page; that of the evaluation by default.")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Show scores of different protocols side by side, with a warning.")
    ] = False,
) -> None:
    """Write the report page of evaluations again: of several in one table, with the loss curves of training runs."""
    from twinflow.report import print_table, write_report
    from twinflow.report.files import joined

    runs = run or []
    names = [path.resolve().name for path in runs]
    losses = {  # of several of one name by the paths that were given
        name if names.count(name) == 1 else str(path): path / "metrics.jsonl"
        for name, path in zip(names, runs)
    }
    for path in losses.values():
        if not path.is_file():
            raise TwinflowError(f"there is no training run in {path.parent}: {path.name} is missing")
    table, home = joined(folders, mixed=mixed)
    print_table(table)
    check_place(output or home, name="--output")
    files = write_report(output or home, table, losses=losses, pictures=home)
    typer.echo(f"report: {files.html}")


def _own_options(texts: list[str]) -> dict[str, dict[str, str]]:
    """``geneval.detector=PATH`` by benchmark and option."""
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (name and dot and option and equals):
            raise TwinflowError(f"--with {text!r} is not of the form NAME.OPTION=VALUE")
        options.setdefault(name, {})[option] = value
    return options
