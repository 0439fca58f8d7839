"""Evaluate and sample models by name, the way the command line does."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twinflow import __version__
from twinflow.data.shapeworld import get_level
from twinflow.errors import TwinflowError
from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.evaluation.runner import Sampler, ShapeWorldEvaluation
from twinflow.pipelines import AnyStepPipeline

BASE_GUIDANCE = 2.5
MANY_STEPS = 8  # from here on a base model is sampled with guidance


def load_model(path_or_id: str) -> AnyStepPipeline:
    """The pipeline of a model for sampling, on the GPU if there is one; its progress bar is off."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = AnyStepPipeline.from_pretrained(path_or_id, target_time=False, device=device)
    pipe.pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler_for(pipe: AnyStepPipeline, nfe: int, guidance: float | None = None) -> Sampler:
    """How a model is sampled at ``nfe``: few-step if it knows target times, else along its velocity field.

    A base model gets classifier-free guidance where there are evaluations to spend on it.
    """
    if pipe.knows_target_time or pipe.exported is not None:
        return Sampler(nfe=nfe, guidance=1.0 if guidance is None else guidance)
    if guidance is None:
        guidance = BASE_GUIDANCE if nfe >= MANY_STEPS and nfe % 2 == 0 else 1.0
    return Sampler(nfe=nfe, guidance=guidance, options={"style": "multi", "time_dist": (1.0, 1.0, 1.0)})


def check_prompts(prompts: Sequence[str], words: Sequence[str]) -> None:
    """Raise unless every word of every prompt is among ``words``, those that the model was trained on."""
    known = set(words)
    for prompt in prompts:
        unknown = [word for word in prompt.split() if word not in known]
        if unknown:
            raise TwinflowError(
                f"the prompt {prompt!r} has words that this model does not know: {', '.join(unknown)}. "
                f"It knows: {' '.join(sorted(known))}"
            )


def draw_prompts(
    model: str, prompts: list[str], *, nfe: list[int], guidance: float | None, seed: int, output: Path
) -> list[Path]:
    """Draw each prompt at each NFE; returns the PNG files."""
    pipe = load_model(model)
    if pipe.words is not None:
        check_prompts(prompts, pipe.words)
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for evaluations in nfe:
        sampler = sampler_for(pipe, evaluations, guidance)
        result = pipe(prompts, nfe=evaluations, seeds=seed, guidance=sampler.guidance, **sampler.options)
        for i, image in enumerate(result.images):
            files.append(output / f"{i:03}_seed{seed + i}_nfe{evaluations}.png")
            image.save(files[-1])
    return files


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
    try:
        evaluation = ShapeWorldEvaluation(level=get_level(level), images_per_task=images_per_task, seed=seed)
    except ValueError as error:
        raise TwinflowError(str(error)) from error
    named = [_named(model) for model in models]
    pipes = {name: load_model(path) for name, path in named}  # all are found before anything is drawn
    table = EvaluationTable(benchmark="shapeworld", rows=[], protocol=protocol(evaluation))
    for name, pipe in pipes.items():
        for evaluations in nfe:
            sampler = sampler_for(pipe, evaluations, guidance)
            table.rows.append(evaluate_one(evaluation, pipe, sampler, model=name, output=output))
            table.save(output / "table.json")
    return table


def evaluate_one(
    evaluation: ShapeWorldEvaluation, pipe: AnyStepPipeline, sampler: Sampler, *, model: str, output: Path
) -> EvaluationRow:
    """One row of a table, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{model} at {sampler.nfe} NFE", total=len(evaluation.captions))
        return evaluation.run(
            pipe,
            sampler,
            model=model,
            folder=output / f"{model}_nfe{sampler.nfe}",
            progress=lambda done, total: bar.update(task, completed=done),
        )


def protocol(evaluation: ShapeWorldEvaluation) -> dict[str, str | int | float]:
    """What a reader needs to compare the numbers, or to refuse to."""
    return {
        "level": get_level(evaluation.level).name,
        "images_per_task": evaluation.images_per_task,
        "seed": evaluation.seed,
        **run_facts(),
    }


def run_facts() -> dict[str, str | int | float]:
    """When, by which command, with which versions and on what kind of machine."""
    import diffusers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "twinflow": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "machine": f"{device}, {torch.get_num_threads()} threads",
    }


def _named(model: str) -> tuple[str, str]:
    """``NAME=MODEL``, or a model named by the last part of its path that says something."""
    name, equals, path = model.partition("=")
    if equals:
        return name, path
    parts = [part for part in Path(model).parts if part not in ("pipeline", "..", ".", "/")]
    return (parts[-1] if parts else model), model
